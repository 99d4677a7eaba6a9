"""INSPECT and REBUILD of data files: every image that is whole in the file is whole afterwards."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from pathlib import Path

import pytest

from mpifs import faultpoint
from mpifs.core.chunk_report import Fault
from mpifs.core.errors import FullError, InUseError
from mpifs.core.image import encode_key
from mpifs.core.messages import Rebuild
from mpifs.core.types import ChunkKey
from mpifs.pagefile import PageFile
from mpifs.store import rebuild as rebuilding
from mpifs.store.inspection import inspect
from mpifs.store.rebuild import rebuild
from tests.store.damage import faults, flip, payload_in, put_row, reports, side_named, value_of
from tests.store.images import KIND, STORE, VOLUME, image, image_bytes, open_store

WANTED = Rebuild(3, VOLUME, STORE, 1 << 20, KIND)
PAGE = 4096
_inodes = itertools.count(100, 10)


def fill(folder: Path, source: random.Random) -> dict[ChunkKey, bytes]:
    """A store with a history: chunks of all sizes, some of them deleted and rewritten.

    Inodes differ from call to call: LMDB leaves in its pages what this process has written to
    other environments, other tests' too."""
    first = next(_inodes)
    store = open_store(str(folder), relaxed=True)
    payloads: dict[ChunkKey, bytes] = {}
    for turn in range(1, 6):
        for number in range(12):
            key = ChunkKey(first + number % 4, number, turn)
            payloads[key] = source.randbytes(
                source.choice((1, 5, 900, 3000, 30_000, 40_000, 90_000))
            )
        store.put_many([image(key, payload) for key, payload in payloads.items()])
        gone = source.sample(sorted(payloads), 6)
        store.delete_many(gone)
        for key in gone:
            del payloads[key]
    store.put_many([image(ChunkKey(0, 0, turn), VOLUME) for turn in (1, 2)])
    store.close()
    return payloads


def problems(folder: Path) -> dict[str, list[str]]:
    """What INSPECT says, by file."""
    found: dict[str, list[str]] = {}
    for problem in inspect(str(folder), None).problems:
        found.setdefault(problem.file, []).append(problem.detail)
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "worker-3"


def test_a_whole_store_has_no_problems(folder: Path) -> None:
    fill(folder, random.Random(1))
    before = files(folder)
    assert inspect(str(folder), None).count == 0
    assert rebuild(str(folder.parent), WANTED).done == []
    assert files(folder) == before


def test_what_is_told_of_files(folder: Path) -> None:
    assert problems(folder) == {"": ["is missing; is its disk mounted?"]}
    fill(folder, random.Random(1))
    (folder / "superblock").unlink()
    (folder / "small" / "data.mdb").unlink()
    (folder / "large" / "data.mdb").write_bytes(b"")
    (folder / "copy" / "data.mdb").write_bytes(os.urandom(9000))
    found = problems(folder)
    assert found.pop("superblock") == ["is missing"]
    assert found.pop("small/data.mdb") == ["is missing"]
    assert found.pop("large/data.mdb") == ["is empty"]
    assert found.pop("copy/data.mdb")
    assert found == {}
    shutil.rmtree(folder / "copy")
    assert "copy/data.mdb" not in problems(folder)


def test_a_database_under_another_name(folder: Path) -> None:
    fill(folder, random.Random(1))
    path = folder / "small" / "data.mdb"
    path.write_bytes(path.read_bytes().replace(b"headers", b"hearers"))
    assert problems(folder)["small/data.mdb"]


def test_a_served_store_is_inspected_while_it_is_written(folder: Path) -> None:
    store = open_store(str(folder))
    for number in range(1, 40):
        store.put_many([image(ChunkKey(2, n, number), b"x" * (3_000 * n)) for n in range(20)])
        if number > 1:
            store.delete_many([ChunkKey(2, n, number - 1) for n in range(20)])
        reply = inspect(str(folder), store)
        assert (reply.count, reply.problems) == (0, [])
    with pytest.raises(InUseError):
        inspect(str(folder), None)
    store.close()


def check_rebuilt(
    folder: Path, payloads: dict[ChunkKey, bytes], before: bytes, damaged: bytes
) -> None:
    """All that was whole in the damaged file is whole in the new one."""
    assert inspect(str(folder), None).count == 0
    assert rebuild(str(folder.parent), WANTED).done == []
    store = open_store(str(folder), create=False)
    found = {report.key: report.faults for report in reports(store)}
    for key, payload in payloads.items():
        image_of = image_bytes(key, payload)
        if before.count(image_of) == damaged.count(image_of):
            assert found.get(key) == 0, f"{key} of {len(payload)} bytes"
            assert payload_in(store, key) == payload
    listed = [key for key in found if key.inode]
    assert store.stats().chunks == len(listed)
    assert store.stats().bytes == sum(r.length for r in reports(store) if r.key.inode)
    store.close()


def live_pages(path: Path) -> list[int]:
    """Pages of the trees that the newest snapshot uses: those that are missed."""
    content = path.read_bytes()
    found = []
    for number in range(len(content.rstrip(b"\0")) // PAGE + 1):
        start = number * PAGE
        if number < 2 or (content[start + 10] & 3 and not content[start + 11]):
            path.write_bytes(content[:start] + bytes(PAGE) + content[start + PAGE :])
            if inspect(str(path.parent.parent), None).count:
                found.append(number)
    path.write_bytes(content)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_any_damage(tmp_path: Path, seed: int) -> None:
    """Flipped bits in the pages of the trees, cleared pages, cut files."""
    print("seed", seed)
    source = random.Random(seed)
    good = tmp_path / "good"
    payloads = fill(good, source)
    pages = {name: live_pages(good / name / "data.mdb") for name in ("small", "large")}
    folder = tmp_path / "worker-3"
    rebuilt = 0
    for turn in range(24):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        path = folder / source.choice(("small", "large")) / "data.mdb"
        before = path.read_bytes()
        data = bytearray(before)
        start = source.choice(pages[path.parent.name]) * PAGE
        match source.randrange(6):
            case 0:
                data[start : start + PAGE] = bytes(PAGE)
            case 1:
                del data[source.randrange(len(data)) :]
            case _:
                at = start + source.choice((source.randrange(150), source.randrange(PAGE)))
                data[at] ^= source.choice((1 << source.randrange(8), source.randrange(1, 256)))
        path.write_bytes(data)
        if inspect(str(folder), None).count:
            rebuilt += 1
            reply = rebuild(str(tmp_path), WANTED)
            assert len(reply.done) == 1
            assert reply.chunks == open_count(folder, path.parent.name), f"turn {turn}"
            check_rebuilt(folder, payloads, before, bytes(data))
    assert rebuilt > 3


def open_count(folder: Path, side: str) -> int:
    with PageFile(str(folder / side)) as pages:
        return sum(1 for _ in pages.rows("chunks"))


def test_killed_at_every_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = fill(folder, random.Random(5))
    damaged = {}
    for name in ("small", "large"):
        path = folder / name / "data.mdb"
        content = path.read_bytes()
        damaged[name] = content
        path.write_bytes(content[:PAGE] + bytes(PAGE) + content[2 * PAGE :])
    shutil.copytree(folder, folder.parent / "kept")

    class Killed(BaseException):
        """The process dies here."""

    left = [0]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def put_in_place(fresh: str, path: str) -> None:
        step()
        real(fresh, path)
        step()

    real = rebuilding.put_in_place
    monkeypatch.setattr(rebuilding, "put_in_place", put_in_place)
    monkeypatch.setattr(faultpoint, "reach", lambda name: step())
    was_killed, kill = True, 0
    while was_killed:
        kill += 1
        shutil.rmtree(folder)
        shutil.copytree(folder.parent / "kept", folder)
        left[0] = kill
        try:
            rebuild(str(folder.parent), WANTED)
            assert left[0] > 0
            was_killed = False
        except Killed:
            was_killed = True
            left[0] = 99
            rebuild(str(folder.parent), WANTED)
        assert sorted(path.name for path in folder.iterdir()) == [
            "copy",
            "large",
            "lock",
            "small",
            "superblock",
        ]
        check_rebuilt(folder, payloads, b"", b"")


def test_missing_and_empty_files(folder: Path) -> None:
    payloads = fill(folder, random.Random(6))
    shutil.rmtree(folder / "small")
    (folder / "large" / "data.mdb").write_bytes(b"")
    assert len(rebuild(str(folder.parent), WANTED).done) == 2
    store = open_store(str(folder), create=False)
    assert [r.key for r in reports(store)] == [ChunkKey(0, 0, 1), ChunkKey(0, 0, 2)]
    store.put_many([image(key, payload) for key, payload in payloads.items()])
    assert faults(store) == {}
    store.close()


def test_what_is_kept(folder: Path) -> None:
    """Keys are taken from headers; a wrong payload is kept unless there is a right one; an image
    without a readable header stays under its key."""
    store = open_store(str(folder))
    side = side_named(store, "large")
    a, b, c, d, e = (ChunkKey(4, chunk, 1) for chunk in range(5))
    payload = {key: bytes([97 + key.chunk]) * 40_000 for key in (a, b, c, d, e)}
    store.put_many([image(key, payload[key]) for key in payload])
    put_row(side, "chunks", encode_key(a), value_of(b, payload[b]))
    put_row(side, "chunks", encode_key(b), value_of(a, payload[a]))
    put_row(side, "chunks", encode_key(c), flip(value_of(c, payload[c]), 100))
    put_row(side, "chunks", encode_key(d), flip(flip(value_of(d, payload[d]), 20), 30))
    put_row(side, "chunks", encode_key(e), flip(value_of(e, payload[e]), 20))
    store.close()
    path = folder / "large" / "data.mdb"
    path.write_bytes(bytes(PAGE) + path.read_bytes()[PAGE:])
    rebuild(str(folder.parent), WANTED)
    store = open_store(str(folder), create=False)
    found = {key: fault for key, fault in faults(store).items() if key in payload}
    # An older page of the file may still have the right image: then it is taken.
    assert found.pop(c, Fault.SUM_WRONG) == Fault.SUM_WRONG
    assert found.pop(d, 0) in (0, Fault.HEADER_DAMAGED | Fault.LIST_DAMAGED)
    assert found == {}
    assert {report.key for report in reports(store)} == set(payload)
    for key in (a, b, e):
        assert payload_in(store, key) == payload[key]
    store.close()


def test_the_copy_is_left_closed_until_it_is_made_anew(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(folder, random.Random(7))
    path = folder / "copy" / "data.mdb"
    path.write_bytes(b"nonsense")
    store = open_store(str(folder), create=False)
    assert "index copies of store 3" in caplog.text
    caplog.clear()
    assert {side.name for side in store.sides} == {"small", "large"}
    with pytest.raises(Exception, match="run mpifs fsck"):
        store.put_many([image(ChunkKey(0, 0, 9), b"x")])
    store.close()
    assert len(rebuild(str(folder.parent), WANTED).done) == 1
    store = open_store(str(folder), create=False)
    store.put_many([image(ChunkKey(0, 0, 9), b"x")])
    store.close()


def test_a_full_disk_is_seen_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, random.Random(8))
    path = folder / "large" / "data.mdb"
    content = path.read_bytes()
    path.write_bytes(bytes(PAGE) + content[PAGE:])
    before = files(folder)
    monkeypatch.setattr(rebuilding, "disk_free_bytes", lambda path: len(content))
    with pytest.raises(FullError, match="MiB are needed"):
        rebuild(str(folder.parent), WANTED)
    assert files(folder) == before


def test_memory_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions are split, whatever is in the file."""
    payloads = fill(folder, random.Random(9))
    path = folder / "large" / "data.mdb"
    content = path.read_bytes()
    path.write_bytes(bytes(PAGE) + content[PAGE:])
    monkeypatch.setattr(rebuilding, "MEND_BYTES_MAX", 1)
    rebuild(str(folder.parent), WANTED)
    check_rebuilt(folder, payloads, b"", b"")
