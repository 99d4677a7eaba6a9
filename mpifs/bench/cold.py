"""Takes a file out of the kernel's cache although other processes have it mapped.

posix_fadvise leaves mapped pages alone, and a worker has the data file of its store mapped: once
read, a chunk would never be cold again.  process_madvise(2) takes the pages from the mapping
first.  Where the kernel does not allow that (before 5.10, another user's process) they stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Sequence

_PROCESS_MADVISE = 440  # the same number on every architecture.
_MADV_PAGEOUT = 21
_ROUNDS = 3  # pages used just now are passed over the first time.
_RANGE = struct.Struct("NN")


def drop_file(path: str, pids: Sequence[int]) -> None:
    """Drops the clean pages of a file that `pids` may have mapped.  Never raises OSError."""
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
            size = os.fstat(file).st_size
            for _ in range(_ROUNDS):
                for pid in pids:
                    _unmap(pid, path, size)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def _unmap(pid: int, path: str, size: int) -> None:
    with contextlib.suppress(OSError):
        ranges = _mapped(pid, path, size)
        if not ranges:
            return
        handle = os.pidfd_open(pid)
        try:
            vector = ctypes.create_string_buffer(b"".join(_RANGE.pack(*one) for one in ranges))
            libc = ctypes.CDLL(None, use_errno=True)
            libc.syscall(
                ctypes.c_long(_PROCESS_MADVISE),
                ctypes.c_int(handle),
                vector,
                ctypes.c_size_t(len(ranges)),
                ctypes.c_int(_MADV_PAGEOUT),
                ctypes.c_uint(0),
            )
        finally:
            os.close(handle)


def _mapped(pid: int, path: str, size: int) -> list[tuple[int, int]]:
    """(address, length) where a process has a file mapped, up to the file's end."""
    found = []
    with open(f"/proc/{pid}/maps", "rb") as lines:
        for line in lines:
            fields = line.rstrip(b"\n").split(None, 5)
            if len(fields) == 6 and fields[5] == os.fsencode(path):
                first, last = (int(number, 16) for number in fields[0].split(b"-"))
                found.append((first, min(last - first, (size + 4095) & ~4095)))
    return found
