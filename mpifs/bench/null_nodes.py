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
from collections.abc import Callable, Iterator

from mpifs.core.errors import PosixError
from mpifs.core.limits import MIB
from mpifs.core.types import TIME_NOW, Caller, SpaceUse, Stat
from mpifs.vfs.cache import Lent
from mpifs.vfs.change import Change

_MEMORY_BYTES = 16 * MIB
"""Reads are answered from here: more than the processor's nearer caches hold."""


class _Node:
    __slots__ = (
        "entries", "gid", "ino", "is_removed", "mode", "mtime_ns", "parent", "size", "target",
        "uid",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int, parent: _Node | None) -> None:
        self.ino, self.mode, self.uid, self.gid = ino, mode, uid, gid
        self.size, self.mtime_ns, self.target = 0, time.time_ns(), b""
        self.parent = parent or self
        self.is_removed = False
        self.entries: dict[bytes, _Node] | None = {} if stat.S_ISDIR(mode) else None


class _Lent(Lent):
    """A part of memory that is always there."""

    def __init__(self, payload: memoryview) -> None:
        self.payload = payload

    def close(self) -> None:
        """Nothing to do."""


class NullNodes:
    """As much of mpifs.vfs.nodes.Nodes as the workloads use.  Any thread; each change is one atomic
    operation on a dict."""

    has_xattrs = False

    def __init__(self) -> None:
        self.on_change = None
        self._has_direct_writers = False
        self._numbers = itertools.count(2)
        self._files: dict[int, _Node] = {}
        self._listings: dict[int, list[tuple[bytes, _Node]]] = {}
        self._memory = memoryview(bytearray(b"\1" * (_MEMORY_BYTES + MIB)))
        root = _Node(1, stat.S_IFDIR | 0o755, os.geteuid(), os.getegid(), None)
        self._nodes: dict[int, _Node] = {1: root}

    def _entries(self, ino: int) -> dict[bytes, _Node]:
        entries = self._nodes[ino].entries
        if entries is None:
            raise PosixError(errno.ENOTDIR)
        return entries

    def _make(self, parent: int, name: bytes, mode: int, caller: Caller) -> _Node:
        node = _Node(next(self._numbers), mode, caller.uid, caller.gid, self._nodes[parent])
        self._nodes[node.ino] = self._entries(parent)[name] = node
        return node

    def lookup(self, parent: int, name: bytes) -> Stat | None:
        """A name's node."""
        node = self._entries(parent).get(name)
        return None if node is None else _stat_of(node)

    def forget(self, ino: int) -> None:
        """A node of a removed file goes."""
        node = self._nodes.get(ino)
        if node is not None and node.is_removed:
            self._nodes.pop(ino, None)

    def getattr(self, ino: int) -> Stat:
        """stat(2)."""
        return _stat_of(self._nodes[ino])

    def setattr(self, ino: int, change: Change) -> Stat:
        """chmod(2) and its like; the access time is not kept."""
        node = self._nodes[ino]
        if change.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(change.mode)
        if change.uid is not None:
            node.uid = change.uid
        if change.gid is not None:
            node.gid = change.gid
        if change.size is not None:
            node.size = change.size
        if change.mtime_ns is not None:
            is_now = change.mtime_ns == TIME_NOW
            node.mtime_ns = time.time_ns() if is_now else change.mtime_ns
        return _stat_of(node)

    def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Stat:
        """mknod(2), mkdir(2), symlink(2)."""
        node = self._make(parent, name, mode, caller)
        node.target = target
        return _stat_of(node)

    def readlink(self, ino: int) -> bytes:
        """readlink(2)."""
        return self._nodes[ino].target

    def unlink(self, parent: int, name: bytes) -> None:
        """unlink(2)."""
        node = self._entries(parent).pop(name, None)
        if node is None:
            raise PosixError(errno.ENOENT)
        node.is_removed = True

    def rmdir(self, parent: int, name: bytes) -> None:
        """rmdir(2)."""
        node = self._entries(parent).get(name)
        if node is not None and node.entries:
            raise PosixError(errno.ENOTEMPTY)
        self.unlink(parent, name)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """rename(2)."""
        self._entries(new_parent)[new_name] = self._entries(parent).pop(name)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """There are none; the kernel asks all the same."""
        raise PosixError(errno.ENODATA)

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Refused."""
        raise PosixError(errno.EOPNOTSUPP)

    def listxattr(self, ino: int) -> list[bytes]:
        """There are none."""
        return []

    def statfs(self) -> SpaceUse:
        """Room enough."""
        return SpaceUse(1 << 50, 1 << 50, 1, 1 << 30)

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Stat, int, bool]:
        """open(2) of a new file."""
        node = self._make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
        return (_stat_of(node), *self.open(node.ino, flags))

    def use_direct_writers(self) -> None:
        """As with a volume, who only writes goes past the kernel's page cache."""
        self._has_direct_writers = True

    def open(self, ino: int, flags: int, *, kills: bool = False) -> tuple[int, bool]:
        """open(2) of a file that is there."""
        node, number = self._nodes[ino], next(self._numbers)
        if flags & os.O_TRUNC:
            node.size = 0
        self._files[number] = node
        return number, self._has_direct_writers and flags & os.O_ACCMODE == os.O_WRONLY

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

    def write(self, fh: int, data: memoryview, offset: int, kills: bool = False) -> int:
        """pwrite(2): nothing but the size is kept."""
        node = self._files[fh]
        length = len(data)
        node.size = max(node.size, offset + length)
        return length

    def take(
        self,
        fh: int,
        memory: bytearray,
        size: int,
        offset: int,
        exchange: Callable[[bytearray], None],
        kills: bool = False,
    ) -> bool:
        """Nothing is kept, so there is nothing to exchange."""
        return False

    def flush(self, fh: int) -> None:
        """close(2)."""

    def fsync(self, fh: int, datasync: bool = False) -> None:
        """fsync(2)."""

    def release(self, fh: int) -> None:
        """The last close of a handle."""
        del self._files[fh]

    def opendir(self, ino: int) -> int:
        """opendir(3)."""
        folder, number = self._nodes[ino], next(self._numbers)
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
