"""Stat and SpaceUse ↔ the structures of the C library.

Attributes are packed in one call instead of thirteen assignments through ctypes (1 against 4 µs);
the format is made from the binding's own description of struct stat, so it fits the machine.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from mpifs.core.types import SpaceUse, Stat

NANO = 1_000_000_000
NAME_MAX = 255
BLOCK_BYTES = 4096
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

_CODES = {4: "I", 8: "Q"}


class StatPacker:
    """Writes a Stat into a struct stat at an address."""

    def __init__(self, stat_structure: Any) -> None:
        kind = stat_structure
        fields: list[tuple[int, str, int]] = []
        order = ["ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blocks", "blksize"]
        for position, name in enumerate(order):
            field = getattr(kind, "st_" + name)
            fields.append((field.offset, _CODES[field.size], position))
        for number, name in enumerate(("atimespec", "mtimespec", "ctimespec")):
            offset = getattr(kind, "st_" + name).offset
            fields.append((offset, "q", 9 + 2 * number))
            fields.append((offset + 8, "q", 10 + 2 * number))
        fields.sort()
        layout, place = "=", 0
        for offset, code, _ in fields:
            layout += f"{offset - place}x{code}"
            place = offset + struct.calcsize("=" + code)
        self._struct = struct.Struct(f"{layout}{ctypes.sizeof(kind) - place}x")
        self._order = [position for _, _, position in fields]
        self.size = self._struct.size
        self._space = ctypes.c_char * self.size

    def pack(self, stat: Stat) -> bytes:
        """The bytes of struct stat; what is not in Stat is zero."""
        values = (
            *stat[:9],
            *divmod(stat.atime_ns, NANO),
            *divmod(stat.mtime_ns, NANO),
            *divmod(stat.ctime_ns, NANO),
        )
        return self._struct.pack(*[values[position] for position in self._order])

    def write(self, stat: Stat, address: int) -> None:
        """Fills the struct stat at an address."""
        ctypes.memmove(address, self.pack(stat), self.size)


def write_space(use: SpaceUse, structure: Any) -> None:
    """Fills a struct statvfs."""
    structure.f_bsize = BLOCK_BYTES
    structure.f_frsize = BLOCK_BYTES
    structure.f_blocks = use.total_bytes // BLOCK_BYTES
    structure.f_bfree = structure.f_bavail = use.free_bytes // BLOCK_BYTES
    structure.f_files = use.files + use.files_free
    structure.f_ffree = structure.f_favail = use.files_free
    structure.f_namemax = NAME_MAX


def time_of(seconds: int, nanoseconds: int, now: int) -> int | None:
    """A timespec of utimensat(2) as vfs takes it: ns, `now`, or None to leave."""
    if nanoseconds == UTIME_OMIT:
        return None
    if nanoseconds == UTIME_NOW:
        return now
    return seconds * NANO + nanoseconds
