"""Open files and directories: file handle numbers ↔ what they stand for."""

from __future__ import annotations

import errno
import itertools
import os

from mpifs.core.errors import PosixError
from mpifs.core.limits import HANDLES_MAX
from mpifs.index.inode import Inode


class FileHandle:
    """An open file.  `is_direct` is None if the kernel has no part in it, else whether it goes past
    the kernel's page cache.  The read_* fields are the readahead's memory and may be torn by
    parallel readers without harm."""

    __slots__ = ("ahead", "flags", "inode", "is_direct", "read_end", "read_streak")

    def __init__(self, inode: Inode, flags: int) -> None:
        self.inode = inode
        self.flags = flags
        self.is_direct: bool | None = None
        self.read_end = 0
        self.read_streak = 1
        self.ahead = 0

    @property
    def can_read(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def can_write(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class DirectoryHandle:
    """An open directory.

    Entries are read in name order; an offset counts the entries handed out since the start, and
    `place` tells the name to go on after.  So an offset stays valid while entries come and go.
    Memory is bounded: of older offsets only every 64th keeps its name, and a seek to one between
    them goes on after the kept one before it, skipping the difference.
    """

    __slots__ = ("_names", "inode")

    _KEPT_MAX = 65_536
    _STEP = 64

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self._names: dict[int, bytes] = {}

    def remember(self, offset: int, name: bytes) -> None:
        """Entry `name` was handed out with next offset `offset`."""
        self._names[offset] = name
        if len(self._names) > self._KEPT_MAX:
            older = sorted(self._names)[: self._KEPT_MAX // 2]
            for kept in older:
                if kept % self._STEP:
                    del self._names[kept]

    def place(self, offset: int) -> tuple[bytes, int]:
        """Name to go on after, and how many entries to skip behind it."""
        name = self._names.get(offset)
        if name is not None:
            return name, 0
        known = max((kept for kept in self._names if kept < offset), default=0)
        return self._names.get(known, b""), offset - known


class Handles:
    """The table.  Numbers are never 0 and never reused; dict and counter are atomic in CPython."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, FileHandle | DirectoryHandle] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, handle: FileHandle | DirectoryHandle) -> int:
        """Raises ENFILE when HANDLES_MAX are open."""
        if len(self._open) >= HANDLES_MAX:
            raise PosixError(errno.ENFILE)
        number = next(self._numbers)
        self._open[number] = handle
        return number

    def file(self, number: int | None) -> FileHandle:
        """Raises EBADF."""
        handle = self._open.get(number) if number is not None else None
        if not isinstance(handle, FileHandle):
            raise PosixError(errno.EBADF)
        return handle

    def directory(self, number: int | None) -> DirectoryHandle:
        """Raises EBADF."""
        handle = self._open.get(number) if number is not None else None
        if not isinstance(handle, DirectoryHandle):
            raise PosixError(errno.EBADF)
        return handle

    def find(self, number: int | None) -> Inode | None:
        """The inode of any open handle, None if there is no such handle."""
        handle = self._open.get(number) if number is not None else None
        return handle.inode if handle is not None else None

    def remove(self, number: int) -> FileHandle | DirectoryHandle | None:
        """Takes a handle out; None if it was not there."""
        return self._open.pop(number, None)

    def files(self) -> list[int]:
        """Numbers of all open files."""
        return [n for n, handle in list(self._open.items()) if isinstance(handle, FileHandle)]
