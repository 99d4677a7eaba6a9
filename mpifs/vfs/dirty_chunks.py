"""Dirty chunks: gathers writes in chunk buffers until they are sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from mpifs.core.layout import extents
from mpifs.core.limits import FILE_BYTES_MAX
from mpifs.index.index import Index
from mpifs.vfs.chunk_buffer import ChunkBuffer
from mpifs.vfs.dirty_memory import DirtyMemory, capacity_for
from mpifs.vfs.file_data import FileData


class DirtyChunks:
    """Taking bytes in; what becomes of them is WriteBack's.

    `on_dirty` hears that something has become dirty.  `files` (inodes with unwritten data) changes
    by atomic dict operations.
    """

    def __init__(self, index: Index, memory: DirtyMemory, on_dirty: Callable[[], None]) -> None:
        self._index = index
        self._memory = memory
        self._on_dirty = on_dirty
        self.files: dict[int, FileData] = {}

    def submit(self, data: FileData, buffers: Iterable[ChunkBuffer]) -> None:
        """Implemented by WriteBack: sends chunks."""
        raise NotImplementedError

    def is_tight(self) -> bool:
        """Implemented by WriteBack: whether the stores are nearly full."""
        raise NotImplementedError

    def write(self, data: FileData, source: memoryview, offset: int) -> None:
        """Takes bytes into the dirty chunks; sends chunks that have become full.

        Requires: data.lock is held, admit() was called.
        """
        inode = data.inode
        chunk_size = inode.chunk_size
        end = offset + len(source)
        if offset > inode.size:
            self.extend(data)
        full = []
        for extent in extents(offset, len(source), chunk_size):
            buffer = self._open_buffer(data, extent.chunk, extent.start, extent.length)
            buffer.write(extent.start, source[extent.position : extent.position + extent.length])
            inode.size = max(inode.size, min(end, extent.chunk * chunk_size + buffer.length))
            if buffer.written == [(0, chunk_size)]:
                full.append(buffer)
        if full:
            self.submit(data, full)

    def write_more(self, data: FileData, source: memoryview, offset: int) -> bool:
        """As `write`, of bytes for which memory and room are there already: they go into one chunk
        that is dirty.  False: nothing was done.

        Requires: data.lock is held.
        """
        inode = data.inode
        chunk, start = divmod(offset, inode.chunk_size)
        buffer = data.dirty.get(chunk)
        end = start + len(source)
        if buffer is None or offset > inode.size or end > buffer.capacity:
            return False
        size = offset + len(source)
        if size > FILE_BYTES_MAX or self.is_tight():
            return False  # perhaps there is no room for a longer chunk
        buffer.write(start, source)
        inode.size = max(inode.size, size)
        if buffer.written == [(0, inode.chunk_size)]:
            self.submit(data, [buffer])
        return True

    def take(
        self,
        data: FileData,
        memory: bytearray,
        offset: int,
        exchange: Callable[[bytearray], None],
    ) -> bool:
        """Takes a whole chunk in the memory where it lies and sends it; gives other memory in its
        place to `exchange`.  False if the chunk is dirty already.  Requires: as `write`."""
        inode = data.inode
        chunk = offset // inode.chunk_size
        if chunk in data.dirty:
            return False
        if offset > inode.size:
            self.extend(data)
        other = self._memory.take(inode.chunk_size)
        buffer = ChunkBuffer(chunk, memory, time.monotonic())
        buffer.hold(inode.chunk_size)
        self._add(data, buffer)
        exchange(other)  # before anything can fail: the memory is this buffer's now.
        inode.size = max(inode.size, offset + inode.chunk_size)
        self.submit(data, [buffer])
        return True

    def extend(self, data: FileData) -> None:
        """The file is about to grow past its end: bytes of the last stored chunk beyond the old
        end (left by a truncate) must read as zeros from now on.  Requires: data.lock is held."""
        inode = data.inode
        chunk, end = divmod(inode.size, inode.chunk_size)
        if not end or chunk in data.dirty:
            return
        flying = data.on_its_way(chunk)
        ref = self._index.ref(inode, chunk) if flying is None else None
        if (flying and flying.length > end) or (ref and ref.length > end):
            self._open_buffer(data, chunk, end, 0)

    def _open_buffer(self, data: FileData, chunk: int, start: int, length: int) -> ChunkBuffer:
        """The dirty buffer of a chunk, with room for [start, start + length)."""
        inode, end = data.inode, start + length
        buffer = data.dirty.get(chunk)
        if buffer is None:
            below = max(0, inode.size - chunk * inode.chunk_size)
            flying = data.on_its_way(chunk) if below else None
            # What is written whole needs no base: a lost chunk can be written anew.
            is_part = flying is None and below and (start or end < min(below, inode.chunk_size))
            ref = self._index.ref(inode, chunk) if is_part else None
            base_length = flying.length if flying else ref.length if ref else 0
            limit = min(base_length, below)
            size = capacity_for(max(end, limit), inode.chunk_size)
            buffer = ChunkBuffer(chunk, self._memory.take(size), time.monotonic())
            buffer.set_base(ref, flying, limit)
            self._add(data, buffer)
        elif end > buffer.capacity:
            size = capacity_for(end, inode.chunk_size)
            old = buffer.grow(self._memory.take(size))
            self._memory.give(old)
        return buffer

    def _add(self, data: FileData, buffer: ChunkBuffer) -> None:
        """A chunk has become dirty."""
        data.dirty[buffer.chunk] = buffer
        inode = data.inode
        if inode.ino not in self.files:
            self._index.pin(inode)
            self.files[inode.ino] = data
            self._on_dirty()

    def _drop(self, buffer: ChunkBuffer) -> None:
        self._memory.give(buffer.buffer)
