"""Keeps the resident memory of rank 0 small: few heaps, and pages that nobody uses given back.

Three things make it large without being of use:

- glibc gives each thread a heap of its own, up to eight per processor, and none shrinks while a
  block lives at its end: with 25 threads that was 40 MiB more (277 against 239 after a mixed load).
  So there are few (fuse/process.py).
- The index is read through a mapping, so every page of it that was ever looked at counts: 250 MiB
  after a walk over a million files.  The kernel would take them back when it needs them; here they
  are taken out of the mapping (they stay in the kernel's cache, and the next look costs 0.1 µs).
- What was freed inside of heaps.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

from mpifs.core.limits import HEAP_TRIM_BYTES, INDEX_RESIDENT_BYTES_MAX, MAP_BYTES

_MADV_DONTNEED = 4
_PAGE = os.sysconf("SC_PAGE_SIZE")


class MemoryWatch:
    """`look` is called by one thread, several times a second; 10 µs when there is nothing to do."""

    def __init__(self, index_file: str) -> None:
        self._path = os.path.realpath(index_file)
        libc = ctypes.CDLL(None)
        self._trim = getattr(libc, "malloc_trim", None)
        self._madvise = libc.madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._mapped, self._own = _resident()
        """What could not be made smaller the last time, or less since."""

    def look(self) -> None:
        """Gives back what has come since the last time, if it is much.

        Never raises for a limit of this process (files, memory): it looks again soon.
        """
        with contextlib.suppress(OSError, MemoryError):
            self._look()

    def _look(self) -> None:
        mapped, own = _resident()
        self._mapped, self._own = min(self._mapped, mapped), min(self._own, own)
        if mapped - self._mapped > INDEX_RESIDENT_BYTES_MAX:
            self._drop_pages()
            self._mapped = _resident()[0]
        if own - self._own > HEAP_TRIM_BYTES and self._trim is not None:
            self._trim(0)
            self._own = _resident()[1]

    def _drop_pages(self) -> None:
        """Takes the index's pages out of the mapping, which no reader notices: nobody writes to
        it, LMDB writes to the file.

        Only out of a map of full size, which stays in its place.  A small one (ulimit -v) may be
        exchanged just now, and its addresses be somebody's memory.
        """
        with contextlib.suppress(OSError):
            length = -(-os.stat(self._path).st_size // _PAGE) * _PAGE
            with open("/proc/self/maps", "rb") as lines:
                for line in lines:
                    fields = line.rstrip(b"\n").split(None, 5)
                    if len(fields) == 6 and fields[5] == os.fsencode(self._path):
                        first, end = (int(number, 16) for number in fields[0].split(b"-"))
                        if end - first == MAP_BYTES:
                            self._madvise(first, length, _MADV_DONTNEED)


def _resident() -> tuple[int, int]:
    """Resident bytes: mapped files and shared memory; own."""
    with open("/proc/self/statm", "rb") as file:
        fields = file.read().split()
    resident, mapped = int(fields[1]) * _PAGE, int(fields[2]) * _PAGE
    return mapped, resident - mapped
