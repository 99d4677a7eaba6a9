"""A real index and real stores, served by loopback ranks, for tests of the index's copies."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from mpifs.core import records
from mpifs.core.buffers import BufferPool
from mpifs.core.image import encode_key
from mpifs.core.kinds import Kind
from mpifs.core.messages import Serve, encode_args
from mpifs.core.superblock import Role, Superblock
from mpifs.core.types import ChecksumKind, ChunkKey, ChunkRef, StoreEntry, StoreId, StoreState
from mpifs.index.index import Index
from mpifs.kv import Environment
from mpifs.repair.copies import CopyStores, IndexCopy, find_copies
from mpifs.store.service import StoreService
from mpifs.transport.client import Client
from mpifs.transport.loopback import make_loopbacks
from mpifs.transport.server import Server

VOLUME = bytes(range(16))
KIND = ChecksumKind.XXH3_128


class CopyWorld:
    """`serve` opens the stores, `close` shuts them down; `live` may be changed by a test."""

    def __init__(
        self, folder: Path, workers: int = 3, chunk_size: int = 64 * 1024, make: bool = True
    ) -> None:
        self.folder = folder
        self.chunk_size = chunk_size
        folder.mkdir(parents=True, exist_ok=True)
        self.index_folder = os.fspath(folder / "index")
        self.block = Superblock(Role.INDEX, VOLUME, VOLUME, 0, chunk_size, 1, KIND, 1_767_225_600)
        self.entries = [
            StoreEntry(StoreId(n), bytes([n]) * 16, StoreState.ACTIVE)
            for n in range(1, workers + 1)
        ]
        self.blocks = [
            Superblock(Role.STORE, VOLUME, e.uuid, e.store, chunk_size, 1, KIND, 1_767_225_600)
            for e in self.entries
        ]
        if make:
            Index.make(self.index_folder, self.block, self.entries)
        self.live = [entry.store for entry in self.entries]
        self.disk_of: dict[int, str] = {}

    def serve(self) -> CopyStores:
        self.endpoints = make_loopbacks(len(self.entries) + 1)
        self.threads = [
            threading.Thread(target=self._work, args=(entry.store,), daemon=True)
            for entry in self.entries
        ]
        for thread in self.threads:
            thread.start()
        self.client = Client(self.endpoints[0])
        for entry in self.entries:
            serve = Serve(entry.store, VOLUME, entry.uuid, self.chunk_size, KIND, True)
            self.client.call(entry.store, Kind.SERVE, args=encode_args(serve))
        self.stores = CopyStores(self.client, int, lambda: list(self.live), KIND, self.disk_of)
        return self.stores

    def _work(self, rank: int) -> None:
        service = StoreService(os.fspath(self.folder), "loopback")
        pool = BufferPool(0, 8 << 20)
        Server(self.endpoints[rank], service.handle, pool.take, pool.give).run(
            service.should_stop, service.idle
        )

    def close(self) -> None:
        for entry in self.entries:
            self.client.call(entry.store, Kind.STOP)
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        for endpoint in self.endpoints:
            endpoint.close()

    def while_closed(self, change: Callable[[], None]) -> CopyStores:
        """Shuts the stores down for a change of their files."""
        self.close()
        change()
        return self.serve()

    def change_piece(
        self, store: int, key: ChunkKey, change: Callable[[bytearray], None] | None
    ) -> None:
        """Changes the stored image of a piece behind the store's back; None deletes it."""
        folder = os.fspath(self.folder / f"worker-{store}" / "copy")
        environment = Environment(folder, ("chunks", "headers", "meta"))
        stored = encode_key(key)
        with environment.write() as transaction:
            value = transaction.get("chunks", stored)
            assert value is not None
            if change is None:
                transaction.delete("chunks", stored)
                transaction.delete("headers", stored)
            else:
                data = bytearray(value)
                change(data)
                transaction.put("chunks", stored, data)
        environment.close()

    def copies(self) -> list[IndexCopy]:
        return find_copies(self.stores)

    def pieces(self, store: int) -> list[tuple[int, int]]:
        """(piece, generation) of what a store lists."""
        return [(header.chunk, header.generation) for header in self.stores.pieces(store)]


def fill(index: Index, files: int, first: int = 0, *, store: int = 1) -> None:
    """Makes files `f<n>` with one ref each, and commits."""
    root = index.inode(1)
    for number in range(first, first + files):
        inode = index.create(root, b"f%d" % number, 0o100644, 0, 0, now_ns=number)
        ref = ChunkRef(index.next_generation(), 100, bytes(16), (store,))
        index.set_refs(inode, [(0, ref)])
        inode.stable_size = 100
        index.touch(inode)
        if number % 5000 == 4999:
            index.sync()
    index.sync()


def grow(index: Index, first: int = 0) -> None:
    """Makes files with long attributes: an index of 4 pieces and more, quickly."""
    root = index.inode(1)
    for number in range(first, first + 70):
        inode = index.create(root, b"long%d" % number, 0o100644, 0, 0, now_ns=number)
        index.set_xattr(inode, b"user.long", b"%06d" % number * 10_000, now_ns=number)
    index.sync()


def all_rows(folder: str) -> dict[str, dict[bytes, bytes]]:
    """Every row of an index at rest."""
    environment = Environment(folder, records.DATABASES, preallocate=False)
    try:
        with environment.read() as transaction:
            return {
                name: {bytes(key): bytes(value) for key, value in transaction.scan(name)}
                for name in records.DATABASES
            }
    finally:
        environment.close()
