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

log = logging.getLogger(__name__)


class LocalStores:
    """`path_of` gives the data file of a store's environment (`small` or `large`) if the store is
    served on this host and may be read, else None.  Any thread."""

    def __init__(self, path_of: Callable[[int, str], str | None]) -> None:
        self._path_of = path_of
        self._files: dict[tuple[int, str], _DataFile | None] = {}
        self.bytes_read = 0
        """Roughly: threads may lose counts."""

    def read(self, store: int, key: ChunkKey, ref: ChunkRef, begin: int, into: Target) -> bool:
        """Fills `into` with what lies from payload byte `begin` of a chunk on.

        False if it is not to be had here: then ask the worker; `into` may hold anything.
        """
        place = store, home_name(key.inode, ref.length)
        file = self._files.get(place)
        if file is None:
            file = self._open(place)
            if file is None:
                return False
        if not file.read(encode_key(key), IMAGE_HEADER_BYTES + begin, into):
            return False
        self.bytes_read += len(into)
        return True

    def has(self, store: int, key: ChunkKey, ref: ChunkRef) -> bool:
        """Whether the first byte of a chunk seems to be here; most likely all of it is then."""
        return self.read(store, key, ref, 0, bytearray(1))

    def forget(self, store: int, key: ChunkKey, ref: ChunkRef) -> None:
        """What was read of a chunk is wrong: its place is looked up anew."""
        file = self._files.get((store, home_name(key.inode, ref.length)))
        if file is not None:
            file.forget(encode_key(key))

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
            file = _DataFile(path, lambda: LOCAL_PLACES_MAX // max(1, len(self._files)))
        except OSError as error:
            log.info("%s is read by its worker alone: %s", path, error)
        self._files[place] = file
        return file


class _DataFile:
    """An open data file and the places of its chunks.  It is closed with its last reader."""

    __slots__ = ("_file", "_lock", "_path", "_places_max", "places")

    def __init__(self, path: str, places_max: Callable[[], int]) -> None:
        """Raises OSError if it is not there, or its file system cannot say what is in memory."""
        self._path = path
        self._places_max = places_max
        self._lock = threading.Lock()  # guards what changes the fields; `places` is read without
        self.places: dict[bytes, int] = {}
        self._file = self._opened()

    def _opened(self) -> io.FileIO:
        file = io.FileIO(self._path)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        with contextlib.suppress(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        return file

    def read(self, key: bytes, begin: int, into: Target) -> bool:
        """See LocalStores.read."""
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
        """See LocalStores.forget."""
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
            while len(self.places) > self._places_max():
                del self.places[next(iter(self.places))]
        return places.get(key)
