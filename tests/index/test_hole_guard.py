"""A hole is believed only if the refs add up: a ref that is gone must read as an error."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from stat import S_IFREG

import pytest

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.records import REFS, ref_key
from mpifs.core.types import Caller, ChunkKey, ChunkRef
from mpifs.index.amendment import Amendment, RowKey
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.kv import Environment
from tests.index.volumes import open_volume
from tests.vfs.loopback import LoopbackVolume

FILE = S_IFREG | 0o644
CHUNK = 1 << 20


def ref(generation: int, length: int = CHUNK) -> ChunkRef:
    return ChunkRef(generation, length, b"c" * 16, (1,))


def make(index: Index, name: bytes, chunks: list[int], size: int, length: int = CHUNK) -> Inode:
    """A file with refs for some chunks, committed."""
    inode = index.create(index.inode(1), name, FILE, 0, 0, now_ns=1)
    index.set_refs(inode, [(chunk, ref(100 + chunk, length)) for chunk in chunks])
    inode.size = inode.stable_size = size
    index.touch(inode)
    index.sync()
    return inode


def edit(path: str, rows: dict[bytes, bytes | None]) -> None:
    """Rows of `refs` as the disk may change them while nobody looks."""
    environment = Environment(path, records.DATABASES)
    with environment.write() as writing:
        for key, value in rows.items():
            if value is None:
                assert writing.delete(REFS, key)
            else:
                writing.put(REFS, key, value)
    environment.close()


def row(path: str, key: bytes) -> bytes:
    environment = Environment(path, records.DATABASES)
    with environment.read() as reading:
        value = reading.get(REFS, key)
        assert value is not None
        found = bytes(value)
    environment.close()
    return found


def flipped(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 4
    return bytes(changed)


def ruined(data: bytes) -> bytes:
    """Changed beyond mending."""
    return bytes(byte ^ 0x55 if at < 6 else byte for at, byte in enumerate(data))


@pytest.fixture
def ino(path: str) -> int:
    index = open_volume(path)
    ino = make(index, b"f", [0, 1, 5], 8 * CHUNK).ino
    index.close()
    return ino


@pytest.fixture
def again(path: str) -> Iterator[list[Index]]:
    """Opened indexes, to be closed."""
    opened: list[Index] = []
    yield opened
    for index in opened:
        index.abandon()


def test_true_holes(path: str, ino: int, again: list[Index]) -> None:
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    assert [index.ref(inode, chunk) is None for chunk in range(8)] == [0, 0, 1, 1, 1, 0, 1, 1]
    index.check_holes(inode)


def test_a_ref_that_is_gone_is_no_hole(path: str, ino: int, again: list[Index]) -> None:
    edit(path, {ref_key(ino, 1): None})
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    for _ in range(2):
        for chunk in (1, 2, 7):
            with pytest.raises(DamageError, match="run mpifs fsck"):
                index.ref(inode, chunk)
    assert index.ref(inode, 0) == ref(100)
    assert index.ref(inode, 5) == ref(105)
    with pytest.raises(DamageError):
        index.check_holes(inode)
    other = make(index, b"other", [0, 3], 4 * CHUNK)
    assert index.ref(other, 1) is None, "new inodes are trusted"
    index.set_refs(inode, [(2, ref(200))])
    assert index.ref(inode, 2) == ref(200)
    with pytest.raises(DamageError):
        index.ref(inode, 1)


@pytest.mark.parametrize("at", range(16))
def test_a_ref_under_a_flipped_key(path: str, ino: int, again: list[Index], at: int) -> None:
    """The row stands elsewhere then, perhaps among the file's own refs: it must not count."""
    key = ref_key(ino, 1)
    value = row(path, key)
    edit(path, {key: None, flipped(key, at): value})
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    with pytest.raises(DamageError):
        index.ref(inode, 1)
    with pytest.raises(DamageError):
        index.ref(inode, 2)


def test_a_damaged_ref(path: str, ino: int, again: list[Index]) -> None:
    key = ref_key(ino, 1)
    edit(path, {key: flipped(row(path, key))})
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    assert index.ref(inode, 5) == ref(105)
    for chunk in (1, 2):
        with pytest.raises(DamageError):
            index.ref(inode, chunk)
    with pytest.raises(DamageError):
        index.refs(ino)


@pytest.mark.parametrize("spoil", [flipped, ruined])
def test_overwriting_heals(path: str, ino: int, again: list[Index], spoil: object) -> None:
    assert callable(spoil)
    key = ref_key(ino, 1)
    edit(path, {key: spoil(row(path, key))})
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    with pytest.raises(DamageError):
        index.ref(inode, 2)
    index.set_refs(inode, [(1, ref(300, 77))])
    assert inode.bytes_stored == 2 * CHUNK + 77
    assert index.ref(inode, 1) == ref(300, 77)
    assert index.ref(inode, 2) is None
    index.sync()
    listed = [key for key, _ in index.garbage(10)]
    # The generation of the old one is known again if just one byte of its row was wrong.
    assert listed == ([ChunkKey(ino, 1, 101)] if spoil is flipped else [])
    assert index.counters().payload_bytes == 2 * CHUNK + 77


def test_two_ruined_refs_heal_only_as_far_as_is_known(
    path: str, ino: int, again: list[Index]
) -> None:
    edit(path, {ref_key(ino, chunk): ruined(row(path, ref_key(ino, chunk))) for chunk in (1, 5)})
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    index.set_refs(inode, [(1, ref(300))])
    with pytest.raises(DamageError):
        index.ref(inode, 2)
    assert index.ref(inode, 1) == ref(300)


@pytest.mark.parametrize("spoil", [None, flipped, ruined])
def test_a_damaged_file_can_be_emptied_and_removed(
    path: str, ino: int, again: list[Index], spoil: object
) -> None:
    key = ref_key(ino, 1)
    edit(path, {key: spoil(row(path, key)) if callable(spoil) else None})
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    assert index.drop_refs(inode, 0) is None
    assert inode.bytes_stored == 0
    assert index.counters().payload_bytes == 0
    assert index.ref(inode, 1) is None
    index.set_refs(inode, [(3, ref(400, 5))])
    assert index.ref(inode, 1) is None
    index.unlink(index.inode(1), b"f", now_ns=2)
    assert index.reap(inode)
    index.sync()
    assert index.counters() == (0, 1, 0, 0)


def test_part_of_a_damaged_file_is_dropped(path: str, ino: int, again: list[Index]) -> None:
    edit(path, {ref_key(ino, 1): None})
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    assert index.drop_refs(inode, 3) is None
    with pytest.raises(DamageError):
        index.ref(inode, 6)
    assert index.ref(inode, 0) == ref(100)


def test_what_a_crash_left_past_the_end_does_not_show(path: str, again: list[Index]) -> None:
    index = open_volume(path)
    inode = make(index, b"f", [0, 1, 2, 3], CHUNK + 10)  # durable before what lies below them
    ino = inode.ino
    index.abandon()
    for grow in ("touch", "ref", "refs", "set_refs"):
        index = open_volume(path)
        inode = index.inode(ino)
        assert index.ref(inode, 1) == ref(101), "the chunk with the end in it stays"
        assert inode.bytes_stored == 4 * CHUNK, "reading changes nothing"
        inode.size = 8 * CHUNK
        if grow == "touch":
            inode.stable_size = 8 * CHUNK
            index.touch(inode)
        elif grow == "ref":
            assert index.ref(inode, 3) is None
        elif grow == "refs":
            assert [chunk for chunk, _ in index.refs(ino)] == [0, 1]
        else:
            index.set_refs(inode, [(1, ref(501)), (3, ref(503)), (2, ref(502))])
            assert [chunk for chunk, _ in index.refs(ino)] == [0, 1, 2, 3]
            assert inode.bytes_stored == 4 * CHUNK
            index.abandon()
            continue
        assert [chunk for chunk, _ in index.refs(ino)] == [0, 1]
        assert inode.bytes_stored == 2 * CHUNK
        index.check_holes(inode)
        index.abandon()
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    inode.size = inode.stable_size = 8 * CHUNK
    index.touch(inode)
    index.sync()
    assert [key.chunk for key, _ in index.garbage(10)] == [2, 3]


def test_repair_of_a_live_index_ends_the_distrust(path: str, ino: int, again: list[Index]) -> None:
    key = ref_key(ino, 1)
    value = row(path, key)
    edit(path, {key: None})
    index = open_volume(path)
    again.append(index)
    inode = index.inode(ino)
    with pytest.raises(DamageError):
        index.ref(inode, 2)
    assert index.amend(Amendment({RowKey(REFS, key): value}, {RowKey(REFS, key): None}))
    assert index.ref(inode, 2) is None
    assert index.ref(inode, 1) == ref(101)


def test_random_damage_and_changes(path: str, again: list[Index]) -> None:
    """Whatever is planted and whatever happens then, no chunk that was lost reads as a hole."""
    seed = int(os.environ.get("MPIFS_SEED", time.time_ns() % 10**9))
    print("seed", seed)
    rng = random.Random(seed)
    for turn in range(30):
        index = open_volume(path)
        name = b"r%d" % turn
        chunks = sorted(rng.sample(range(12), rng.randrange(1, 10)))
        ino = make(index, name, chunks, 12 * CHUNK, rng.randrange(1, CHUNK)).ino
        index.close()
        victim = rng.choice(chunks)
        key = ref_key(ino, victim)
        value = row(path, key)
        spoilt: dict[bytes, bytes | None] = rng.choice(
            [
                {key: None},
                {key: flipped(value, rng.randrange(len(value)))},
                {key: ruined(value)},
                {key: None, flipped(key, rng.randrange(16)): value},
            ]
        )
        edit(path, spoilt)
        index = open_volume(path)
        again.append(index)
        inode = index.inode(ino)
        holes = set(range(12)) - set(chunks)
        is_lost = True
        for step in range(20):
            chunk = rng.randrange(12)
            what = rng.random()
            if what < 0.3 and chunk != victim:
                index.set_refs(inode, [(chunk, ref(1000 + step, rng.randrange(1, CHUNK)))])
                holes.discard(chunk)
            elif what < 0.4 and chunk != victim:
                assert index.drop_refs(inode, chunk, chunk) is None
                holes.add(chunk)
            elif what < 0.45:
                index.sync()
            try:
                found = index.ref(inode, chunk)
            except DamageError:
                assert is_lost
                assert chunk == victim or chunk in holes or len(spoilt) == 2
            else:
                assert (found is None) == (chunk in holes)
                assert chunk != victim
        index.set_refs(inode, [(victim, ref(5000))])
        assert index.ref(inode, victim) == ref(5000)
        index.close()


def test_reading_through_the_file_system(tmp_path: Path) -> None:
    """EIO where a lost ref would read as zeros, seeks included; the rest reads and overwrites."""
    size = 64 * 1024
    volume = LoopbackVolume(tmp_path / "volume", workers=2, chunk_size=size)
    vfs = volume.open()
    content = [bytes([65 + number]) * size for number in range(6)]
    fh = vfs.create(b"/f", 0o644, os.O_RDWR, Caller(0, 0))
    for number in (0, 1, 2, 5):
        vfs.write(fh, memoryview(content[number]), number * size)
    vfs.fsync(fh)
    vfs.release(fh)
    ino = vfs.getattr(b"/f").ino
    volume.close()
    edit(os.fspath(tmp_path / "volume" / "index"), {ref_key(ino, 1): None})

    vfs = volume.open()
    fh = vfs.open(b"/f", os.O_RDWR)
    into = bytearray(size)
    for _ in range(3):  # reading ahead must not fail the read
        for number in (0, 2, 5):
            assert vfs.read(fh, memoryview(into), number * size) == size
            assert bytes(into) == content[number]
        for number in (1, 3):
            with pytest.raises(DamageError):
                vfs.read(fh, memoryview(into), number * size)
    for offset, whence in ((size, os.SEEK_DATA), (0, os.SEEK_HOLE), (3 * size, os.SEEK_DATA)):
        with pytest.raises(DamageError):
            vfs.lseek(fh, offset, whence)
    assert vfs.lseek(fh, 0, os.SEEK_DATA) == 0
    with pytest.raises(DamageError):
        vfs.write(fh, memoryview(b"part"), size + 100)
    vfs.write(fh, memoryview(content[4]), size)
    vfs.fsync(fh)
    assert vfs.read(fh, memoryview(into), size) == size
    assert bytes(into) == content[4]
    vfs.release(fh)
    volume.close()
