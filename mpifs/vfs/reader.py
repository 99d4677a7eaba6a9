"""Reading: dirty buffer, else chunk cache, else the stores; readahead for sequential readers."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress

from mpifs.core import intervals
from mpifs.core.errors import ChunkMissingError, DamageError
from mpifs.core.layout import extents
from mpifs.core.limits import (
    IDLE_LOOK_S,
    PART_READ_BYTES_MAX,
    READ_TRIES,
    READAHEAD_CHUNKS_MAX,
    READAHEAD_QUEUE_MAX,
    SMALL_FILE_BYTES_MAX,
)
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs.cache import ChunkCache, Lent
from mpifs.vfs.chunk_buffer import ChunkBuffer
from mpifs.vfs.file_data import FileData
from mpifs.vfs.handles import FileHandle
from mpifs.vfs.small_ahead import SmallAhead


def copy_zeros(into: memoryview) -> None:
    """Fills with zeros."""
    into[:] = bytes(len(into))


def _is_near(handle: FileHandle, offset: int) -> bool:
    """Whether a read begins at most a chunk away from where the last one ended: the reader goes
    on, or will want the rest of the chunk soon.  A handle begins at offset 0."""
    return abs(offset - handle.read_end) <= handle.inode.chunk_size


class Reader:
    """Reads of any file; any thread.  Takes FileData.lock only to copy from dirty buffers."""

    def __init__(
        self,
        index: Index,
        cache: ChunkCache,
        small_ahead: SmallAhead,
        threads: int,
        ahead_bytes: int,
    ) -> None:
        self._small_ahead = small_ahead
        self._ahead_bytes = ahead_bytes
        self._index = index
        self.cache = cache
        self._queue: deque[tuple[ChunkKey, ChunkRef]] = deque(maxlen=READAHEAD_QUEUE_MAX)
        self._wanted = threading.Semaphore(0)
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._prefetch, name=f"readahead-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the readahead threads."""
        self._small_ahead.close()
        self._is_closing = True
        for _ in self._threads:
            self._wanted.release()
        for thread in self._threads:
            thread.join(5)

    def read(self, handle: FileHandle, into: memoryview, offset: int) -> int:
        """Reads up to len(into) bytes at `offset`; returns how many, 0 at the end of the file."""
        inode = handle.inode
        size = inode.size
        length = min(len(into), size - offset)
        if length <= 0:
            return 0
        chunk_size = inode.chunk_size
        if size <= SMALL_FILE_BYTES_MAX and not offset:
            self._small_ahead.note(handle)
        is_part = length <= PART_READ_BYTES_MAX and not _is_near(handle, offset)
        for extent in extents(offset, length, chunk_size):
            part = into[extent.position : extent.position + extent.length]
            self._read_extent(inode, extent.chunk, extent.start, part, is_part)
        self._read_ahead(handle, offset, length, size)
        return length

    def lend(self, handle: FileHandle, size: int, offset: int) -> Lent | None:
        """What a read of `size` bytes gives, where it lies in the cache; close it soon.

        None if it is not the stored bytes of one chunk, or they cannot be had: then `read` it.
        """
        inode = handle.inode
        length = min(size, inode.size - offset)
        chunk, start = divmod(offset, inode.chunk_size)
        data = inode.data
        if isinstance(data, FileData) and data.has_unwritten:
            return None
        if length <= 0 or start + length > inode.chunk_size:
            return None
        try:
            ref = self._index.ref(inode, chunk)
            if ref is None or start + length > ref.length:
                return None
            lent = self.cache.lend(ChunkKey(inode.ino, chunk, ref.generation), ref)
        except OSError:
            return None  # rewritten or moved meanwhile, perhaps: `read` looks again
        lent.payload = lent.payload[start : start + length]
        self._read_ahead(handle, offset, length, inode.size)
        return lent

    def _read_extent(
        self, inode: Inode, chunk: int, start: int, into: memoryview, is_part: bool
    ) -> None:
        data = inode.data
        if isinstance(data, FileData) and data.has_unwritten:
            with data.lock:
                buffer = data.dirty.get(chunk) or data.on_its_way(chunk)
                if buffer is not None:
                    self.copy_from(inode, buffer, start, into)
                    return
        for attempt in range(READ_TRIES):
            ref = self._index.ref(inode, chunk)
            if ref is None:
                copy_zeros(into)
                return
            try:
                self._copy_stored(inode.ino, chunk, ref, start, into, is_part)
                return
            except (ChunkMissingError, DamageError):
                newer = self._index.ref(inode, chunk)
                if attempt == READ_TRIES - 1 or newer is None or newer == ref:
                    raise

    def copy_from(self, inode: Inode, buffer: ChunkBuffer, start: int, into: memoryview) -> None:
        """Copies from an unwritten chunk.  Requires: the file's lock is held."""
        stored = min(len(into), max(0, buffer.length - start))
        if not intervals.covers(buffer.written, start, start + stored):
            self.fill(inode, buffer)
        into[:stored] = buffer.view(start, start + stored)
        if stored < len(into):
            copy_zeros(into[stored:])

    def fill(self, inode: Inode, buffer: ChunkBuffer) -> None:
        """Brings the base of a dirty chunk in.  Requires: the file's lock is held."""
        if not buffer.needs_base:
            if buffer.outgoing is None:
                buffer.fill(None)
            return
        if buffer.base is not None:
            self.fill(inode, buffer.base)
            buffer.fill(buffer.base.view(0, buffer.base_limit))
            return
        assert buffer.base_ref is not None
        base = memoryview(bytearray(buffer.base_limit))
        ref = buffer.base_ref
        for _ in range(READ_TRIES):
            try:
                self._copy_stored(inode.ino, buffer.chunk, ref, 0, base)
                break
            except DamageError:
                newer = self._index.ref(inode, buffer.chunk)
                is_moved = newer is not None and newer.generation == ref.generation
                if newer is None or not is_moved or newer == ref:
                    raise
                ref = newer
        buffer.fill(base)

    def _copy_stored(
        self,
        ino: int,
        chunk: int,
        ref: ChunkRef,
        start: int,
        into: memoryview,
        is_part: bool = False,
    ) -> None:
        stored = min(len(into), max(0, ref.length - start))
        if stored:
            key = ChunkKey(ino, chunk, ref.generation)
            copy = self.cache.copy_part if is_part else self.cache.copy
            copy(key, ref, start, into[:stored])
        if stored < len(into):
            copy_zeros(into[stored:])

    def _read_ahead(self, handle: FileHandle, offset: int, length: int, size: int) -> None:
        """Asks for the next chunks once a reader has read on where it left off, twice."""
        end = offset + length
        if _is_near(handle, offset) and end > handle.read_end:
            handle.read_streak += 1
        elif offset != handle.read_end:
            handle.read_streak = 0
            handle.ahead = 0
        handle.read_end = end
        if handle.read_streak < 2 or end >= size:
            return
        chunk_size = handle.inode.chunk_size
        window = min(max(1, self._ahead_bytes // chunk_size), READAHEAD_CHUNKS_MAX)
        last = min((size - 1) // chunk_size, end // chunk_size + window)
        first = max(end // chunk_size + 1, handle.ahead + 1)
        for chunk in range(first, last + 1):
            handle.ahead = chunk
            try:
                ref = self._index.ref(handle.inode, chunk)
            except DamageError:
                return  # for the one who reads that chunk
            if ref is not None:
                self._queue.append((ChunkKey(handle.inode.ino, chunk, ref.generation), ref))
                self._wanted.release()

    def _prefetch(self) -> None:
        while True:
            if not self._wanted.acquire(timeout=IDLE_LOOK_S):
                continue
            if self._is_closing:
                return
            try:
                key, ref = self._queue.popleft()
            except IndexError:
                continue
            with suppress(MemoryError):  # a limit of this process: the reader will hear of it
                self.cache.prefetch(key, ref)
