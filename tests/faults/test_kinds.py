"""Each kind of damage is found at its place, nothing else is, no read is wrong, repair mends it.

Independent kinds share a volume, to be quick; MPIFS_FAULTS=long takes each alone.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.cycle import IS_LONG, read_damaged, read_repaired, repair, verify, whole_way
from tests.faults.survey import Entry
from tests.faults.volumes import KINDS, Sample, index_files
from tools.planting.planted import Planted

Make = Callable[..., Sample]
pytestmark = [pytest.mark.limit(150), pytest.mark.timeout(300)]

META = ("counters", "inode-limit", "generation-limit", "stores")
OF_META = {
    way: [f"meta-{name}-{way}" for name in META] for way in ("value-bit", "key-bit", "dropped")
}


def family(*names: str) -> list[str]:
    """All kinds of these families."""
    return [name for name, kind in KINDS.items() if kind.family in names]


GROUPS: dict[str, tuple[int, list[str]]] = {
    "chunks, one copy": (
        1,
        [n for n in family("chunk", "ref") if KINDS[n].replicas == 1]
        + [*OF_META["key-bit"], "root-key-bit"],
    ),
    "chunks, two copies": (
        2,
        [*family("chunk", "ref", "copy"), *OF_META["dropped"], "root-dropped"],
    ),
    "records": (1, [*family("record"), *OF_META["value-bit"], "root-value-bit"]),
    "names": (2, [*family("name"), "counters", "inode-limit", "generation-limit"]),
    "table of stores": (1, ["store-forgotten"]),
    "stores removed and damaged": (2, ["store-removed", "store-page"]),
    "stores emptied and nameless": (1, ["store-emptied", "store-superblock-bit"]),
    "stores exchanged and without a file": (2, ["store-exchanged", "store-file-lost"]),
    "stores foreign and disordered": (2, ["store-foreign", "store-key-order"]),
    "stores cut and nameless": (1, ["store-truncated", "store-superblock-lost"]),
}


def cases() -> list[tuple[str, int, list[str]]]:
    """Name, replicas, kinds."""
    if not IS_LONG:
        return [(name, replicas, kinds) for name, (replicas, kinds) in GROUPS.items()]
    return [
        (f"{name}, {replicas}", replicas, [name])
        for name, kind in KINDS.items()
        for replicas in (1, 2)
        if kind.replicas <= replicas and kind.family != "index"
    ]


def test_a_sound_volume_is_clean(sample: Make) -> None:
    one = sample(2)
    document = verify(one)
    assert (document["code"], document["findings"]) == (0, [])
    checked = document["checked"]
    assert checked["inodes"] == len(one.before.inodes)
    assert checked["chunks"] >= len(one.before.refs)
    assert checked["bytes"] >= sum(copy.ref.length for copy in one.before.copies())
    repaired = repair(one)
    assert repaired["code"] == 0
    read_repaired(one)


@pytest.mark.parametrize(("name", "replicas", "kinds"), cases(), ids=[case[0] for case in cases()])
def test_kinds_are_found_and_mended(
    sample: Make, name: str, replicas: int, kinds: list[str]
) -> None:
    one = sample(replicas)
    one.plant(kinds, sum(name.encode()))
    whole_way(one)


INDEX_KINDS = family("index")
WITHOUT_COPY = ("index-removed", "index-page-zero", "index-superblock-lost")


@pytest.mark.parametrize("kind", INDEX_KINDS if IS_LONG else ["index-truncated", "index-page-bit"])
def test_a_lost_index_comes_back_from_its_copies(sample: Make, kind: str) -> None:
    """The copy is of the last unmount, so that everything comes back as it was."""
    one = sample(1)
    one.plant([kind], sum(kind.encode()))
    one.planted = [restored(one)]
    verify(one)
    read_damaged(one)
    document = repair(one)
    assert document["code"] == 1
    assert document["notes"], "the report does not say how it was recovered"
    read_repaired(one)


def restored(one: Sample) -> Planted:
    """With a copy of the same moment nothing may be loose."""
    (planted,) = one.planted
    return replace(planted, loose=())


@pytest.mark.parametrize("kind", INDEX_KINDS if IS_LONG else ["index-file-lost"])
def test_without_any_copy_the_chunks_come_back(sample: Make, kind: str) -> None:
    """As files under lost+found, where their names were only in the index."""
    one = sample(1)
    index_files.remove_copies(one.before)
    one.plant([kind], sum(kind.encode()))
    verify(one)
    document = repair(one)
    assert document["notes"]
    found = one.read()
    contents = {
        b"".join(e.pieces)
        for e in found.values()
        if e.pieces and not any(isinstance(p, int) for p in e.pieces)
    }
    for path, true in one.truth.items():
        data = b"".join(piece for piece in true.pieces if isinstance(piece, bytes))
        holes = any((true.ino, chunk) not in one.before.refs for chunk in range(len(true.pieces)))
        if data and not holes:
            assert data in contents, f"the bytes of {path!r} are nowhere"


def test_what_is_newer_than_the_copy_comes_back_through_the_chunks(sample: Make) -> None:
    """After a crash the copy is of the last unmount: what was written since then is in the stores
    alone."""
    one = sample(2)
    chance = random.Random(5)
    new = {b"new-%d" % number: chance.randbytes(size) for number, size in enumerate((77, 200_000))}
    changed = next(p for p in sorted(one.truth) if one.truth[p].size == 400_001)
    content = chance.randbytes(400_001)
    volume = one.volume()
    volume.mount()
    try:
        for name, data in new.items():
            with open(volume.mnt / os.fsdecode(name), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(
                    file
                )  # sync(2) is not passed on by the kernel to FUSE: it promises nothing.
        with open(volume.mnt / os.fsdecode(changed), "r+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file)
    finally:
        volume.kill()
        volume.mpifs("umount", volume.mnt, check=False)
    shutil.rmtree(one.store / "index")
    document = one.fsck("--repair")
    assert one.fsck()["code"] in ((0,) if document["code"] == 1 else (4,))
    assert not [f for f in document["findings"] if f["severity"] == "lost"], document["findings"]
    found = one.read()
    lost_found = {whole(e) for p, e in found.items() if p.startswith(b"lost+found/")}
    assert set(new.values()) <= lost_found
    assert whole(found[changed]) == content
    for path, true in one.truth.items():
        if path != changed and true.pieces:
            assert whole(found[path]) == whole(true), path


def whole(entry: Entry) -> bytes:
    """All bytes of a file; fails if there is an error in it."""
    assert not any(isinstance(piece, int) for piece in entry.pieces), entry.pieces
    return b"".join(piece for piece in entry.pieces if isinstance(piece, bytes))
