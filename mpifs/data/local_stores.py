"""Chunks of stores on this host, read where they lie in their data files.

A worker and rank 0 on one machine share the kernel's page cache: a pread takes 2 µs for 4 KiB and
50 for 1 MiB, where a request wakes a process and waits for its answer.  (HDFS calls this
short-circuit local reads.)  What is found is a hint: the chunk may have been deleted and its pages
used again, or the file replaced.  Whoever asks compares it with a sum, and asks the worker if it
is wrong, so that damage, replicas and dead workers remain gather's affair.

Nothing here waits for a disk (RWF_NOWAIT, preadv2(2)): what is not in memory is the worker's to
read, which has a deadline.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from collections.abc import Callable
from typing import TypeAlias

from mpifs.core.image import IMAGE_HEADER_BYTES, encode_key, home_name
from mpifs.core.limits import LOCAL_PLACES_MAX
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.valuepages import places_from

Target: TypeAlias = "bytearray | memoryview"

_PLACES_TRIED = 2  # the one that is known, perhaps from long ago, and a new one.

log = logging.getLogger(__name__)


class LocalStores:
    """`path_of` gives the data file of a store's environment (`small` or `large`) if the store is
    served on this host and may be read, else None.  Any thread."""

    def __init__(self, path_of: Callable[[int, str], str | None]) -> None:
        self._path_of = path_of
        self._files: dict[tuple[int, str], _DataFile | None] = {}
        self._lock = threading.Lock()  # guards what changes the places; they are read without
        self.bytes_read = 0
        """Roughly: threads may lose counts."""

    def read(
        self,
        store: int,
        key: ChunkKey,
        ref: ChunkRef,
        begin: int,
        into: Target,
        is_right: Callable[[], bool],
    ) -> bool | None:
        """Fills `into` with what lies from payload byte `begin` of a chunk on.

        True: it `is_right`.  False: it is not, also where its place was looked up anew.  None: it
        is not to be had here.  If not True, ask the worker; `into` may hold anything.
        """
        place = store, home_name(key.inode, ref.length)
        file = self._files.get(place)
        if file is None:
            file = self._open(place)
            if file is None:
                return None
        stored = encode_key(key)
        for _ in range(_PLACES_TRIED):
            if not file.read(stored, IMAGE_HEADER_BYTES + begin, into):
                return None
            self.bytes_read += len(into)
            if is_right():
                return True
            file.forget(stored)
        return False

    def has(self, store: int, key: ChunkKey, ref: ChunkRef) -> bool:
        """Whether the first byte of a chunk seems to be here; most likely all of it is then."""
        return bool(self.read(store, key, ref, 0, bytearray(1), lambda: True))

    def close(self, store: int) -> None:
        """A store is served no longer, or again: its files may be other ones."""
        for side in ("small", "large"):
            self._files.pop((store, side), None)

    def _open(self, place: tuple[int, str]) -> _DataFile | None:
        if place in self._files:
            return None  # it cannot be read
        path = self._path_of(*place)
        if path is None:
            return None
        file = None
        try:
            file = _DataFile(path, self._lock, self._drop_oldest)
        except OSError as error:
            log.info("%s is read by its worker alone: %s", path, error)
        self._files[place] = file
        return file

    def _drop_oldest(self) -> None:
        """Keeps LOCAL_PLACES_MAX places in all, those of the fullest file leave first.  Requires:
        the lock."""
        files = [file for file in list(self._files.values()) if file is not None]
        for _ in range(sum(len(file.places) for file in files) - LOCAL_PLACES_MAX):
            places = max((file.places for file in files), key=len)
            del places[next(iter(places))]


class _DataFile:
    """An open data file and the places of its chunks.  It is closed with its last reader."""

    __slots__ = ("_drop_oldest", "_file", "_lock", "_path", "places")

    def __init__(self, path: str, lock: threading.Lock, drop_oldest: Callable[[], None]) -> None:
        """`drop_oldest` is called with the lock held after places have come.

        Raises OSError if the file is not there, or its file system cannot say what is in memory.
        """
        self._path = path
        self._lock = lock
        self._drop_oldest = drop_oldest
        self.places: dict[bytes, int] = {}
        self._file = self._opened()

    def _opened(self) -> io.FileIO:
        file = io.FileIO(self._path)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        with contextlib.suppress(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        return file

    def read(self, key: bytes, begin: int, into: Target) -> bool:
        """Whether `into` was filled with what lies from byte `begin` of an image on."""
        file = self._file
        place = self.places.get(key)
        try:
            if place is None:
                place = self._find(key)
                file = self._file
            return place is not None and len(into) == os.preadv(
                file.fileno(), [into], place + begin, os.RWF_NOWAIT
            )
        except BlockingIOError:
            return False
        except (OSError, OverflowError) as error:  # a damaged page may name any place
            log.info("%s: %s", self._path, error)
            return False

    def forget(self, key: bytes) -> None:
        """What was read of a chunk is wrong: its place is looked up anew."""
        with self._lock:  # a walk may be dropping the oldest place just now
            self.places.pop(key, None)

    def _find(self, key: bytes) -> int | None:
        """Raises OSError."""
        with self._lock:
            now, then = os.stat(self._path), os.fstat(self._file.fileno())
            if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino):
                self._file = self._opened()
                self.places.clear()
            places = places_from(self._file.fileno(), "chunks", key)
            self.places.update(places)
            self._drop_oldest()
        return places.get(key)
