"""Small reads at random: only parts of chunks are fetched, and every byte of them is verified."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpifs import faultpoint
from mpifs.core.errors import DamageError, PeerDeadError
from mpifs.core.kinds import Kind
from mpifs.core.limits import KIB, MIB, PART_BLOCK_BYTES, PART_HOT_COUNT, PART_READ_BYTES_MAX
from mpifs.core.types import Caller, ChunkKey, ChunkRef
from mpifs.data.parts import BlockTables
from mpifs.job.assembly import VfsOptions
from mpifs.transport.client import Client
from mpifs.vfs.cache import ChunkCache
from mpifs.vfs.facade import Vfs
from tests.threads import all_at_once
from tests.vfs.loopback import LoopbackVolume, harm

ME = Caller(0, 0)
CHUNK = 256 * KIB
COUNT = 12
BLOCK = PART_BLOCK_BYTES
DATA = random.Random(8).randbytes(COUNT * CHUNK + 200_001)


class Files:
    """A volume, one file in it, and what is asked of its stores."""

    def __init__(self, folder: Path, replicas: int = 1) -> None:
        self.volume = LoopbackVolume(folder, workers=2, chunk_size=CHUNK, replicas=replicas)
        self.bad: list[tuple[int, int]] = []
        self.vfs: Vfs = self.volume.open(VfsOptions(), self.found)
        self.fh = self.create(b"/file", DATA)
        self.asked: Counter[int] = Counter()
        self.cold()

    def found(self, key: ChunkKey, ref: ChunkRef, store: int) -> None:
        self.bad.append((key.chunk, store))

    def create(self, path: bytes, data: bytes) -> int:
        fh = self.vfs.create(path, 0o644, os.O_RDWR, ME)
        self.vfs.write(fh, memoryview(data), 0)
        self.vfs.fsync(fh)
        return fh

    @property
    def cache(self) -> ChunkCache:
        return self.vfs.reader.cache

    def cold(self) -> None:
        """No chunk is here, none is hot, and the handle stands at the end of the file; the tables
        of sums stay."""
        with self.cache._lock:
            for key in list(self.cache._entries):
                self.cache._evict(key)
        self.cache._heat._left = 0
        self.cache.part_reads = 0
        self.vfs._handles.file(self.fh).read_end = len(DATA)
        self.asked.clear()

    def read(self, offset: int, length: int, fh: int | None = None) -> bytes:
        into = bytearray(length)
        got = self.vfs.read(self.fh if fh is None else fh, memoryview(into), offset)
        return bytes(into[:got])

    def check(self, offset: int, length: int) -> None:
        assert self.read(offset, length) == DATA[offset : offset + length], (offset, length)

    def ref(self, chunk: int, path: bytes = b"/file") -> tuple[ChunkKey, ChunkRef]:
        inode = self.vfs._find(path)
        ref = self.volume.index.ref(inode, chunk)
        assert ref is not None
        return ChunkKey(inode.ino, chunk, ref.generation), ref

    def harm(self, chunk: int, at: int, *, copies: int = 1) -> None:
        """A byte of the payload of a chunk is another one, in its first stores."""
        harm(self.volume, b"/file", chunk, at, copies=copies)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Files] = []
    real = Client.start

    def start(client: Client, rank: int, kind: Kind, **words: Any) -> Any:
        if made:
            made[-1].asked[kind] += 1
        return real(client, rank, kind, **words)

    def build(**words: int) -> Files:
        files = Files(tmp_path / "volume", **words)
        made.append(files)
        return files

    monkeypatch.setattr(Client, "start", start)
    yield build
    faultpoint._wanted = ""
    for files in made:
        files.volume.close()


def test_right_bytes_at_every_edge(make: Any) -> None:
    files = make()
    chance = random.Random(3)
    whole = CHUNK * COUNT
    edges = [at + step for at in (0, BLOCK, CHUNK, 3 * CHUNK, whole) for step in (-1, 0, 1)]
    for length in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 16 * KIB, PART_READ_BYTES_MAX):
        for edge in edges:
            for offset in {max(0, edge), max(0, edge - length), len(DATA) - length}:
                files.check(offset, length)
    assert files.cache.part_reads
    for _ in range(300):
        files.check(chance.randrange(len(DATA)), chance.randrange(1, 3 * BLOCK))
    assert files.read(len(DATA) - 3, 100) == DATA[-3:]  # the end of the file, in its last block
    assert not files.bad


def test_only_parts_travel(make: Any) -> None:
    files = make()
    for chunk in (9, 2, 7, 2, 9, 4):
        files.check(chunk * CHUNK + 5 * BLOCK, 4096)
    assert files.asked == {Kind.GET_PART: 6}
    assert (files.cache.part_reads, files.cache.bytes_used) == (6, 0)


def test_sequential_readers_take_whole_chunks(make: Any) -> None:
    files = make()
    fh = files.vfs.open(b"/file", os.O_RDONLY)
    for offset in range(0, len(DATA), 4096):
        assert files.read(offset, 4096, fh) == DATA[offset : offset + 4096]
    assert files.cache.part_reads == 0
    assert files.asked[Kind.GET_PART] == 0
    files.cold()
    files.check(5 * CHUNK, 4096)  # one that begins anywhere is known at its second read
    for offset in range(5 * CHUNK + 4096, 7 * CHUNK, 4096):
        files.check(offset, 4096)
    assert files.asked[Kind.GET_PART] == 1
    files.cold()
    for offset in range(0, len(DATA) - 4096, 64 * KIB):  # with gaps
        files.check(offset, 4096)
    assert files.asked[Kind.GET_PART] <= 1


def test_streams_on_one_handle_get_their_chunks_whole(make: Any) -> None:
    files = make()
    for step in range(32):
        for chunk in (1, 4, 7, 10):
            files.check(chunk * CHUNK + step * 4096, 4096)
    assert files.asked[Kind.GET] == 4
    assert files.asked[Kind.GET_PART] == 4 * (PART_HOT_COUNT - 1)


def test_a_hot_chunk_comes_into_the_cache(make: Any) -> None:
    files = make()
    for number in range(40):
        files.check((3 if number % 2 else 8) * CHUNK + number % 15 * BLOCK, 100)
    assert files.asked[Kind.GET_PART] == 2 * (PART_HOT_COUNT - 1)
    assert files.asked[Kind.GET] == 2


def test_long_reads_and_small_chunks_come_whole(make: Any) -> None:
    files = make()
    files.check(4 * CHUNK, PART_READ_BYTES_MAX + 1)
    files.create(b"/small", DATA[:100_000])
    other = files.vfs.open(b"/small", os.O_RDONLY)
    files.cache.clear()
    files.vfs._handles.file(other).read_end = 10 * MIB
    assert files.read(50_000, 10, other) == DATA[50_000:50_010]
    assert files.asked[Kind.GET_PART] == 0


def test_threads_on_one_handle(make: Any) -> None:
    files = make()
    failed: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(80):
            offset, length = chance.randrange(len(DATA)), chance.randrange(1, 20_000)
            if files.read(offset, length) != DATA[offset : offset + length]:
                failed.append((offset, length))

    all_at_once(work, range(6))
    assert not failed
    assert files.cache.part_reads
    files.cache.clear()
    assert files.cache._parts.tables.bytes_used == 0


def test_holes_and_unwritten_bytes(make: Any) -> None:
    files = make()
    fh = files.vfs.create(b"/sparse", 0o644, os.O_RDWR, ME)
    files.vfs.write(fh, memoryview(DATA[:CHUNK]), 5 * CHUNK)
    files.vfs.write(fh, memoryview(b"end"), 20 * CHUNK)
    files.vfs.fsync(fh)
    files.cache.clear()
    assert files.read(12 * CHUNK + 9, 4096, fh) == bytes(4096)
    assert files.read(5 * CHUNK + 9, 4096, fh) == DATA[9:4105]
    assert files.read(6 * CHUNK - 5, 10, fh) == DATA[CHUNK - 5 : CHUNK] + bytes(5)
    assert files.read(20 * CHUNK + 2, 50, fh) == b"d"
    assert files.cache.part_reads
    files.vfs.write(fh, memoryview(b"new"), 5 * CHUNK + 9)
    assert files.read(5 * CHUNK + 8, 5, fh) == DATA[8:9] + b"new" + DATA[12:13]


def test_no_table_outlives_its_generation(make: Any) -> None:
    files = make()
    for round_ in range(4):
        new = bytes([round_]) * 5000
        files.vfs.write(files.fh, memoryview(new), 3 * CHUNK + 100)
        files.vfs.fsync(files.fh)
        files.cold()
        assert files.read(3 * CHUNK + 50, 6000) == (
            DATA[3 * CHUNK + 50 : 3 * CHUNK + 100] + new + DATA[3 * CHUNK + 5100 : 3 * CHUNK + 6050]
        )
        assert files.asked[Kind.GET_PART] == 1
    assert not files.bad


@pytest.mark.parametrize("is_known", [False, True])
def test_damage_in_the_store(make: Any, is_known: bool) -> None:
    """That of the blocks that are read shows; then all of the chunk is summed."""
    files = make()
    if is_known:
        files.check(6 * CHUNK, 4096)
    files.harm(6, 3 * BLOCK + 17)
    files.cold()
    with pytest.raises(DamageError) as caught:
        files.read(6 * CHUNK + 3 * BLOCK, 4096)
    assert caught.value.errno == errno.EIO
    assert files.bad == [(6, files.ref(6)[1].stores[0])]
    assert files.asked[Kind.GET_PART] == 2
    files.check(6 * CHUNK + 4 * BLOCK, 4096)
    files.check(5 * CHUNK + 3, 4096)
    files.harm(6, 3 * BLOCK + 17)  # as it was
    files.check(6 * CHUNK + 3 * BLOCK, 4096)


@pytest.mark.parametrize("is_known", [False, True])
def test_damage_with_a_good_replica(make: Any, is_known: bool) -> None:
    """Right bytes come, and every damaged copy that was asked for is told."""
    files = make(replicas=2)
    if is_known:
        for chunk in range(COUNT):
            files.check(chunk * CHUNK, 4096)
    for chunk in range(COUNT):
        files.harm(chunk, 4 * BLOCK + 1)
    files.cold()
    for chunk in (*range(0, COUNT, 2), *range(1, COUNT, 2)):  # neighbours would look sequential
        files.check(chunk * CHUNK + 4 * BLOCK, 4096)
    assert {chunk for chunk, _ in files.bad} == set(range(COUNT))
    assert all(store == files.ref(chunk)[1].stores[0] for chunk, store in files.bad)


@pytest.mark.parametrize("place", ["request.header", "reply.header", "reply.body"])
@pytest.mark.parametrize("length", [4096, 50_000])
def test_damage_on_the_way(
    make: Any, monkeypatch: pytest.MonkeyPatch, place: str, length: int
) -> None:
    files = make()
    for chunk in (7, 2, 7, 2, 10):
        monkeypatch.setattr(faultpoint, "_wanted", f"transport.{place}")
        monkeypatch.setattr(faultpoint, "_action", "flip")
        monkeypatch.setattr(faultpoint, "_times", 1)
        monkeypatch.setattr(faultpoint, "_count", 0)
        files.check(chunk * CHUNK + 8 * BLOCK, length)
        files.cold()
    assert not files.bad, "a store is not to blame for what the network did"


def test_a_worker_that_lies(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another block, a cut one, a short table, or nothing: the whole chunk is asked for."""
    files = make()
    real, how = Client.call, ""

    def lie(client: Client, rank: int, kind: Kind, **words: Any) -> Any:
        if kind == Kind.GET_PART and how == "dead":
            raise PeerDeadError(rank, "has died")
        reply = real(client, rank, kind, **words)
        if kind != Kind.GET_PART:
            return reply
        return reply._replace(
            **{
                "other": {"body": memoryview(bytes(len(reply.body)))},
                "cut": {"body": reply.body[:-1]},
                "table": {"args": reply.args[:-1]},
                "none": {"args": reply.args[:0]},
            }[how]
        )

    monkeypatch.setattr(Client, "call", lie)
    for number, wrong in enumerate(("other", "cut", "table", "none", "dead")):
        how = wrong
        files.check((2 + 2 * number) * CHUNK + 9, 4096)
        assert files.asked[Kind.GET] == number + 1
    assert files.cache.part_reads == 0
    assert not files.bad


def test_tables_are_bounded() -> None:
    tables = BlockTables(10_000)
    keys = [ChunkKey(1, chunk, 1) for chunk in range(100)]
    for key in keys:
        tables.put(key, bytes(700))
        assert tables.get(keys[0]) is not None  # it is used, so it stays
        assert tables.bytes_used <= 10_000
    assert [key for key in keys if tables.get(key)] == [keys[0], *keys[-9:]]
    for key in keys:
        tables.drop(key)
        tables.drop(key)
    assert tables.bytes_used == 0
    tables.put(keys[0], bytes(700))
    tables.put(keys[0], bytes(700))
    assert tables.bytes_used == 1000
