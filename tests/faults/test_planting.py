"""The planting itself: it changes what it says and nothing else, and a seed repeats it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.image import decode_header
from mpifs.core.records import InodeRecord
from tests.faults.volumes import KINDS, ROOT_FOLDER, Sample, Template
from tools.planting.kinds import Stage, plant
from tools.planting.mapped import spot_of
from tools.planting.volume import RestingVolume

Make = Callable[..., Sample]
FILE_KINDS = sorted(name for name, kind in KINDS.items() if kind.stage is Stage.FILES)
NEEDS_COPY = ("copy-bit", "copy-piece-lost")


def content(folder: Path) -> dict[str, bytes]:
    """All files of a volume, but LMDB's tables of readers and locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("lock.mdb", "lock") and "run" not in path.parts
    }


def bits_apart(before: bytes, after: bytes) -> int:
    """In how many bits they differ."""
    assert len(before) == len(after)
    a, b = int.from_bytes(before, "big"), int.from_bytes(after, "big")
    return (a ^ b).bit_count()


@pytest.fixture(scope="module")
def sound(templates: Callable[[int], Template]) -> dict[str, bytes]:
    """The files of a volume before anything was done to it."""
    return content(templates(2).store)


@pytest.mark.parametrize("name", sorted(n for n in KINDS if n not in NEEDS_COPY))
def test_a_kind_changes_what_it_says(sample: Make, sound: dict[str, bytes], name: str) -> None:
    kind = KINDS[name]
    one, before = sample(2), sound
    one.plant([name], sum(name.encode()))
    (planted,) = one.planted
    assert planted.kind == name
    after = content(one.store)
    changed = [path for path in {*before, *after} if before.get(path) != after.get(path)]
    assert changed, "nothing was changed"
    if kind.stage is Stage.BITS and kind.family not in ("record", "total"):
        flipped = {path: bits_apart(before[path], after[path]) for path in changed}
        assert set(flipped.values()) == {1}, flipped
    if kind.stage is not Stage.FILES:
        # LMDB opens it still, and all but the planted rows are whole.
        volume_rows_are_whole(one, but=2 if kind.stage is Stage.BITS else 0)


def volume_rows_are_whole(one: Sample, but: int) -> None:
    """Decodes every row of the index and every listed header; `but` so many may be damaged."""
    bad = 0
    with one.before.index() as environment, environment.read() as rows:
        for database, decode in (
            (records.INODES, lambda k, v: records.decode_inode(k, v, InodeRecord)),
            (records.DENTRIES, records.decode_dentry),
            (records.REFS, records.decode_ref),
            (records.XATTRS, records.decode_xattr),
            (records.ORPHANS, records.decode_orphan),
            (records.GARBAGE, records.decode_garbage),
        ):
            for key, value in rows.scan(database):
                try:
                    decode(key, value)
                except DamageError:
                    bad += 1
    for worker in one.before.workers:
        for side in ("small", "large"):
            with one.before.side(worker, side) as environment, environment.read() as rows:
                for _, value in rows.scan("headers"):
                    try:
                        decode_header(value)
                    except DamageError:
                        bad += 1
    assert bad <= but


@pytest.mark.parametrize("seed", range(3))
def test_many_kinds_fit_into_one_volume_and_a_seed_repeats_them(sample: Make, seed: int) -> None:
    one, other = sample(2), sample(2)
    families = ("chunk", "ref", "record", "name")
    names = [name for name, kind in KINDS.items() if kind.family in families]
    one.plant(names, seed, skips=True)
    other.plant(names, seed, skips=True)
    assert one.planted == other.planted
    assert len(one.planted) > 0.8 * len(names)
    assert one.before.lost() == other.before.lost()
    chunks = [
        (place.inode, place.chunk)
        for fault in one.planted
        if KINDS[fault.kind].family == "chunk"
        for place in fault.must[:1]
    ]
    assert len(chunks) == len(set(chunks)), "a place was taken twice"


def test_the_place_of_a_view_is_where_the_file_has_it(sample: Make) -> None:
    volume = sample(1).before
    with volume.index() as environment, environment.read() as rows:
        path = os.path.join(volume.index_folder, "data.mdb")
        data = Path(path).read_bytes()
        for key, value in rows.scan(records.DENTRIES):
            for view in (key, value):
                spot = spot_of(view, path)
                assert data[spot.offset : spot.end] == view


def test_a_volume_in_use_is_left_alone(sample: Make) -> None:
    one = sample(1)
    with open(one.store / "index" / "lock", "ab") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            RestingVolume(str(one.store))


def test_the_command_plants_and_tells(sample: Make) -> None:
    one, other = sample(1), sample(1)
    command = [sys.executable, str(ROOT_FOLDER / "tools" / "faults.py")]
    words = ["chunk-data-bit", "nlink-file", "--seed", "5"]
    done = subprocess.run([*command, one.store, *words], capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    planted = plant(RestingVolume(str(other.store), 5), words[:2])
    assert told == [fault.document() for fault in planted]
    assert [row["kind"] for row in told] == ["nlink-file", "chunk-data-bit"]
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == len(KINDS)
    done = subprocess.run([*command, one.store, "no-such"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
