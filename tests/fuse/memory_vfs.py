"""A Vfs on dicts: the contract of mpifs.vfs, small enough to be obviously right, for mount tests.

It has true hard links, hidden removed files and orphans, and calls `on_change(names, handles)` after
its lock is released, for every other name of a file with several.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mpifs.core.types import TIME_NOW, Caller, SpaceUse, Stat

HIDDEN = re.compile(rb"/\.fuse_hidden[0-9a-f]{16}\Z")


class Opened(NamedTuple):
    fh: int
    direct_io: bool
    keep_cache: bool


class Node:
    def __init__(self, ino: int, mode: int, caller: Caller) -> None:
        now = time.time_ns()
        self.ino, self.mode, self.uid, self.gid = ino, mode, caller.uid, caller.gid
        self.nlink, self.rdev = 1, 0
        self.atime = self.mtime = self.ctime = now
        self.data = bytearray()
        self.target = b""
        self.entries: dict[bytes, Node] = {}
        self.parent: Node = self
        self.xattrs: dict[bytes, bytes] = {}
        self.keep_cache = True

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def stat(self) -> Stat:
        size = len(self.target) if stat.S_ISLNK(self.mode) else len(self.data)
        return Stat(
            self.ino, self.mode, self.nlink, self.uid, self.gid, self.rdev, size,
            (size + 511) // 512, 1 << 20, self.atime, self.mtime, self.ctime,
        )  # fmt: skip


def fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class MemoryVfs:
    """See the contract.  `lock` guards all; on_change is called without it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.on_change: Callable[..., None] = lambda names, handles=(): None
        self.numbers = itertools.count(2)
        self.handles: dict[int, tuple[Node, int]] = {}
        self.handle_numbers = itertools.count(1)
        self.hidden: dict[bytes, Node] = {}
        self.root = Node(1, stat.S_IFDIR | 0o755, Caller(os.geteuid(), os.getegid()))
        self.root.nlink = 2
        self.calls: dict[str, int] = {}

    # names

    def count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def find(self, path: bytes | None, fh: int | None = None) -> Node:
        if fh is not None:
            return self.handles[fh][0]
        if path is None:
            raise fail(errno.EBADF)
        if path in self.hidden:
            return self.hidden[path]
        node = self.root
        for name in path.split(b"/"):
            if not name:
                continue
            if not node.is_dir:
                raise fail(errno.ENOTDIR)
            if len(name) > 255:
                raise fail(errno.ENAMETOOLONG)
            if name not in node.entries:
                raise fail(errno.ENOENT)
            node = node.entries[name]
        return node

    def place(self, path: bytes) -> tuple[Node, bytes]:
        folder, _, name = path.rpartition(b"/")
        if len(name) > 255:
            raise fail(errno.ENAMETOOLONG)
        return self.find(folder), name

    def names_of(self, node: Node) -> list[bytes]:
        found: list[bytes] = []
        stack: list[tuple[bytes, Node]] = [(b"", self.root)]
        while stack:
            path, folder = stack.pop()
            for name, child in folder.entries.items():
                if child is node:
                    found.append(path + b"/" + name)
                if child.is_dir:
                    stack.append((path + b"/" + name, child))
        return found

    def changed(self, node: Node, force: bool = False) -> None:
        if node.is_dir or (node.nlink < 2 and not force):
            return
        with self.lock:
            names = self.names_of(node)
            handles = [fh for fh, (other, _) in self.handles.items() if other is node]
        self.on_change(names, handles)

    def add(self, path: bytes, mode: int, caller: Caller) -> Node:
        with self.lock:
            folder, name = self.place(path)
            if name in folder.entries:
                raise fail(errno.EEXIST)
            node = Node(next(self.numbers), mode, caller)
            if folder.mode & stat.S_ISGID:
                node.gid = folder.gid
            node.parent = folder
            if node.is_dir:
                node.nlink = 2
                folder.nlink += 1
            folder.entries[name] = node
            folder.mtime = folder.ctime = time.time_ns()
            return node

    def getattr(self, path: bytes | None, fh: int | None = None) -> Stat:
        self.count("getattr")
        if path == b"/boom":
            raise RuntimeError("an unexpected failure, wanted by the test")
        if path == b"/exit":
            raise SystemExit("as if")
        if path == b"/no-errno":
            raise OSError("without errno")
        with self.lock:
            return self.find(path, fh).stat()

    def readlink(self, path: bytes) -> bytes:
        return self.find(path).target

    def mknod(self, path: bytes, mode: int, rdev: int, caller: Caller) -> None:
        self.add(path, mode, caller).rdev = rdev

    def mkdir(self, path: bytes, mode: int, caller: Caller) -> None:
        self.add(path, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def symlink(self, target: bytes, path: bytes, caller: Caller) -> None:
        self.add(path, stat.S_IFLNK | 0o777, caller).target = target

    def link(self, source: bytes, path: bytes) -> None:
        with self.lock:
            node = self.find(source)
            folder, name = self.place(path)
            if name in folder.entries:
                raise fail(errno.EEXIST)
            folder.entries[name] = node
            node.nlink += 1
            node.keep_cache = False
            node.ctime = time.time_ns()
        self.changed(node)

    def unlink(self, path: bytes) -> None:
        with self.lock:
            if self.hidden.pop(path, None) is not None:
                return
            folder, name = self.place(path)
            if name not in folder.entries:
                raise fail(errno.ENOENT)
            node = folder.entries.pop(name)
            node.nlink -= 1
            node.ctime = time.time_ns()
        self.changed(node, force=True)

    def rmdir(self, path: bytes) -> None:
        with self.lock:
            node = self.find(path)
            if node.entries:
                raise fail(errno.ENOTEMPTY)
            folder, name = self.place(path)
            del folder.entries[name]
            folder.nlink -= 1

    def hide(self, path: bytes, hidden: bytes, keeps_name: bool) -> None:
        with self.lock:
            self.hidden[hidden] = self.find(path)
        if not keeps_name:
            self.unlink(path)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        with self.lock:
            old_folder, old_name = self.place(old)
            new_folder, new_name = self.place(new)
            node = old_folder.entries.get(old_name)
            there = new_folder.entries.get(new_name)
            if node is None:
                raise fail(errno.ENOENT)
            if flags & 1 and there is not None:
                raise fail(errno.EEXIST)
            if flags & 2:
                if there is None:
                    raise fail(errno.ENOENT)
                old_folder.entries[old_name], new_folder.entries[new_name] = there, node
                return
            if there is node:
                return
            if there is not None:
                if there.entries:
                    raise fail(errno.ENOTEMPTY)
                there.nlink -= 2 if there.is_dir else 1
            del old_folder.entries[old_name]
            new_folder.entries[new_name] = node
            node.ctime = time.time_ns()
        self.changed(node)
        if there is not None:
            self.changed(there, force=True)

    # attributes

    def chmod(self, path: bytes | None, mode: int, fh: int | None, caller: Caller) -> None:
        node = self.find(path, fh)
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.ctime = time.time_ns()
        self.changed(node)

    def chown(self, path: bytes | None, uid: int, gid: int, fh: int | None, caller: Caller) -> None:
        node = self.find(path, fh)
        node.uid = node.uid if uid == -1 else uid
        node.gid = node.gid if gid == -1 else gid
        self.changed(node)

    def utimens(
        self, path: bytes | None, atime: int | None, mtime: int | None, fh: int | None = None
    ) -> None:
        node = self.find(path, fh)
        now = time.time_ns()
        if atime is not None:
            node.atime = now if atime == TIME_NOW else atime
        if mtime is not None:
            node.mtime = now if mtime == TIME_NOW else mtime
        node.ctime = now
        self.changed(node)

    def truncate(
        self, path: bytes | None, size: int, fh: int | None = None, caller: Caller | None = None
    ) -> None:
        self.count("ftruncate" if fh is not None else "truncate")
        with self.lock:
            node = self.find(path, fh)
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
            node.mtime = node.ctime = time.time_ns()
        self.changed(node)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        if name.startswith(b"system.posix_acl_"):
            raise fail(errno.EOPNOTSUPP)
        node = self.find(path)
        if flags & 1 and name in node.xattrs:
            raise fail(errno.EEXIST)
        if flags & 2 and name not in node.xattrs:
            raise fail(errno.ENODATA)
        node.xattrs[name] = value
        self.changed(node)

    has_xattrs = True  # so that every name comes here

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        if name.startswith(b"system.posix_acl_"):
            raise fail(errno.EOPNOTSUPP)
        node = self.find(path)
        if name not in node.xattrs:
            raise fail(errno.ENODATA)
        return node.xattrs[name]

    def listxattr(self, path: bytes) -> list[bytes]:
        return list(self.find(path).xattrs)

    def removexattr(self, path: bytes, name: bytes) -> None:
        if self.find(path).xattrs.pop(name, None) is None:
            raise fail(errno.ENODATA)

    def statfs(self) -> SpaceUse:
        return SpaceUse(1 << 30, 1 << 29, 10, 1000)

    # open files

    def _open(self, node: Node, flags: int) -> Opened:
        fh = next(self.handle_numbers)
        self.handles[fh] = (node, flags)
        return Opened(fh, False, node.keep_cache)

    def create(self, path: bytes, mode: int, flags: int, caller: Caller) -> Opened:
        return self._open(self.add(path, stat.S_IFREG | stat.S_IMODE(mode), caller), flags)

    def open(self, path: bytes, flags: int, caller: Caller) -> Opened:
        node = self.find(path)
        if flags & os.O_TRUNC:
            self.count("open_truncates")
            with self.lock:
                node.data.clear()
                node.mtime = node.ctime = time.time_ns()
            self.changed(node)
        return self._open(node, flags)

    def read(self, fh: int, into: memoryview, offset: int) -> int:
        self.count("read")
        with self.lock:
            part = self.handles[fh][0].data[offset : offset + len(into)]
        into[: len(part)] = part
        return len(part)

    def lend(self, fh: int, size: int, offset: int) -> None:
        """Always `read`."""

    def write(self, fh: int, data: memoryview, offset: int, caller: Caller) -> int:
        self.count("write")
        node = self.handles[fh][0]
        self.changed(node)  # other names' dirty mapped pages come in first, not over this write
        with self.lock:
            if offset > len(node.data):
                node.data.extend(bytes(offset - len(node.data)))
            node.data[offset : offset + len(data)] = data
            node.mtime = node.ctime = time.time_ns()
        self.changed(node)
        return len(data)

    def flush(self, fh: int) -> None:
        self.count("flush")

    def release(self, fh: int) -> None:
        del self.handles[fh]

    def fsync(self, fh: int, datasync: bool = False) -> None:
        """Takes as many seconds as the file says after `takes`."""
        self.count("fsync")
        word, _, seconds = bytes(self.handles[fh][0].data[:20]).partition(b" ")
        if word == b"takes":
            time.sleep(float(seconds))

    def fallocate(self, fh: int, mode: int, offset: int, length: int, caller: Caller) -> None:
        if mode & ~3:
            raise fail(errno.EOPNOTSUPP)
        with self.lock:
            node = self.handles[fh][0]
            if mode & 2:
                end = min(offset + length, len(node.data))
                node.data[offset:end] = bytes(max(0, end - offset))
            elif not mode & 1 and offset + length > len(node.data):
                node.data.extend(bytes(offset + length - len(node.data)))
        self.changed(node)

    def lseek(self, fh: int, offset: int, whence: int) -> int:
        data = self.handles[fh][0].data
        if offset >= len(data):
            raise fail(errno.ENXIO)
        zeros = bytes(4096)
        block = offset // 4096
        while block * 4096 < len(data):
            is_hole = data[block * 4096 : block * 4096 + 4096] in (zeros,)
            if is_hole == (whence == os.SEEK_HOLE):
                return max(offset, block * 4096)
            block += 1
        if whence == os.SEEK_HOLE:
            return len(data)
        raise fail(errno.ENXIO)

    def copy_file_range(
        self, fh_in: int, at: int, fh_out: int, to: int, length: int, caller: Caller
    ) -> int:
        self.count("copy_file_range")
        with self.lock:
            part = bytes(self.handles[fh_in][0].data[at : at + length])
        return self.write(fh_out, memoryview(part), to, caller) if part else 0

    # folders

    def opendir(self, path: bytes) -> int:
        node = self.find(path)
        if not node.is_dir:
            raise fail(errno.ENOTDIR)
        return self._open(node, 0).fh

    def readdir(self, fh: int, offset: int, plus: bool = True) -> Iterator[tuple[bytes, Stat, int]]:
        self.count("readdir_plus" if plus else "readdir")
        folder = self.handles[fh][0]
        rows = [(b".", folder), (b"..", folder.parent), *folder.entries.items()]
        for position in range(offset, len(rows)):
            name, node = rows[position]
            yield name, node.stat(), position + 1

    def releasedir(self, fh: int) -> None:
        del self.handles[fh]

    def fsyncdir(self, fh: int, datasync: bool = False) -> None:
        self.count("fsyncdir")
