"""Chunks of stores on this host are read past their workers: the same bytes, and no other ones."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpifs.core import block_table
from mpifs.core.block_table import table_bytes
from mpifs.core.checksum import block_sums, function_of
from mpifs.core.errors import DamageError
from mpifs.core.image import IMAGE_HEADER_BYTES, encode_key
from mpifs.core.kinds import Kind
from mpifs.core.limits import KIB, PART_BLOCK_BYTES
from mpifs.core.types import Caller, ChecksumKind, ChunkKey, ChunkRef
from mpifs.data import local_stores
from mpifs.data.local_stores import LocalStores
from mpifs.job.assembly import VfsOptions
from mpifs.store.folder import data_path
from mpifs.transport.client import Client
from mpifs.valuepages import place_of
from tests.threads import all_at_once
from tests.vfs.loopback import LoopbackVolume, harm

ME = Caller(0, 0)
CHUNK = 256 * KIB
COUNT = 12
SIZE = COUNT * CHUNK + 100_001
DATA = random.Random(11).randbytes(SIZE)
READS = (Kind.GET, Kind.GET_PART, Kind.GET_MANY)


@functools.cache
def content(number: int) -> bytes:
    """The file's content after so many rewrites."""
    return random.Random(1000 + number).randbytes(SIZE) if number else DATA


class Files:
    """A volume, one file in it, and how often its workers are asked for chunks."""

    def __init__(self, folder: Path, replicas: int, checksum: ChecksumKind) -> None:
        self.volume = LoopbackVolume(folder, 2, CHUNK, replicas, checksum)
        self.local = self.volume.read_past_workers()
        self.bad: list[tuple[int, int]] = []
        self.asked: Counter[int] = Counter()
        self.open()
        self.write(b"/file", DATA)
        self.cold()

    def open(self) -> None:
        self.vfs = self.volume.open(
            VfsOptions(), lambda key, ref, store: self.bad.append((key.chunk, store))
        )

    def write(self, path: bytes, data: bytes, offset: int = 0) -> None:
        fh = self.vfs.create(path, 0o644, os.O_RDWR, ME)
        self.vfs.write(fh, memoryview(data), offset)
        self.vfs.fsync(fh)
        self.vfs.release(fh)

    def cold(self) -> None:
        self.vfs.drop_caches()
        self.asked.clear()

    def assert_past_workers(self, reads: int) -> None:
        """Now and then the kernel has just taken a page away, for which nobody waits."""
        assert self.asked.total() <= 2 + reads // 3, self.asked

    def read(self, offset: int, length: int, path: bytes = b"/file") -> bytes:
        """By a handle of its own; of a short one somewhere only the blocks are fetched."""
        fh = self.vfs.open(path, os.O_RDONLY)
        self.vfs._handles.file(fh).read_end = offset + 10 * CHUNK
        into = bytearray(length)
        count = self.vfs.read(fh, memoryview(into), offset)
        self.vfs.release(fh)
        return bytes(into[:count])

    def change(self, data: bytes, offset: int, path: bytes = b"/file") -> None:
        fh = self.vfs.open(path, os.O_RDWR)
        self.vfs.write(fh, memoryview(data), offset)
        self.vfs.fsync(fh)
        self.vfs.release(fh)

    def check_as(self, offset: int, length: int, number: int) -> None:
        assert self.read(offset, length) == content(number)[offset : offset + length]

    def check(self, offset: int, length: int) -> None:
        assert self.read(offset, length) == DATA[offset : offset + length], (offset, length)

    def ref(self, chunk: int) -> tuple[ChunkKey, ChunkRef]:
        inode = self.vfs._find(b"/file")
        ref = self.volume.index.ref(inode, chunk)
        assert ref is not None
        return ChunkKey(inode.ino, chunk, ref.generation), ref


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Files] = []
    real = Client.start

    def start(client: Client, rank: int, kind: Kind, **words: Any) -> Any:
        if made and kind in READS:
            made[0].asked[kind] += 1
        return real(client, rank, kind, **words)

    def build(replicas: int = 1, checksum: ChecksumKind = ChecksumKind.XXH3_128) -> Files:
        made.append(Files(tmp_path / "volume", replicas, checksum))
        return made[-1]

    monkeypatch.setattr(Client, "start", start)
    yield build
    for files in made:
        files.volume.close()


def test_no_worker_is_asked(make: Any) -> None:
    files = make()
    files.check(0, len(DATA))
    files.assert_past_workers(COUNT)
    files.cold()
    chance = random.Random(5)
    for _ in range(200):
        offset = chance.randrange(len(DATA))
        files.check(offset, chance.randrange(1, 20_000))
    files.assert_past_workers(200)
    assert files.vfs.reader.cache.part_reads
    assert files.local.bytes_read > len(DATA)


@pytest.mark.parametrize("size", [1, 1000, 2100, 4096, 30_000])
def test_small_files(make: Any, size: int) -> None:
    """Those that stand in LMDB's leaves move with each commit: they are found again."""
    files = make()
    contents = {b"/small%03d" % n: random.Random(n).randbytes(size) for n in range(150)}
    for name, data in contents.items():
        files.write(name, data)
    for _ in range(2):
        files.cold()
        for name, data in contents.items():
            assert files.read(0, size + 1, name) == data
        files.assert_past_workers(len(contents))
        contents[b"/small007"] = contents[b"/small007"][::-1]
        files.change(contents[b"/small007"], 0, b"/small007")
        while files.vfs.committer.clean_up():
            files.vfs.sync()
    assert not files.bad


def test_a_first_read_takes_a_block_and_the_table(make: Any) -> None:
    """Also one that asks the worker."""
    files = make()
    files.check(0, len(DATA))  # its pages are in memory, its places are known
    files.cold()
    before = files.local.bytes_read
    for chunk in range(COUNT):
        files.check(chunk * CHUNK + 5 * PART_BLOCK_BYTES + 7, 4096)
    files.assert_past_workers(COUNT)
    assert 0 < files.local.bytes_read - before <= COUNT * (PART_BLOCK_BYTES + table_bytes(CHUNK))
    files.local._path_of = lambda store, side: None
    for store in (1, 2):
        files.local.close(store)
    files.cold()
    for chunk in range(COUNT):
        files.check(chunk * CHUNK + 5 * PART_BLOCK_BYTES + 7, 4096)
    assert files.asked == {Kind.GET_PART: COUNT}


def test_no_chunk_is_asked_for_that_is_not_in_memory(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would begin to read all of it, for one block."""
    files = make()
    sizes: list[int] = []

    def read(file: object, key: bytes, begin: int, into: bytearray) -> bool:
        sizes.append(len(into))
        return False

    monkeypatch.setattr(local_stores._DataFile, "read", read)
    for chunk in range(COUNT):
        files.check(chunk * CHUNK + 5 * PART_BLOCK_BYTES + 7, 4096)
    assert files.asked == {Kind.GET_PART: COUNT}
    assert max(sizes) <= PART_BLOCK_BYTES


@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize("at", [0, 17, -1])
def test_a_wrong_table_is_no_damage(make: Any, at: int, is_local: bool) -> None:
    """Whoever meets it sums the chunk: right bytes, and nobody hears of anything."""
    files = make()
    if not is_local:
        files.local._path_of = lambda store, side: None
    for chunk in range(COUNT):
        harm(files.volume, b"/file", chunk, CHUNK + at % table_bytes(CHUNK))
    for _ in range(2):
        for chunk in range(COUNT):
            files.check(chunk * CHUNK + 5 * PART_BLOCK_BYTES + 7, 4096)
    assert files.vfs.reader.cache.part_reads
    assert not files.bad
    files.cold()
    files.check(0, len(DATA))


@pytest.mark.parametrize("is_local", [True, False])
def test_a_forged_table_is_not_believed_where_checksums_are_to_find_intent(
    make: Any, is_local: bool
) -> None:
    """Who can write to a store changes a block, and makes table and guard anew."""
    files = make(checksum=ChecksumKind.BLAKE3)
    files.check(5 * PART_BLOCK_BYTES + 7, 4096)
    if not is_local:
        files.local._path_of = lambda store, side: None
        for store in (1, 2):
            files.local.close(store)
    key, ref = files.ref(0)
    payload = bytearray(DATA[:CHUNK])
    payload[5 * PART_BLOCK_BYTES + 17] ^= 1
    sums = block_sums(memoryview(payload), PART_BLOCK_BYTES, function_of(ChecksumKind.BLAKE3))
    guard = block_table._guard(encode_key(key), ref.length, ref.checksum, sums)
    with open(data_path(str(files.volume.folder), ref.stores[0], "large"), "r+b") as file:
        place = place_of(file.fileno(), "chunks", encode_key(key))
        assert place is not None
        os.pwrite(file.fileno(), payload + guard + sums, place + IMAGE_HEADER_BYTES)
    files.cold()
    with pytest.raises(DamageError):
        files.read(5 * PART_BLOCK_BYTES + 7, 4096)
    files.check(CHUNK + 5 * PART_BLOCK_BYTES + 7, 4096)


def test_rewritten_chunks(make: Any) -> None:
    files = make()
    expected = bytearray(DATA)
    chance = random.Random(9)
    for number in range(20):
        assert files.read(0, len(DATA)) == expected
        offset, size = chance.randrange(len(DATA) - CHUNK), chance.randrange(1, CHUNK)
        expected[offset : offset + size] = new = chance.randbytes(size)
        files.change(new, offset)
        files.vfs.committer.clean_up()
        if number % 7 == 0:
            files.vfs.drop_caches()
    assert files.local.bytes_read > 5 * len(DATA)
    assert not files.bad


def test_reused_pages_never_reach_a_reader(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that still has the ref of a chunk that was overwritten since, and whose place holds
    another one by now."""
    files = make()
    forgotten: list[bytes] = []
    real = local_stores._DataFile.forget

    def forget(file: local_stores._DataFile, key: bytes) -> None:
        forgotten.append(key)
        real(file, key)

    monkeypatch.setattr(local_stores._DataFile, "forget", forget)
    cache = files.vfs.reader.cache
    for turn in range(25):
        old = [files.ref(chunk) for chunk in range(COUNT)]
        files.check_as(0, len(DATA), turn)
        for chunk in range(COUNT):
            files.read(chunk * CHUNK + 5, 100)  # has the table
        for chunk in range(COUNT):
            files.change(content(turn + 1)[chunk * CHUNK :][:CHUNK], chunk * CHUNK)
        files.change(content(turn + 1)[COUNT * CHUNK :], COUNT * CHUNK)
        while files.vfs.committer.clean_up():
            files.vfs.sync()
        files.write(b"/other%d" % turn, content(100 + turn))  # into the pages that are free now
        files.vfs.drop_caches()
        for chunk, (key, ref) in enumerate(old):
            expected = content(turn)[chunk * CHUNK :][:CHUNK]
            part = bytearray(4096)
            if cache._parts.read(key, ref, 4096, memoryview(part)):
                assert part == expected[4096:8192]
            with contextlib.suppress(DamageError):
                assert cache._fetch(key, ref, bytearray(64 + CHUNK)) == expected
        if forgotten and turn >= 2:
            break
    assert forgotten, "no page was used again: nothing was tested"


@pytest.mark.parametrize("length", [4096, CHUNK])
@pytest.mark.parametrize("is_known", [False, True])
def test_damage_is_found(make: Any, length: int, is_known: bool) -> None:
    """As the worker would: one that is told of is the store's, and comes from its answer."""
    files = make()
    if is_known:
        files.check(6 * CHUNK, length)
        files.vfs.reader.cache.forget(files.ref(6)[0].inode)
    harm(files.volume, b"/file", 6, 17)
    with pytest.raises(DamageError):
        files.read(6 * CHUNK, length)
    assert files.asked
    assert set(files.bad) == {(6, files.ref(6)[1].stores[0])}
    files.check(7 * CHUNK, length)
    harm(files.volume, b"/file", 6, 17)  # as it was
    files.check(6 * CHUNK, length)


@pytest.mark.parametrize("length", [4096, CHUNK])
def test_a_good_replica_is_read(make: Any, length: int) -> None:
    files = make(replicas=2)
    for chunk in range(COUNT):
        harm(files.volume, b"/file", chunk, 99)
    for _ in range(30):  # which copy is read first is drawn by chance, or by turns
        for chunk in range(COUNT):
            files.check(chunk * CHUNK, length)
            files.vfs.reader.cache.forget(files.ref(chunk)[0].inode)
    assert {chunk for chunk, _ in files.bad} == set(range(COUNT))
    assert all(store == files.ref(chunk)[1].stores[0] for chunk, store in files.bad)


def test_a_wrong_place_is_looked_up_anew(make: Any) -> None:
    files = make()
    files.check(0, len(DATA))
    for file in files.local._files.values():
        assert file.places
        for key in file.places:
            file.places[key] += 4096
    files.cold()
    files.check(0, len(DATA))
    files.assert_past_workers(COUNT)
    assert not files.bad


def test_another_file_in_its_place(make: Any) -> None:
    """What a rebuild or a replacement puts there is found; the old file is let go."""
    files = make()
    files.check(0, len(DATA))
    for store in (1, 2):
        path = local_path(files, store)
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        old = path.rename(path.with_name("old"))
        copy.rename(path)
        assert old.stat().st_ino != path.stat().st_ino
        files.local._files[store, "large"].places.clear()
    files.cold()
    files.check(0, len(DATA))
    for store in (1, 2):
        path = local_path(files, store)
        file = files.local._files[store, "large"]._file
        assert os.fstat(file.fileno()).st_ino == path.stat().st_ino
        path.with_name("old").rename(path)
    assert not files.bad


def local_path(files: Files, store: int) -> Path:
    path = files.local._path_of(store, "large")
    assert path is not None
    return Path(path)


def test_threads(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make()
    monkeypatch.setattr(local_stores, "LOCAL_PLACES_MAX", 6)
    failed: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            offset, length = chance.randrange(len(DATA)), chance.choice((100, 5000, CHUNK))
            if files.read(offset, length) != DATA[offset : offset + length]:
                failed.append((offset, length))
            if chance.random() < 0.1:
                files.local.close(chance.randrange(1, 3))
            if chance.random() < 0.1:
                files.vfs.drop_caches()
            if chance.random() < 0.3:
                key, ref = files.ref(chance.randrange(COUNT))
                file = files.local._files.get((ref.stores[0], "large"))
                if file is not None:
                    file.forget(encode_key(key))

    all_at_once(work, range(6))
    assert not failed
    files.vfs.drop_caches()  # whatever was closed or forgotten last is looked up again
    assert files.read(0, len(DATA)) == DATA
    assert 0 < sum(len(file.places) for file in files.local._files.values()) <= 6
    assert not files.bad


def test_what_is_no_data_file(tmp_path: Path) -> None:
    """A hostile or damaged file: nothing is found, nothing is raised."""
    chance = random.Random(1)
    path = tmp_path / "data.mdb"
    key, ref = ChunkKey(1, 2, 3), ChunkRef(3, 100_000, bytes(16), (1,))
    into = bytearray(100)
    local = LocalStores(lambda store, side: os.fspath(path))
    assert not local.read(1, key, ref, 0, into, lambda: True)
    for content in (b"", b"x", bytes(8192), chance.randbytes(1 << 20)):
        path.write_bytes(content)
        local.close(1)
        assert not local.read(1, key, ref, 0, into, lambda: True)
    assert local.bytes_read == 0
    assert not LocalStores(lambda store, side: None).read(1, key, ref, 0, into, lambda: True)


def test_no_disk_is_waited_for(tmp_path: Path) -> None:
    """What the kernel has not in memory is not read."""
    path = tmp_path / "data.mdb"
    path.write_bytes(random.Random(2).randbytes(4 << 20))
    file = local_stores._DataFile(os.fspath(path), threading.Lock(), lambda: None)
    key, into = bytes(24), bytearray(1 << 20)
    file.places[key] = 2 << 20
    assert file.read(key, 0, into)
    with open(path, "rb") as other:
        os.fsync(other.fileno())
        os.posix_fadvise(other.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert not file.read(key, 0, into)
    assert file.read(key, 3 << 20, bytearray(4096)) is False, "behind the end of the file"
