"""Places of chunks in the data file: right bytes while a chunk is stored, never believed later."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.checksum import function_of
from mpifs.core.errors import StoreGoneError
from mpifs.core.image import encode_key
from mpifs.core.kinds import Kind
from mpifs.core.limits import KIB, MIB, PART_BLOCK_BYTES, SMALL_VALUE_BYTES_MAX
from mpifs.core.messages import GetPart, Serve, TableWish, encode_args
from mpifs.core.types import Caller, ChunkKey, ChunkRef
from mpifs.datafile import DATA_NAME
from mpifs.job.assembly import VfsOptions
from mpifs.store import part_places as part_places_module
from mpifs.store.chunks import Change, ChunkStore
from mpifs.store.part_places import PartPlaces
from tests.store.images import KIND, VOLUME, image, image_bytes, open_store
from tests.store.test_service import SERVE, Worker
from tests.vfs.loopback import LoopbackVolume

SUM = function_of(KIND)
ME = Caller(0, 0)
SIZE = 200_000
BLOCK = PART_BLOCK_BYTES
CHUNK = 256 * KIB


def key_of(number: int) -> ChunkKey:
    return ChunkKey(5, number, 1)


def payload_of(number: int, size: int = SIZE) -> bytes:
    return random.Random(number).randbytes(size)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    opened = open_store(str(tmp_path / "worker-3"))
    yield opened
    opened.close()


def put(store: ChunkStore, *numbers: int, size: int = SIZE) -> None:
    images = [image(key_of(number), payload_of(number, size)) for number in numbers]
    store.apply([Change(puts=images)])


def find(places: PartPlaces, number: int, payload: bytes) -> bool:
    return places.find(encode_key(key_of(number)), len(payload), SUM(payload))


def noted(places: PartPlaces, *numbers: int) -> PartPlaces:
    for number in numbers:
        find(places, number, payload_of(number))
    return places


def read(places: PartPlaces, number: int, begin: int = 0, end: int = SIZE) -> bytes | None:
    return places.read(encode_key(key_of(number)), begin, end)


def test_right_bytes(store: ChunkStore) -> None:
    put(store, *range(30))
    places = PartPlaces(store.folder)
    assert read(places, 7) is None
    noted(places, *range(30))
    for number in range(30):
        payload = payload_of(number)
        for begin, end in ((0, SIZE), (0, 1), (BLOCK, 3 * BLOCK), (SIZE - 1, SIZE)):
            assert read(places, number, begin, end) == payload[begin:end]
    assert read(places, 30) is None


def test_they_stay_while_others_come_and_go(store: ChunkStore) -> None:
    """Also while the file grows, and when a place is noted once more."""
    put(store, *range(10))
    places = noted(PartPlaces(store.folder), *range(10))
    for number in range(10, 200):
        put(store, number)
        if number % 2:
            store.delete_many([key_of(number)])
    store.delete_many([key_of(number) for number in range(5)])
    for number in range(5, 10):
        assert read(places, number) == payload_of(number)
        noted(places, number)
        assert read(places, number) == payload_of(number)


@pytest.mark.parametrize("size", [0, 1, 1500, SMALL_VALUE_BYTES_MAX])
def test_small_chunks_have_none(store: ChunkStore, size: int) -> None:
    put(store, 1, size=size)
    put(store, 2)
    places = PartPlaces(store.folder)
    assert not find(places, 1, payload_of(1, size))
    assert places.read(encode_key(key_of(1)), 0, size) is None
    assert not places._places


def test_only_what_begins_as_expected_is_noted(store: ChunkStore) -> None:
    put(store, 1)
    places = PartPlaces(store.folder)
    assert not find(places, 1, payload_of(2))
    assert not find(places, 1, payload_of(1)[1:])
    assert not find(places, 2, payload_of(2))
    assert not places.find(b"", SIZE, SUM(payload_of(1)))
    assert not places._places
    noted(places, 1)
    assert read(places, 1) == payload_of(1)


def test_a_chunk_that_is_stored_again_is_found_again(store: ChunkStore) -> None:
    """What is read from the old place may be anything."""
    put(store, *range(4))
    places = noted(PartPlaces(store.folder), *range(4))
    store.delete_many([key_of(number) for number in range(4)])
    put(store, *range(10, 20))
    put(store, *range(20, 30))
    put(store, *reversed(range(4)))
    others = [read(places, number) for number in range(4)]
    assert any(found != payload_of(number) for number, found in enumerate(others))
    noted(places, *range(4))
    for number in range(4):
        assert read(places, number) == payload_of(number)


def test_they_are_bounded(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones go first."""
    monkeypatch.setattr(part_places_module, "PART_PLACES_MAX", 4)
    put(store, *range(10))
    places = PartPlaces(store.folder)
    for number in range(10):
        noted(places, number)
        assert len(places._places) <= 4
        assert read(places, number) == payload_of(number)
    assert [number for number in range(10) if read(places, number) is not None] == [6, 7, 8, 9]


def test_a_missing_file(store: ChunkStore, tmp_path: Path) -> None:
    places = noted(PartPlaces(str(tmp_path / "nothing")), 1)
    assert read(places, 1) is None
    put(store, 1)
    places = PartPlaces(store.folder)
    os.rename(os.path.join(store.folder, "large"), tmp_path / "aside")
    assert read(noted(places, 1), 1) is None
    os.rename(tmp_path / "aside", os.path.join(store.folder, "large"))
    assert read(noted(places, 1), 1) == payload_of(1)


def test_a_cut_file_is_forgotten(store: ChunkStore, tmp_path: Path) -> None:
    put(store, *range(3))
    folder = tmp_path / "copy"
    shutil.copytree(store.folder, folder)
    places = noted(PartPlaces(str(folder)), *range(3))
    assert read(places, 2) == payload_of(2)
    os.truncate(folder / "large" / DATA_NAME, 3 * KIB)
    for number in range(3):
        assert read(places, number) is None
    assert not places._places
    assert read(noted(places, 1), 1) is None


class Ask:
    """GET_PART of the first blocks of a chunk, without a table."""

    def __init__(self, worker: Worker, patch: pytest.MonkeyPatch) -> None:
        self._worker = worker
        self.found: list[bytes | None] = []
        real = PartPlaces.read

        def read(places: PartPlaces, key: bytes, begin: int, end: int) -> bytes | None:
            self.found.append(real(places, key, begin, end))
            return self.found[-1]

        patch.setattr(PartPlaces, "read", read)

    def of(self, payload: bytes) -> bytes:
        asked = GetPart(encode_key(key_of(1)), len(payload), SUM(payload), 0, 2, TableWish.NONE)
        return bytes(self._worker.call(Kind.GET_PART, encode_args(asked)).body)


@pytest.mark.parametrize("number", [3, 4])
def test_another_store_has_other_places(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """In place of one that is gone, in the same folder or another one."""
    worker.call(Kind.SERVE, encode_args(SERVE))
    worker.put(image_bytes(key_of(1), payload_of(1)))
    ask = Ask(worker, monkeypatch)
    for _ in range(3):
        assert ask.of(payload_of(1)) == payload_of(1)[: 2 * BLOCK]
    assert [found is not None for found in ask.found] == [False, True, True]
    shutil.rmtree(tmp_path / "worker-3")
    with pytest.raises(StoreGoneError):
        worker.call(Kind.PING)
    other = Serve(number, VOLUME, b"t" * 16, MIB, KIND, True)
    worker.call(Kind.SERVE, encode_args(other))
    worker.put(image_bytes(key_of(1), payload_of(2)))
    for _ in range(3):
        assert ask.of(payload_of(2)) == payload_of(2)[: 2 * BLOCK]


class Reused:
    """A volume with one file, of which parts are read from their places."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self.bad: list[int] = []
        self.volume = LoopbackVolume(folder, workers=2, chunk_size=CHUNK)
        self.vfs = self.volume.open(
            VfsOptions(commit_interval_s=0.02, cache_bytes_max=MIB),
            self._hear,
        )
        self.fh = self.vfs.create(b"/file", 0o644, os.O_RDWR, ME)

    def _hear(self, key: ChunkKey, ref: ChunkRef, store: int) -> None:
        """Damage: of a chunk that has been overwritten since its ref was read it may be said."""
        if self.volume.index.ref(self.vfs._find(b"/file"), key.chunk) == ref:
            self.bad.append(key.chunk)

    def write(self, chunk: int, data: bytes) -> None:
        self.vfs.write(self.fh, memoryview(data), chunk * CHUNK)

    def ref(self, chunk: int) -> tuple[ChunkKey, ChunkRef]:
        inode = self.vfs._find(b"/file")
        ref = self.volume.index.ref(inode, chunk)
        assert ref is not None
        return ChunkKey(inode.ino, chunk, ref.generation), ref

    def clean(self) -> None:
        """What has been overwritten is gone from the stores."""
        self.vfs.sync()
        while self.vfs.committer.clean_up():
            self.vfs.sync()

    def part(self, key: ChunkKey, ref: ChunkRef, start: int) -> bytes | None:
        into = bytearray(BLOCK)
        is_there = self.vfs.reader.cache._parts.read(key, ref, start, memoryview(into))
        return bytes(into) if is_there else None


@pytest.fixture
def reused(tmp_path: Path) -> Iterator[Reused]:
    made = Reused(tmp_path / "volume", 12)
    yield made
    made.volume.close()


def test_reused_pages_never_reach_a_reader(reused: Reused, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that still has the ref and the table of a chunk that was overwritten since."""
    real, found = PartPlaces.read, []

    def read(places: PartPlaces, key: bytes, begin: int, end: int) -> bytes | None:
        found.append(real(places, key, begin, end))
        return found[-1]

    monkeypatch.setattr(PartPlaces, "read", read)
    count, wrong = reused.count, 0
    old = [payload_of(chunk, CHUNK) for chunk in range(count)]
    for chunk in range(count):
        reused.write(chunk, old[chunk])
    reused.vfs.sync()
    for turn in range(1, 25):
        refs = [reused.ref(chunk) for chunk in range(count)]
        for chunk, (key, ref) in enumerate(refs):
            for start in (0, 5 * BLOCK, CHUNK - BLOCK):
                assert reused.part(key, ref, start) == old[chunk][start : start + BLOCK]
            assert found[-1] is not None
        new = [payload_of(100 * turn + chunk, CHUNK) for chunk in range(count)]
        for chunk in range(count):
            reused.write(chunk, new[chunk])
        reused.clean()
        for chunk in range(count):  # into the pages that are free now, by many small transactions
            reused.write(count + chunk, new[chunk][::-1])
            reused.vfs.sync()
        reused.clean()
        for chunk, (key, ref) in enumerate(refs):
            part = reused.part(key, ref, 5 * BLOCK)
            assert part in (None, old[chunk][5 * BLOCK : 6 * BLOCK])
            wrong += part is None and found[-1] is not None
            assert reused.part(*reused.ref(chunk), 7) == new[chunk][7 : 7 + BLOCK]
        old = new
        if wrong and turn >= 3:
            break
    assert wrong, "no page was used again: nothing was tested"
    assert not reused.bad
    for chunk in range(count):
        into = bytearray(CHUNK)
        assert reused.vfs.read(reused.fh, memoryview(into), chunk * CHUNK) == CHUNK
        assert into == old[chunk]


def test_readers_of_a_file_that_is_overwritten_again_and_again(reused: Reused) -> None:
    """Each read shows one whole state of a chunk, and none older than when it began."""
    count = reused.count
    state = [1] * count
    for chunk in range(count):
        reused.write(chunk, bytes([1]) * CHUNK)
    reused.clean()
    is_over = threading.Event()
    failed: list[object] = []
    parts = [0]

    def work(seed: int) -> None:
        chance = random.Random(seed)
        fh = reused.vfs.open(b"/file", os.O_RDONLY)
        while not is_over.is_set():
            chunk = chance.randrange(count)
            least = state[chunk]
            into = bytearray(BLOCK)
            offset = chunk * CHUNK + chance.randrange(CHUNK - BLOCK)
            try:
                reused.vfs.read(fh, memoryview(into), offset)
            except OSError as error:
                failed.append(error)
            if set(into) != {into[0]} or into[0] < least:
                failed.append((chunk, least, set(into)))
        reused.vfs.release(fh)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    deadline, number = time.monotonic() + 2.0, 1
    while time.monotonic() < deadline and number < 250:
        number += 1
        for chunk in range(number % 2, count, 2):
            reused.write(chunk, bytes([number]) * CHUNK)
            state[chunk] = number
        reused.clean()
        parts[0] = reused.vfs.reader.cache.part_reads
    is_over.set()
    for thread in threads:
        thread.join(30)
    assert not failed
    assert parts[0] > 50
    assert not reused.bad
