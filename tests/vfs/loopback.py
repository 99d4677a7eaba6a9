"""A whole volume in one process: index, vfs and stores joined by the loopback transport.

For logic tests only; what claims to show that the product works mounts it.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from mpifs.core.buffers import BufferPool
from mpifs.core.image import IMAGE_HEADER_BYTES, encode_key, home_name
from mpifs.core.kinds import Kind
from mpifs.core.messages import Serve, StoreStats, decode_args, encode_args
from mpifs.core.superblock import Role, Superblock
from mpifs.core.types import ChecksumKind, ChunkKey, ChunkRef, StoreEntry, StoreId, StoreState
from mpifs.data.local_stores import LocalStores
from mpifs.datafile import DATA_NAME
from mpifs.index.index import Index
from mpifs.job.assembly import VfsOptions, build_vfs
from mpifs.store.folder import data_path
from mpifs.store.service import StoreService
from mpifs.store.stage import Staging
from mpifs.transport.client import Client
from mpifs.transport.loopback import make_world
from mpifs.transport.server import Server
from mpifs.valuepages import place_of
from mpifs.vfs.facade import Vfs
from tests.store.damage import flip, put_row, read_row, side_named


class FixedStores:
    """Stores 1 to `count` on the ranks of their numbers, for ever; `dead` may be set by a test."""

    def __init__(self, count: int, free: dict[int, int], disk_of: dict[int, str]) -> None:
        self.free = free
        self.disk_of = disk_of
        self.dead: set[int] = set()
        self._all = list(range(1, count + 1))

    def rank_of(self, store: int) -> int:
        return store

    def is_serving(self, store: int) -> bool:
        return store not in self.dead

    def live_stores(self) -> list[int]:
        return [store for store in self._all if store not in self.dead]

    def placement_stores(self) -> list[int]:
        return self.live_stores() or self._all

    def expected_count(self) -> int:
        return len(self._all) - len(self.dead)

    def may_return(self, stores: Iterable[int]) -> bool:
        return not self.dead.issuperset(stores)

    def await_serving(self, stores: Iterable[int], deadline: float) -> bool:
        return False


class LoopbackVolume:
    """`open` gives a Vfs, `close` shuts everything down cleanly; may be opened again."""

    local: LocalStores | None = None
    """Set before `open`: chunks are read past the workers."""

    def __init__(
        self,
        folder: Path,
        workers: int = 4,
        chunk_size: int = 64 * 1024,
        replicas: int = 1,
        checksum: ChecksumKind = ChecksumKind.XXH3_128,
    ) -> None:
        self.folder = folder
        self.workers = workers
        folder.mkdir(parents=True, exist_ok=True)
        volume = uuid.uuid4().bytes
        block = Superblock(Role.INDEX, volume, volume, 0, chunk_size, replicas, checksum, 0)
        stores = [
            StoreEntry(StoreId(n), uuid.uuid4().bytes, StoreState.FRESH)
            for n in range(1, workers + 1)
        ]
        Index.make(os.fspath(folder / "index"), block, stores)
        self.vfs: Vfs | None = None

    def read_past_workers(self) -> LocalStores:
        """From the next `open` on."""
        folder = os.fspath(self.folder)
        self.local = LocalStores(lambda store, side: data_path(folder, store, side))
        return self.local

    def open(
        self,
        options: VfsOptions | None = None,
        on_damage: Callable[[ChunkKey, ChunkRef, int], None] = lambda key, ref, store: None,
    ) -> Vfs:
        self.index = Index.open(os.fspath(self.folder / "index"))
        self.endpoints = make_world(self.workers + 1)
        self.services: dict[int, StoreService] = {}
        self.threads = [
            threading.Thread(target=self._work, args=(rank,), daemon=True)
            for rank in range(1, self.workers + 1)
        ]
        for thread in self.threads:
            thread.start()
        self.client = Client(self.endpoints[0])
        geometry = self.index.geometry
        free, disks = {}, {}
        for entry in self.index.stores():
            serve = Serve(
                entry.store,
                geometry.volume_uuid,
                entry.uuid,
                geometry.chunk_size,
                geometry.checksum,
                entry.state is StoreState.FRESH,
            )
            reply = self.client.call(entry.store, Kind.SERVE, args=encode_args(serve))
            stats = decode_args(bytes(reply.args), StoreStats)
            free[entry.store], disks[entry.store] = stats.free, stats.disk
        self.index.set_stores(
            [StoreEntry(e.store, e.uuid, StoreState.ACTIVE) for e in self.index.stores()]
        )
        self.vfs = build_vfs(
            self.index,
            self.endpoints[0],
            self.client,
            FixedStores(self.workers, free, disks),
            options or VfsOptions(),
            on_damage,
            self.local,
        )
        return self.vfs

    def _work(self, rank: int) -> None:
        endpoint = self.endpoints[rank]
        service = self.services[rank] = StoreService(
            os.fspath(self.folder), "loopback", peers=Client(endpoint)
        )
        service.others.update(Staging(service.being_written, service.loss).handlers)
        pool = BufferPool(0, 8 << 20)
        Server(endpoint, service.handle, pool.take, pool.give).run(
            service.should_stop, service.idle
        )

    def crash(self) -> None:
        """Ends as if every rank had been killed: nothing dirty is flushed or committed."""
        assert self.vfs is not None
        committer = self.vfs.committer
        committer._quit.set()
        committer._wake.set()
        committer._thread.join(60)  # a commit under way waits for the disk
        assert not committer._thread.is_alive()
        with self.index.lock:  # so that nobody is reading just now: its map would stay open
            self.index.abandon()
        self._end()

    def close(self) -> None:
        """Flushes, commits, and ends everything."""
        assert self.vfs is not None
        self.vfs.close()
        self.index.close()
        self._end()

    def _end(self) -> None:
        for rank in range(1, self.workers + 1):
            self.client.call(rank, Kind.STOP)
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        for endpoint in self.endpoints:
            endpoint.close()
        self.vfs = None


def harm(volume: LoopbackVolume, path: bytes, chunk: int, at: int, *, copies: int = 1) -> None:
    """A byte of the payload of a stored chunk is another one, in its first stores; a second time:
    as it was."""
    assert volume.vfs is not None
    inode = volume.vfs._find(path)
    ref = volume.index.ref(inode, chunk)
    assert ref is not None
    key = encode_key(ChunkKey(inode.ino, chunk, ref.generation))
    for number in ref.stores[:copies]:
        store = volume.services[number].store
        assert store is not None
        side = side_named(store, home_name(inode.ino, ref.length))
        value = read_row(side, "chunks", key)
        assert value is not None
        harmed = flip(value, IMAGE_HEADER_BYTES + at)
        file = os.open(os.path.join(side.environment.path, DATA_NAME), os.O_RDWR)
        try:  # where it lies, if it has pages of its own
            place = place_of(file, "chunks", key)
            if place is None:
                put_row(side, "chunks", key, harmed)
            else:
                assert os.pread(file, len(value), place) == value
                os.pwrite(file, harmed, place)
        finally:
            os.close(file)


def content(vfs: Vfs, path: bytes = b"/file") -> bytes:
    """All bytes of a file."""
    fh = vfs.open(path, os.O_RDONLY)
    into = bytearray(vfs.getattr(path).size)
    assert vfs.read(fh, memoryview(into), 0) == len(into)
    vfs.release(fh)
    return bytes(into)


def make_vfs(tmp_path: Path, **options: int) -> Vfs:
    """A Vfs on a fresh loopback volume."""
    return LoopbackVolume(tmp_path / "volume", **options).open()
