"""Fills a volume at rest with many files, without a mount: the rows and chunks that one would make.

    .venv/bin/python tools/fill_volume.py STORE COUNT [--size 100] [--flat 100000]

Through the mount a million files take a quarter of an hour.  Here the index makes the names, a
ChunkStore per worker takes the chunks, and the refs follow, in that order and committed as always;
`mpifs fsck` finds nothing to say about the result.  The first --flat files lie in the folder
`flat`, the others in folders of 1000.  The volume must have been mounted once (its stores are made
then) and be unmounted.
"""

from __future__ import annotations

import argparse
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from mpifs.core.checksum import function_of
from mpifs.core.image import IMAGE_HEADER_BYTES, decode_header, encode_header_into
from mpifs.core.placement import place
from mpifs.core.types import ROOT_INODE, ChunkKey, ChunkRef
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.store.chunks import ChunkStore, Image

BATCH_COUNT = 20_000
FOLDER_COUNT = 1000
FLAT = "flat"


class _Filler:
    """One volume that is being filled."""

    def __init__(self, index: Index, stores: dict[int, ChunkStore], size: int) -> None:
        self._index = index
        self._stores = stores
        self._order = sorted(stores)
        self._size = size
        self._kind = index.geometry.checksum
        self._sum = function_of(self._kind)

    def fill(self, count: int, flat: int) -> None:
        """Makes `count` files, `flat` of them in one folder."""
        made: list[Inode] = []
        for parent, name in self._names(count, flat):
            now_ns = time.time_ns()
            made.append(self._index.create(parent, name, 0o644, 0, 0, now_ns=now_ns))
            if len(made) == BATCH_COUNT:
                self._commit(made)
                made = []
        self._commit(made)

    def _names(self, count: int, flat: int) -> Iterator[tuple[Inode, bytes]]:
        folder = self._folder(FLAT)
        for number in range(count):
            if number >= flat and (number - flat) % FOLDER_COUNT == 0:
                folder = self._folder(f"d{(number - flat) // FOLDER_COUNT:05d}")
            yield folder, b"f%07d" % number

    def _folder(self, name: str) -> Inode:
        root = self._index.inode(ROOT_INODE)
        mode = stat.S_IFDIR | 0o755
        return self._index.create(root, name.encode(), mode, 0, 0, now_ns=time.time_ns())

    def _commit(self, made: list[Inode]) -> None:
        """Data durable, then refs and sizes, as the mount does it."""
        if self._size:
            images: dict[int, list[Image]] = {store: [] for store in self._order}
            refs = [(inode, self._chunk(inode, images)) for inode in made]
            for store, each in images.items():
                self._stores[store].put_many(each)
            for inode, ref in refs:
                inode.size = inode.stable_size = self._size
                self._index.set_refs(inode, [(0, ref)])
                self._index.touch(inode)
        self._index.sync()

    def _chunk(self, inode: Inode, images: dict[int, list[Image]]) -> ChunkRef:
        key = ChunkKey(inode.ino, 0, self._index.next_generation())
        payload = (b"%d " % inode.ino * self._size)[: self._size]
        buffer = bytearray(IMAGE_HEADER_BYTES) + payload
        encode_header_into(buffer, 0, self._kind, key, len(payload), self._sum(payload))
        stores = place(inode.start, 0, inode.replicas, self._order)
        header = decode_header(buffer)
        for store in stores:
            images[store].append(Image(header, memoryview(buffer)))
        return ChunkRef(key.generation, len(payload), header.checksum, stores)


def fill(store: Path, count: int, flat: int, size: int) -> float:
    """Fills the volume; seconds."""
    begin = time.perf_counter()
    with ExitStack() as undo:
        index = Index.open(os.fspath(store / "index"))
        undo.callback(index.close)
        geometry = index.geometry
        stores: dict[int, ChunkStore] = {}
        for entry in index.stores():
            stores[entry.store] = opened = ChunkStore.open(
                os.fspath(store / f"worker-{entry.store}"),
                volume_uuid=geometry.volume_uuid,
                store_uuid=entry.uuid,
                store=entry.store,
                chunk_size=geometry.chunk_size,
                checksum=geometry.checksum,
                create=False,
            )
            undo.callback(opened.close)
        _Filler(index, stores, size).fill(count, min(count, flat))
    return time.perf_counter() - begin


def main() -> None:
    """Fills a volume and says how long it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--flat", type=int, default=100_000)
    words = parser.parse_args()
    took_s = fill(words.store, words.count, words.flat, words.size)
    print(f"{words.count} files of {words.size} B in {took_s:.1f} s")


if __name__ == "__main__":
    main()
