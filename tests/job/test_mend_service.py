"""What a reader finds damaged is mended from another replica, and nothing else is touched."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpifs.core.errors import MpifsError
from mpifs.core.image import encode_key
from mpifs.core.types import Caller, ChunkKey, ChunkRef
from mpifs.job.assembly import VfsOptions
from mpifs.job.fsck_service import ChecksTurn
from mpifs.job.mend_service import MendService
from mpifs.repair.mend_found import FoundDamage, mend_found
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume_live import LiveVolume
from mpifs.store.side import Side
from mpifs.vfs.facade import Vfs
from tests.store.damage import drop_row, put_row, read_row
from tests.vfs.loopback import LoopbackVolume

ME = Caller(0, 0)
CHUNK = 64 * 1024
DATA = random.Random(5).randbytes(6 * CHUNK)
FLAT = VfsOptions(cache_bytes_max=1)


class Rig:
    """A volume with a mender whose `tick` is called by hand."""

    def __init__(self, folder: Path, replicas: int) -> None:
        self.volume = LoopbackVolume(folder, workers=3, chunk_size=CHUNK, replicas=replicas)
        self.turn = ChecksTurn()
        self.mender = MendService(self.turn)
        self.vfs: Vfs = self.volume.open(FLAT, self.mender.note)
        self.mender._work = self
        self.left: list[FoundDamage] = []
        fh = self.vfs.create(b"/f", 0o644, os.O_RDWR, ME)
        self.vfs.write(fh, memoryview(DATA), 0)
        self.vfs.fsync(fh)
        self.fh = fh
        self.inode = self.vfs.index.lookup(1, b"f")

    def mend(self, found: object) -> list[FoundDamage]:
        index, vfs = self.volume.index, self.vfs
        view = LiveVolume(index, vfs.committer.settle)
        stores = StoreAccess(self.volume.client, int, {1, 2, 3}, index.geometry.checksum)
        self.left = mend_found(view, stores, found)  # type: ignore[arg-type]
        return self.left

    def ref(self, chunk: int) -> tuple[ChunkKey, ChunkRef]:
        ino = self.vfs.getattr(b"/f").ino
        ref = self.volume.index.ref_of(ino, chunk)
        assert ref is not None
        return ChunkKey(ino, chunk, ref.generation), ref

    def side(self, store: int) -> Side:
        opened = self.volume.services[store].store
        assert opened is not None
        return opened.sides[0]

    def image(self, store: int, key: ChunkKey) -> bytes | None:
        return read_row(self.side(store), "chunks", encode_key(key))

    def read(self, chunk: int) -> bytes:
        into = bytearray(CHUNK)
        self.vfs.reader.cache.forget(self.vfs.getattr(b"/f").ino)
        self.vfs.read(self.fh, memoryview(into), chunk * CHUNK)
        return bytes(into)

    def read_until_noted(self, chunk: int) -> None:
        """Which replica is asked first is drawn by chance."""
        deadline = time.monotonic() + 20
        while not self.mender._queue:
            assert self.read(chunk) == DATA[chunk * CHUNK : (chunk + 1) * CHUNK]
            assert time.monotonic() < deadline

    def close(self) -> None:
        self.vfs.release(self.fh)
        self.volume.close()


Open = Callable[[int], Rig]


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Open]:
    made: list[Rig] = []

    def make(replicas: int) -> Rig:
        made.append(Rig(tmp_path / f"v{len(made)}", replicas))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def damage(rig: Rig, kind: str, chunk: int) -> tuple[int, ChunkKey, bytes]:
    """Harms the image on one of its stores; that store, the key, the image as it was."""
    key, ref = rig.ref(chunk)
    store = ref.stores[chunk % len(ref.stores)]
    side, good = rig.side(store), rig.image(store, key)
    assert good is not None
    bad = bytearray(good)
    match kind:
        case "payload":
            bad[5000] ^= 1
        case "header":
            bad[20] ^= 1
    if kind == "missing":
        drop_row(side, "chunks", encode_key(key))
        drop_row(side, "headers", encode_key(key))
    else:
        put_row(side, "chunks", encode_key(key), bytes(bad))
    return store, key, good


@pytest.mark.parametrize("kind", ["payload", "header", "missing"])
def test_a_read_has_the_bad_replica_mended(rigs: Open, kind: str) -> None:
    rig = rigs(2)
    for chunk in range(4):
        store, key, good = damage(rig, kind, chunk)
        rig.read_until_noted(chunk)
        rig.mender.tick()
        assert rig.image(store, key) == good
        assert not rig.left
        assert not rig.mender._queue
    assert rig.read(3) == DATA[3 * CHUNK : 4 * CHUNK]
    assert not rig.mender._queue


def test_without_a_good_replica_it_is_an_error_and_a_header_is_still_mended(rigs: Open) -> None:
    rig = rigs(1)
    store, key, good = damage(rig, "payload", 1)
    bad = rig.image(store, key)
    with pytest.raises(MpifsError):
        rig.read(1)
    rig.mender.tick()
    assert rig.image(store, key) == bad
    assert [one.key for one in rig.left] == [key]
    with pytest.raises(MpifsError):
        rig.read(1)
    assert not rig.mender._queue, "not tried again and again"
    store, key, good = damage(rig, "header", 2)
    with pytest.raises(MpifsError):
        rig.read(2)
    rig.mender.tick()
    assert rig.image(store, key) == good
    assert rig.read(2) == DATA[2 * CHUNK : 3 * CHUNK]


def test_a_chunk_that_was_rewritten_is_left_alone(rigs: Open) -> None:
    rig = rigs(2)
    store, key, _ = damage(rig, "payload", 0)
    _, ref = rig.ref(0)
    rig.vfs.write(rig.fh, memoryview(b"n" * CHUNK), 0)
    rig.vfs.fsync(rig.fh)
    rig.mender.note(key, ref, store)
    rig.mender.tick()
    assert not rig.left
    new, new_ref = rig.ref(0)
    assert new.generation != key.generation
    assert all(rig.image(store, new) for store in new_ref.stores)
    image = rig.image(store, key)  # gone by now, or waiting to be reclaimed: never put anew.
    assert image is None or image[5000] != DATA[5000 - 64]


def test_a_silent_store_is_not_mended(rigs: Open) -> None:
    rig = rigs(2)
    dead = rig.volume.endpoints[1]
    dead.die()  # type: ignore[attr-defined]
    for chunk in range(6):
        assert rig.read(chunk) == DATA[chunk * CHUNK : (chunk + 1) * CHUNK]
    assert not rig.mender._queue
    dead._world.dead = frozenset()  # type: ignore[attr-defined]


def test_the_queue_is_bounded_and_waits_for_a_check(
    rigs: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpifs.job import mend_service

    monkeypatch.setattr(mend_service, "MEND_QUEUE_COUNT_MAX", 10)
    monkeypatch.setattr(mend_service, "MEND_TURN_S", 0.1)
    rig = rigs(2)
    _, ref = rig.ref(0)
    for number in range(100):
        rig.mender.note(ChunkKey(99, number, 1), ref, 1)
    assert len(rig.mender._queue) == 10
    with rig.turn.take(1.0):
        rig.mender.tick()
    assert len(rig.mender._queue) == 10
    rig.mender.tick()
    assert not rig.mender._queue
