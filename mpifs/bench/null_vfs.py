"""A file system that keeps names and sizes, throws writes away and answers reads from memory.

Mounted by mpifs's own adapter it shows what FUSE, the binding and the loop cost: no mpifs on the
same settings can be faster.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Iterator

from mpifs.core.errors import PosixError
from mpifs.core.limits import MIB
from mpifs.core.types import TIME_NOW, Caller, SpaceUse, Stat
from mpifs.vfs.cache import Lent
from mpifs.vfs.files import Opened

_MEMORY_BYTES = 16 * MIB
"""Reads are answered from here: more than the processor's nearer caches hold."""


class _Node:
    __slots__ = ("entries", "gid", "ino", "mode", "mtime_ns", "parent", "size", "target", "uid")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, parent: _Node | None) -> None:
        self.ino, self.mode, self.uid, self.gid = ino, mode, uid, gid
        self.size, self.mtime_ns, self.target = 0, time.time_ns(), b""
        self.parent = parent or self
        self.entries: dict[bytes, _Node] | None = {} if stat.S_ISDIR(mode) else None


class _Lent(Lent):
    """A part of memory that is always there."""

    def __init__(self, payload: memoryview) -> None:
        self.payload = payload

    def close(self) -> None:
        """Nothing to do."""


class NullVfs:
    """As much of mpifs.vfs.facade.Vfs as the workloads use.  Any thread; each change is one atomic
    operation on a dict."""

    has_xattrs = False

    def __init__(self) -> None:
        self.on_change = None
        self._numbers = itertools.count(2)
        self._files: dict[int, _Node] = {}
        self._listings: dict[int, list[tuple[bytes, _Node]]] = {}
        self._memory = memoryview(bytearray(b"\1" * (_MEMORY_BYTES + MIB)))
        self._root = _Node(1, stat.S_IFDIR | 0o755, os.geteuid(), os.getegid(), None)
        self._folders: dict[bytes, _Node] = {b"": self._root, b"/": self._root}

    def _find(self, path: bytes | None, fh: int | None = None) -> _Node:
        if path is None:
            return self._files[fh or 0]
        folder, _, name = path.rpartition(b"/")
        if not name:
            return self._root
        entries = self._entries(folder)
        try:
            return entries[name]
        except KeyError:
            raise PosixError(errno.ENOENT) from None

    def _entries(self, folder: bytes) -> dict[bytes, _Node]:
        node = self._folders.get(folder)
        if node is None or node.entries is None:
            raise PosixError(errno.ENOENT)
        return node.entries

    def _make(self, path: bytes, mode: int, caller: Caller) -> _Node:
        folder, _, name = path.rpartition(b"/")
        parent = self._folders.get(folder)
        if parent is None or parent.entries is None:
            raise PosixError(errno.ENOENT)
        node = _Node(next(self._numbers), mode, caller.uid, caller.gid, parent)
        parent.entries[name] = node
        return node

    def _open(self, node: _Node) -> Opened:
        number = next(self._numbers)
        self._files[number] = node
        return Opened(number, False, True)

    def getattr(self, path: bytes | None, fh: int | None = None) -> Stat:
        """stat(2)."""
        return _stat_of(self._find(path, fh))

    def mkdir(self, path: bytes, mode: int, caller: Caller) -> None:
        """mkdir(2)."""
        self._folders[path] = self._make(path, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def mknod(self, path: bytes, mode: int, rdev: int, caller: Caller) -> None:
        """mknod(2)."""
        self._make(path, mode, caller)

    def symlink(self, target: bytes, path: bytes, caller: Caller) -> None:
        """symlink(2)."""
        self._make(path, stat.S_IFLNK | 0o777, caller).target = target

    def readlink(self, path: bytes) -> bytes:
        """readlink(2)."""
        return self._find(path).target

    def unlink(self, path: bytes) -> None:
        """unlink(2)."""
        folder, _, name = path.rpartition(b"/")
        if self._entries(folder).pop(name, None) is None:
            raise PosixError(errno.ENOENT)

    def rmdir(self, path: bytes) -> None:
        """rmdir(2)."""
        if self._entries(path):
            raise PosixError(errno.ENOTEMPTY)
        self.unlink(path)
        del self._folders[path]

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """rename(2) of what is no folder."""
        node = self._find(old)
        if node.entries is not None:
            raise PosixError(errno.EXDEV)
        folder, _, name = new.rpartition(b"/")
        self._entries(folder)[name] = node
        self.unlink(old)

    def hide(self, path: bytes, hidden: bytes, keeps_name: bool) -> None:
        """The FUSE library's name for an open file that was removed."""
        self.rename(path, hidden)

    def chmod(self, path: bytes | None, mode: int, fh: int | None, caller: Caller) -> None:
        """chmod(2)."""
        node = self._find(path, fh)
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)

    def chown(self, path: bytes | None, uid: int, gid: int, fh: int | None, caller: Caller) -> None:
        """chown(2)."""
        node = self._find(path, fh)
        node.uid = node.uid if uid == -1 else uid
        node.gid = node.gid if gid == -1 else gid

    def utimens(
        self, path: bytes | None, atime: int | None, mtime: int | None, fh: int | None = None
    ) -> None:
        """utimensat(2); the access time is not kept."""
        if mtime is not None:
            self._find(path, fh).mtime_ns = time.time_ns() if mtime == TIME_NOW else mtime

    def truncate(
        self, path: bytes | None, size: int, fh: int | None = None, caller: Caller | None = None
    ) -> None:
        """truncate(2)."""
        self._find(path, fh).size = size

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """There are none; the kernel asks all the same, and `ls -l` stops asking for access lists
        once it has heard, as from mpifs, that there never are any."""
        is_list = name.startswith(b"system.posix_acl_")
        raise PosixError(errno.EOPNOTSUPP if is_list else errno.ENODATA)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        """Refused."""
        raise PosixError(errno.EOPNOTSUPP)

    def listxattr(self, path: bytes) -> list[bytes]:
        """There are none."""
        return []

    def statfs(self) -> SpaceUse:
        """Room enough."""
        return SpaceUse(1 << 50, 1 << 50, 1, 1 << 30)

    def create(self, path: bytes, mode: int, flags: int, caller: Caller) -> Opened:
        """open(2) of a new file."""
        return self._open(self._make(path, stat.S_IFREG | stat.S_IMODE(mode), caller))

    def open(self, path: bytes, flags: int, caller: Caller | None = None) -> Opened:
        """open(2) of a file that is there."""
        node = self._find(path)
        if flags & os.O_TRUNC:
            node.size = 0
        return self._open(node)

    def read(self, fh: int, into: memoryview, offset: int) -> int:
        """pread(2): one copy, as a file system that has the data in memory needs."""
        length = min(len(into), self._files[fh].size - offset)
        if length <= 0:
            return 0
        start = offset % _MEMORY_BYTES
        into[:length] = self._memory[start : start + length]
        return length

    def lend(self, fh: int, size: int, offset: int) -> Lent | None:
        """The same without the copy."""
        length = min(size, self._files[fh].size - offset)
        start = offset % _MEMORY_BYTES
        return _Lent(self._memory[start : start + length]) if length > 0 else None

    def write(self, fh: int, data: memoryview, offset: int, caller: Caller | None = None) -> int:
        """pwrite(2): nothing but the size is kept."""
        node = self._files[fh]
        length = len(data)
        node.size = max(node.size, offset + length)
        return length

    def flush(self, fh: int) -> None:
        """close(2)."""

    def fsync(self, fh: int, datasync: bool = False) -> None:
        """fsync(2)."""

    def release(self, fh: int) -> None:
        """The last close of a handle."""
        del self._files[fh]

    def opendir(self, path: bytes) -> int:
        """opendir(3)."""
        folder, number = self._find(path), next(self._numbers)
        entries = list((folder.entries or {}).items())
        self._listings[number] = [(b".", folder), (b"..", folder.parent), *entries]
        return number

    def readdir(
        self, fh: int, offset: int = 0, plus: bool = True
    ) -> Iterator[tuple[bytes, Stat, int]]:
        """Entries with their attributes, as they were when the folder was opened."""
        listing = self._listings[fh]
        for position in range(offset, len(listing)):
            name, node = listing[position]
            yield name, _stat_of(node), position + 1

    def releasedir(self, fh: int) -> None:
        """closedir(3)."""
        del self._listings[fh]

    def fsyncdir(self, fh: int, datasync: bool = False) -> None:
        """fsync(2) of a directory."""


def _stat_of(node: _Node) -> Stat:
    time_ns, size = node.mtime_ns, len(node.target) or node.size
    is_folder = node.entries is not None
    return Stat(
        node.ino, node.mode, 2 if is_folder else 1, node.uid, node.gid, 0, size,
        (size + 511) // 512, MIB, time_ns, time_ns, time_ns,
    )  # fmt: skip
