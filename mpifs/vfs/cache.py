"""Clean chunks in memory, for readahead and reads smaller than a chunk; the kernel caches pages.

Keyed by (inode, chunk, generation), so an entry can never be stale.  One fetch at a time per key:
a second reader waits for the first one's.
"""

from __future__ import annotations

import errno
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from mpifs.core.buffers import BufferPool, capacity_of
from mpifs.core.errors import MpifsError, PosixError
from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import PART_HOT_COUNT, PART_WINDOW_COUNT, REQUEST_TIMEOUT_S
from mpifs.core.types import ChunkKey, ChunkRef


class _Entry:
    """A chunk in the cache; `payload` is None while it is being fetched, until `ready` is set."""

    __slots__ = ("buffer", "error", "is_own", "payload", "ready", "users")

    def __init__(self, buffer: bytearray, ready: threading.Event | None) -> None:
        self.buffer = buffer
        self.payload: memoryview | None = None
        self.error: OSError | None = None
        self.ready = ready
        """None: it has been there from the beginning."""
        self.users = 1
        self.is_own = True


def _payload(buffer: bytearray, length: int) -> memoryview:
    """What lies behind the header in a buffer of the pool."""
    return memoryview(buffer)[IMAGE_HEADER_BYTES : IMAGE_HEADER_BYTES + length]


class Lent:
    """A chunk's payload in the cache's own memory; it stays there until `close`, or the end of the
    `with` block."""

    __slots__ = ("_cache", "_entry", "payload")

    def __init__(self, cache: ChunkCache, entry: _Entry, payload: memoryview) -> None:
        self._cache = cache
        self._entry = entry
        self.payload = payload
        """Of the whole chunk, or the part that was asked for."""

    def __enter__(self) -> Lent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Once."""
        self._cache.release(self._entry)


class PartSource(Protocol):
    """Where parts of chunks come from; any thread."""

    def read(self, key: ChunkKey, ref: ChunkRef, start: int, into: memoryview) -> bool:
        """Fills `into` with verified payload from `start` on; False: fetch the whole chunk."""
        ...

    def forget(self) -> None:
        """Forgets what it has learned of chunks so far."""
        ...


class _Heat:
    """Tells which chunks are read part after part so often that all of them should be here.

    A hot chunk gets PART_HOT_COUNT of PART_WINDOW_COUNT reads of parts, or more if it is so large
    that half the cache would not hold all chunks that get as many.  A file much larger than the
    cache that is read evenly has none.  Any thread; counts lost between threads do no harm.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._counts: dict[ChunkKey, int] = {}
        self._left = 0

    def note(self, key: ChunkKey, length: int) -> bool:
        """Counts a read of a part; True if the chunk is hot."""
        if self._left <= 0:
            self._left = PART_WINDOW_COUNT
            self._counts = {}
        self._left -= 1
        counts = self._counts
        count = counts[key] = counts.get(key, 0) + 1
        return count >= PART_HOT_COUNT and count * self._bytes_max >= 2 * length * PART_WINDOW_COUNT


class ChunkCache:
    """Bounded by `bytes_max`; least recently used chunks leave first.  Any thread may call.

    `fetch` brings a whole chunk, `parts` a part of one; buffers are `pool`'s, each with room for a
    header before the payload.
    `lock` guards the table, the byte count and every entry's `users`.
    """

    def __init__(
        self,
        fetch: Callable[[ChunkKey, ChunkRef, bytearray], memoryview],
        parts: PartSource,
        bytes_max: int,
        pool: BufferPool,
    ) -> None:
        self._fetch = fetch
        self._parts = parts
        self._heat = _Heat(bytes_max)
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._entries: OrderedDict[ChunkKey, _Entry] = OrderedDict()
        self._pool = pool
        self.bytes_used = 0
        self.hits = 0
        self.misses = 0
        self.part_reads = 0
        """Misses for which a part of the chunk was fetched; roughly, threads may lose counts."""

    def copy(self, key: ChunkKey, ref: ChunkRef, start: int, into: memoryview) -> None:
        """Copies payload bytes from `start` on, fetching the chunk when it is not here.

        Raises what the fetch raises; a failed chunk is not kept.
        Requires: start + len(into) <= ref.length.
        """
        with self.lend(key, ref) as lent:
            into[:] = lent.payload[start : start + len(into)]

    def lend(self, key: ChunkKey, ref: ChunkRef) -> Lent:
        """The payload itself, fetched when it is not here; close it soon.  Raises as `copy`."""
        entry, is_mine = self._acquire(key, ref)
        if entry.error is not None and not is_mine:
            # Another reader's fetch: it may have known only where the chunk was before it moved.
            self.release(entry)
            entry, _ = self._acquire(key, ref)
        if entry.payload is None:
            self.release(entry)
            raise entry.error or MpifsError(f"chunk {key} was not fetched in time")
        return Lent(self, entry, entry.payload)

    def copy_part(self, key: ChunkKey, ref: ChunkRef, start: int, into: memoryview) -> None:
        """As `copy`, for a reader that will hardly want the rest of the chunk."""
        if (
            key not in self._entries
            and not self._heat.note(key, ref.length)
            and self._parts.read(key, ref, start, into)
        ):
            self.misses += 1
            self.part_reads += 1
        else:
            self.copy(key, ref, start, into)

    def __contains__(self, key: ChunkKey) -> bool:
        """Whether the chunk is here or being fetched."""
        return key in self._entries

    def put(self, key: ChunkKey, payload: memoryview) -> None:
        """Copies in what was fetched, and verified, otherwise; nothing if it is here already."""
        buffer = self._pool.take(len(payload))
        _payload(buffer, len(payload))[:] = payload
        self._keep(key, buffer, len(payload))

    def adopt(self, key: ChunkKey, buffer: bytearray, length: int) -> bool:
        """As `put` of the `length` bytes behind the header in a buffer of the pool.  True: it is
        the cache's now; False: a smaller one holds them, and they were copied."""
        if len(buffer) > capacity_of(length) + IMAGE_HEADER_BYTES:
            self.put(key, _payload(buffer, length))
            return False
        self._keep(key, buffer, length)
        return True

    def _keep(self, key: ChunkKey, buffer: bytearray, length: int) -> None:
        entry = _Entry(buffer, None)
        entry.users = 0
        entry.payload = _payload(buffer, length)
        with self._lock:
            if key not in self._entries:
                self._entries[key] = entry
                self.bytes_used += len(buffer)
                self._shrink(key)

    def prefetch(self, key: ChunkKey, ref: ChunkRef) -> None:
        """Fetches a chunk if it is not here; errors are left to the real read."""
        if key not in self._entries:
            self.release(self._acquire(key, ref)[0])

    def forget(self, inode: int) -> None:
        """Drops the chunks of an inode (its caches are dropped for a cold measurement)."""
        with self._lock:
            for key in [key for key in self._entries if key.inode == inode]:
                self._evict(key)

    def clear(self) -> None:
        """Drops all chunks, and what is known of their parts, as `forget` does."""
        self._parts.forget()
        with self._lock:
            for key in list(self._entries):
                self._evict(key)

    def _acquire(self, key: ChunkKey, ref: ChunkRef) -> tuple[_Entry, bool]:
        """The chunk's entry, and whether it was fetched for this very call."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.users += 1
                self._entries.move_to_end(key)
                self.hits += 1
            else:
                ready = threading.Event()
                mine = _Entry(self._pool.take(max(1, ref.length)), ready)
                self._entries[key] = mine
                self.bytes_used += len(mine.buffer)
                self.misses += 1
                self._shrink(key)
        if entry is not None:
            if entry.ready is not None:
                entry.ready.wait(REQUEST_TIMEOUT_S * max(1, len(ref.stores)))
            return entry, False
        try:
            payload = self._fetch(key, ref, mine.buffer)
            with self._lock:
                mine.is_own = payload.obj is mine.buffer
                mine.payload = payload
        except (OSError, MemoryError) as error:
            mine.error = error if isinstance(error, OSError) else PosixError(errno.ENOMEM)
            with self._lock:
                if self._entries.get(key) is mine:
                    self._evict(key)
        finally:
            ready.set()
        return mine, True

    def release(self, entry: _Entry) -> None:
        """One user less."""
        with self._lock:
            entry.users -= 1
            if entry.users < 0:
                self._recycle(entry)

    def _shrink(self, newest: ChunkKey) -> None:
        while self.bytes_used > self._bytes_max:
            key = next(iter(self._entries))
            if key == newest:
                return
            self._evict(key)

    def _evict(self, key: ChunkKey) -> None:
        """Takes an entry out; its last user gives the buffer back (users falls below zero)."""
        entry = self._entries.pop(key)
        self.bytes_used -= len(entry.buffer)
        entry.users -= 1
        if entry.users < 0:
            self._recycle(entry)

    def _recycle(self, entry: _Entry) -> None:
        if entry.payload is not None:
            entry.payload.release()
            entry.payload = None
            if entry.is_own:
                self._pool.give(entry.buffer)
