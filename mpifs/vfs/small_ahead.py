"""Readahead over small files: who reads a folder's files in name order gets the next ones early.

One request per store brings dozens of files; alone each would cost a round trip.  Programs that go
through a tree (tar, cp, grep, rsync) take the names as readdir gives them, and that is name order.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections import deque
from collections.abc import Callable, Sequence

from mpifs.core.errors import MpifsError
from mpifs.core.limits import (
    IDLE_LOOK_S,
    SMALL_AHEAD_BYTES,
    SMALL_AHEAD_COUNT,
    SMALL_AHEAD_FOLDERS,
    SMALL_FILE_BYTES_MAX,
)
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.index.index import Index
from mpifs.vfs.cache import ChunkCache
from mpifs.vfs.handles import FileHandle

log = logging.getLogger(__name__)

Wanted = tuple[ChunkKey, ChunkRef]

_STREAK = 3  # files read in name order before any is fetched ahead.


class _Trail:
    """How far somebody has come in a folder.  Torn between threads it costs a fetch, no more.

    The next files are fetched once the name `trigger` is reached (None: not now); `end` is the last
    name that was fetched.
    """

    __slots__ = ("end", "name", "streak", "trigger")

    def __init__(self) -> None:
        self.name = self.end = b""
        self.streak = 0
        self.trigger: bytes | None = b""


class SmallAhead:
    """One thread that fetches.  `note` may be called by any thread and waits for nothing.

    `fetch` brings what it can of the chunks wanted and gives it to a function.  `is_near` says of
    one whether it is had without a round trip: while the first of a row is, none is fetched.
    """

    def __init__(
        self,
        index: Index,
        cache: ChunkCache,
        fetch: Callable[[Sequence[Wanted], Callable[[ChunkKey, memoryview], None]], None],
        is_near: Callable[[ChunkKey, ChunkRef], bool],
    ) -> None:
        self._index = index
        self._cache = cache
        self._fetch = fetch
        self._is_near = is_near
        self._trails: dict[int, _Trail] = {}
        self._queue: deque[tuple[int, _Trail]] = deque(maxlen=SMALL_AHEAD_FOLDERS)
        self._wanted = threading.Semaphore(0)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="small-ahead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._is_closing = True
        self._wanted.release()
        self._thread.join(5)

    def note(self, handle: FileHandle) -> None:
        """A file of at most SMALL_FILE_BYTES_MAX is read, and the kernel had nothing of it."""
        parent, name = handle.inode.parent, handle.inode.name
        trail = self._trails.get(parent)
        if trail is None:
            if len(self._trails) >= SMALL_AHEAD_FOLDERS:
                self._trails.clear()
            trail = self._trails[parent] = _Trail()
        if name < trail.name:
            trail.streak, trail.end, trail.trigger = 0, b"", b""
        trail.streak += name > trail.name
        trail.name = name
        if trail.streak >= _STREAK and trail.trigger is not None and name >= trail.trigger:
            trail.trigger = None
            self._queue.append((parent, trail))
            self._wanted.release()

    def _run(self) -> None:
        while not self._is_closing:
            if not self._wanted.acquire(timeout=IDLE_LOOK_S):
                continue
            try:
                parent, trail = self._queue.popleft()
            except IndexError:
                continue
            try:
                self._follow(parent, trail)
            except (OSError, MemoryError) as error:
                log.info("files ahead in folder %d: %s", parent, error)

    def _follow(self, parent: int, trail: _Trail) -> None:
        """Fetches the small ones among the next files of a folder."""
        entries = self._index.entries(parent, max(trail.name, trail.end), SMALL_AHEAD_COUNT)
        if not entries:
            return
        wanted, count = self._choose(entries)
        if wanted:
            self._fetch(wanted, self._cache.put)
        trail.end = entries[count - 1][0]
        trail.trigger = min(trail.end, entries[len(entries) // 2][0])

    def _choose(self, entries: Sequence[tuple[bytes, int, int]]) -> tuple[list[Wanted], int]:
        """What to fetch of some entries, and how many of them that takes care of."""
        wanted: list[Wanted] = []
        size = 0
        for count, (_, ino, kind) in enumerate(entries, 1):
            found = self._small(ino) if stat.S_ISREG(kind) else None
            if found is None:
                continue
            if not wanted and self._is_near(*found):
                break
            wanted.append(found)
            size += found[1].length
            if size >= SMALL_AHEAD_BYTES:
                return wanted, count
        return wanted, len(entries)

    def _small(self, ino: int) -> Wanted | None:
        """The only chunk of a small file that is not in the cache."""
        try:
            refs = self._index.refs(ino, 0, 2)
        except MpifsError:
            return None  # damaged: for the one who reads it
        if len(refs) != 1 or refs[0][0] or refs[0][1].length > SMALL_FILE_BYTES_MAX:
            return None
        ref = refs[0][1]
        key = ChunkKey(ino, 0, ref.generation)
        return None if key in self._cache else (key, ref)
