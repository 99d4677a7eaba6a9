"""INIT, the kernel's first request: what both sides are going to speak."""

from __future__ import annotations

import errno
from typing import NamedTuple

from mpifs.core.errors import PosixError
from mpifs.fuse.protocol import (
    INIT_IN,
    INIT_IN_OLD_BYTES,
    INIT_OUT,
    MAJOR,
    MINOR,
    MINOR_MIN,
    PAGE_BYTES,
    Init,
)
from mpifs.fuse.request import WRITE_BYTES_MAX

MAX_BACKGROUND = 64
"""Requests of readahead, of write-back and of asynchronous I/O that the kernel sends at once."""
_OLD_WRITE_BYTES = 128 * 1024
"""Of kernels before 4.20."""
_WANTED = (
    Init.ASYNC_READ
    | Init.ATOMIC_O_TRUNC
    | Init.EXPORT_SUPPORT
    | Init.BIG_WRITES
    | Init.HAS_IOCTL_DIR
    | Init.DO_READDIRPLUS
    | Init.READDIRPLUS_AUTO
    | Init.ASYNC_DIO
    | Init.PARALLEL_DIROPS
    | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS
    | Init.HANDLE_KILLPRIV_V2
    | Init.INIT_EXT
    | Init.DIRECT_IO_ALLOW_MMAP
)


class Agreement(NamedTuple):
    """What INIT has come to."""

    minor: int
    flags: Init
    write_bytes_max: int

    @property
    def is_writeback(self) -> bool:
        """Whether the kernel holds dirty pages of its own."""
        return Init.WRITEBACK_CACHE in self.flags

    @property
    def has_direct_writers(self) -> bool:
        """Whether files may be written past the kernel's page cache while others use it."""
        return Init.DIRECT_IO_ALLOW_MMAP in self.flags and not self.is_writeback


def agree(asked: memoryview, *, writeback: bool) -> tuple[Agreement, bytes]:
    """The agreement and the answer to INIT's body.

    Raises PosixError(EPROTO) when the kernel speaks another or too old a version.
    """
    if len(asked) < INIT_IN_OLD_BYTES:
        raise PosixError(errno.EPROTO, "the kernel's INIT is too short")
    whole = bytes(asked[: INIT_IN.size]).ljust(INIT_IN.size, b"\0")
    major, minor, readahead, offered, more = INIT_IN.unpack(whole)
    if offered & Init.INIT_EXT:
        offered |= more << 32
    if major != MAJOR or minor < MINOR_MIN:
        raise PosixError(
            errno.EPROTO, f"the kernel speaks FUSE {major}.{minor}; mpifs needs 7.{MINOR_MIN} or on"
        )
    wanted = _WANTED | Init.WRITEBACK_CACHE if writeback else _WANTED
    flags = Init(offered & wanted)
    size = WRITE_BYTES_MAX if Init.MAX_PAGES in flags else _OLD_WRITE_BYTES
    answer = INIT_OUT.pack(
        MAJOR,
        min(minor, MINOR),
        readahead,
        flags & 0xFFFFFFFF,
        MAX_BACKGROUND,
        MAX_BACKGROUND * 3 // 4,
        size,
        1,
        size // PAGE_BYTES,
        0,
        flags >> 32,
        0,
    )
    return Agreement(min(minor, MINOR), flags, size), answer
