"""Open directories: reading entries from any offset, with their attributes."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

from mpifs.core.errors import PosixError
from mpifs.core.types import Stat
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs.files import stat_of
from mpifs.vfs.handles import DirectoryHandle, Handles

_PAGE = 512
_DOTS = 2


def _brief(ino: int, kind: int) -> Stat:
    """A Stat with nothing but number and type."""
    return Stat(ino, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class Directories:
    """Directory handles by number."""

    def __init__(self, index: Index, handles: Handles) -> None:
        self._index = index
        self._handles = handles

    def open(self, inode: Inode) -> int:
        """Raises ENOTDIR, ENFILE."""
        if not stat.S_ISDIR(inode.mode):
            raise PosixError(errno.ENOTDIR)
        number = self._handles.add(DirectoryHandle(inode))
        self._index.pin(inode)
        return number

    def release(self, number: int) -> None:
        """Raises EBADF."""
        handle = self._handles.directory(number)
        self._handles.remove(number)
        self._index.unpin(handle.inode)

    def read(self, number: int, offset: int, plus: bool) -> Iterator[tuple[bytes, Stat, int]]:
        """`.` and `..` first, then the entries in name order."""
        handle = self._handles.directory(number)
        inode = handle.inode
        if offset == 0:
            yield b".", stat_of(inode), 1
        if offset <= 1:
            yield b"..", self._parent(inode), 2
        position = max(offset, _DOTS)
        after, skip = handle.place(position) if position > _DOTS else (b"", 0)
        while True:
            page = self._index.entries(inode.ino, after, _PAGE)
            if not page:
                return
            for name, ino, kind in page:
                after = name
                if skip:
                    skip -= 1
                    continue
                attributes = self._attributes(ino, kind) if plus else _brief(ino, kind)
                if attributes is None:
                    continue
                position += 1
                handle.remember(position, name)
                yield name, attributes, position

    def _parent(self, inode: Inode) -> Stat:
        try:
            return stat_of(self._index.inode(inode.parent or inode.ino))
        except OSError:
            return stat_of(inode)

    def _attributes(self, ino: int, kind: int) -> Stat | None:
        """None if the entry has gone meanwhile."""
        try:
            inode = self._index.inode(ino)
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOENT):
                return None
            return _brief(ino, kind)
        return stat_of(inode)
