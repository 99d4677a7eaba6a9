"""What the vfs holds in memory of one file with open handles or unwritten data."""

from __future__ import annotations

import threading
from collections import deque

from mpifs.index.inode import Inode
from mpifs.vfs.chunk_buffer import ChunkBuffer


class FileData:
    """Hangs on `Inode.data`; the inode is pinned while it does.

    `lock` guards all fields and the inode's size and stable_size; it is taken before index.lock.
    `in_flight` is in order of submission; completed chunks are applied to the index in that
    order, so that a growing file never shows a later part without the earlier one after a crash.
    """

    __slots__ = (
        "_idle",
        "cached_handles",
        "closing",
        "direct_readers",
        "direct_writers",
        "dirty",
        "error",
        "handles",
        "in_flight",
        "inode",
        "is_past_cache",
        "lock",
    )

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.lock = threading.RLock()
        self._idle: threading.Condition | None = None
        self.dirty: dict[int, ChunkBuffer] = {}
        self.in_flight: deque[ChunkBuffer] = deque()
        self.error: OSError | None = None
        self.handles: set[int] = set()
        self.cached_handles = self.direct_readers = self.direct_writers = 0
        """Of the kernel's handles: see `take_handle`."""
        self.is_past_cache = False
        """Whether somebody has written past the kernel's page cache."""
        self.closing = False

    def take_handle(self, *, reads: bool, writes: bool) -> bool:
        """Counts a handle of the kernel; whether it goes past the kernel's page cache.

        Who only writes does, and then everybody who comes while that one is there; who comes while
        there are handles with the page cache uses that, too.  So while somebody writes past the
        cache nobody fills it with what is just being replaced.  Requires: the lock is held.
        """
        is_direct = self.direct_writers > 0 or not (reads or self.cached_handles)
        self.is_past_cache = self.is_past_cache or (is_direct and writes)
        self._count_handle(1, is_direct, reads, writes)
        return is_direct

    def give_handle(self, *, is_direct: bool, reads: bool, writes: bool) -> None:
        """Takes back one `take_handle`.  Requires: the lock is held."""
        self._count_handle(-1, is_direct, reads, writes)

    def _count_handle(self, change: int, is_direct: bool, reads: bool, writes: bool) -> None:
        if not is_direct:
            self.cached_handles += change
            return
        if reads:
            self.direct_readers += change
        if writes:
            self.direct_writers += change

    def await_idle(self, timeout_s: float) -> None:
        """Waits until nothing is in flight, or for the time given.  Requires: the lock is held."""
        if self._idle is None:  # most files are never waited for
            self._idle = threading.Condition(self.lock)
        self._idle.wait(timeout_s)

    def tell_idle(self) -> None:
        """Nothing is in flight any more.  Requires: the lock is held."""
        if self._idle is not None:
            self._idle.notify_all()

    @property
    def has_unwritten(self) -> bool:
        """Whether anything is dirty or on its way."""
        return bool(self.dirty or self.in_flight)

    def detach_if_idle(self) -> None:
        """Takes it off its inode when nothing needs it.  Requires: the lock is held."""
        if not (self.handles or self.dirty or self.in_flight or self.error):
            self.inode.data = None

    def on_its_way(self, chunk: int) -> ChunkBuffer | None:
        """The newest valid in-flight buffer of a chunk."""
        for buffer in reversed(self.in_flight):
            if buffer.chunk == chunk:
                return None if buffer.is_cancelled else buffer
        return None

    def take_error(self) -> OSError | None:
        """The error of a background write, once."""
        error, self.error = self.error, None
        return error


class Locked:
    """See WriteBack.locked.  A FileData that nobody needs is taken off its inode at the end of the
    block; so it is looked for again once it is locked."""

    __slots__ = ("_data", "_index_lock", "_inode")

    _data: FileData

    def __init__(self, inode: Inode, index_lock: threading.RLock) -> None:
        self._inode = inode
        self._index_lock = index_lock

    def __enter__(self) -> FileData:
        inode = self._inode
        while True:
            data = inode.data
            if not isinstance(data, FileData):
                with self._index_lock:
                    if not isinstance(inode.data, FileData):
                        inode.data = FileData(inode)
                continue
            data.lock.acquire()
            if inode.data is data:
                self._data = data
                return data
            data.lock.release()

    def __exit__(self, *_: object) -> None:
        data = self._data
        data.detach_if_idle()
        data.lock.release()
