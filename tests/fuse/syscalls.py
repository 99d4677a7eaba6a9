"""System calls that Python does not have."""

from __future__ import annotations

import ctypes
import os

AT_FDCWD = -100
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def renameat2(old: str | bytes, new: str | bytes, flags: int) -> None:
    arguments = (AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    _check(_libc.renameat2(*arguments))


def utimensat(path: str | bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    times = (ctypes.c_long * 4)(*atime, *mtime)
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    offset_type = ctypes.c_longlong
    _check(_libc.fallocate(fd, mode, offset_type(offset), offset_type(length)))
