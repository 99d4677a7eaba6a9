"""The state machine's driver over the Vfs facade: no FUSE, no kernel, ranks over the loopback.

What the kernel checks before a file system is asked (types of names in rmdir, unlink and rename,
user xattrs on symlinks, the access mode of a descriptor) is checked here as the kernel does.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from mpifs.core.types import Caller
from tests.stateful.drivers import Facts

ROOT = Caller(0, 0)


def fail(number: int) -> OSError:
    """An error as the kernel gives it."""
    return OSError(number, os.strerror(number))


class Handle(NamedTuple):
    """An open file: the Vfs's number and how it was opened."""

    fh: int
    flags: int


class VfsDriver:
    """The calls of drivers.Driver; `reopen` closes the volume and gives the Vfs of the next mount."""

    def __init__(self, vfs: Any, reopen: Callable[[], Any] | None = None) -> None:
        self.vfs, self._reopen = vfs, reopen

    def _path(self, name: bytes) -> bytes:
        return b"/" + name

    def _mode(self, name: bytes) -> int:
        return int(self.vfs.getattr(self._path(name)).mode)

    def _exists(self, name: bytes) -> bool:
        try:
            self._mode(name)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def _absent(self, name: bytes) -> None:
        if self._exists(name):
            raise fail(errno.EEXIST)

    def _follow(self, name: bytes) -> bytes:
        for _ in range(41):
            if not stat.S_ISLNK(self._mode(name)):
                return name
            name = os.path.normpath(
                os.path.join(os.path.dirname(name), self.vfs.readlink(self._path(name)))
            )
        raise fail(errno.ELOOP)

    def create(self, name: bytes, mode: int) -> Handle:
        self._absent(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        return Handle(self.vfs.create(self._path(name), stat.S_IFREG | mode, flags, ROOT), flags)

    def open(self, name: bytes, flags: int) -> Handle:
        name = self._follow(name)
        if stat.S_ISDIR(self._mode(name)):
            raise fail(errno.EISDIR)
        return Handle(self.vfs.open(self._path(name), flags, ROOT), flags)

    def close(self, handle: Handle) -> None:
        self.vfs.flush(handle.fh)
        self.vfs.release(handle.fh)

    def read(self, handle: Handle, offset: int, size: int) -> bytes:
        if handle.flags & os.O_ACCMODE == os.O_WRONLY:
            raise fail(errno.EBADF)
        buffer = bytearray(size)
        count = self.vfs.read(handle.fh, memoryview(buffer), offset)
        return bytes(buffer[:count])

    def write(self, handle: Handle, offset: int, data: bytes) -> int:
        if handle.flags & os.O_ACCMODE == os.O_RDONLY:
            raise fail(errno.EBADF)
        if handle.flags & os.O_APPEND:
            offset = self.fstat(handle)[0]
        return int(self.vfs.write(handle.fh, memoryview(data), offset, ROOT))

    def map_write(self, handle: Handle, offset: int, data: bytes) -> int:
        size = self.fstat(handle)[0]
        data = data[: max(0, size - offset)]
        if data and handle.flags & os.O_ACCMODE != os.O_RDWR:
            raise fail(errno.EACCES)
        if data:
            self.vfs.write(handle.fh, memoryview(data), offset, ROOT)
        return len(data)

    def ftruncate(self, handle: Handle, size: int) -> None:
        if handle.flags & os.O_ACCMODE == os.O_RDONLY:
            raise fail(errno.EINVAL)
        self.vfs.truncate(None, size, handle.fh, ROOT)

    def fallocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        if handle.flags & os.O_ACCMODE == os.O_RDONLY:
            raise fail(errno.EBADF)
        self.vfs.fallocate(handle.fh, mode, offset, length)

    def fsync(self, handle: Handle) -> None:
        self.vfs.fsync(handle.fh)

    def fstat(self, handle: Handle) -> tuple[int, int]:
        info = self.vfs.getattr(None, handle.fh)
        return info.size, info.nlink

    def truncate(self, name: bytes, size: int) -> None:
        name = self._follow(name)
        if stat.S_ISDIR(self._mode(name)):
            raise fail(errno.EISDIR)
        self.vfs.truncate(self._path(name), size, None, ROOT)

    def mkdir(self, name: bytes, mode: int) -> None:
        self._absent(name)
        self.vfs.mkdir(self._path(name), mode, ROOT)

    def rmdir(self, name: bytes) -> None:
        if not stat.S_ISDIR(self._mode(name)):
            raise fail(errno.ENOTDIR)
        self.vfs.rmdir(self._path(name))

    def symlink(self, target: bytes, name: bytes) -> None:
        self._absent(name)
        self.vfs.symlink(target, self._path(name), ROOT)

    def link(self, old: bytes, new: bytes) -> None:
        is_folder = stat.S_ISDIR(self._mode(old))
        self._absent(new)
        self._mode(os.path.dirname(new))
        if is_folder:
            raise fail(errno.EPERM)
        self.vfs.link(self._path(old), self._path(new))

    def unlink(self, name: bytes) -> None:
        if stat.S_ISDIR(self._mode(name)):
            raise fail(errno.EISDIR)
        self.vfs.unlink(self._path(name))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.vfs.rename(self._path(old), self._path(new), flags)

    def chmod(self, name: bytes, mode: int) -> None:
        self.vfs.chmod(self._path(self._follow(name)), mode)

    def utimes(self, name: bytes, atime_ns: int, mtime_ns: int) -> None:
        self.vfs.utimens(self._path(name), atime_ns, mtime_ns)

    def times(self, name: bytes) -> tuple[int, int]:
        info = self.vfs.getattr(self._path(name))
        return info.atime_ns, info.mtime_ns

    def setxattr(self, name: bytes, key: bytes, value: bytes, flags: int) -> None:
        if stat.S_ISLNK(self._mode(name)):
            raise fail(errno.EPERM)
        self.vfs.setxattr(self._path(name), key, value, flags)

    def removexattr(self, name: bytes, key: bytes) -> None:
        if stat.S_ISLNK(self._mode(name)):
            raise fail(errno.EPERM)
        self.vfs.removexattr(self._path(name), key)

    def xattrs(self, name: bytes) -> dict[bytes, bytes]:
        path = self._path(name)
        if stat.S_ISLNK(self._mode(name)):
            return {}
        return {key: self.vfs.getxattr(path, key) for key in self.vfs.listxattr(path)}

    def facts(self, name: bytes) -> Facts:
        path = self._path(name)
        info = self.vfs.getattr(path)
        is_folder = stat.S_ISDIR(info.mode)
        target = self.vfs.readlink(path) if stat.S_ISLNK(info.mode) else None
        return Facts(info.mode, info.nlink, 0 if is_folder else info.size, target)

    def entries(self, name: bytes) -> list[bytes]:
        if not stat.S_ISDIR(self._mode(name)):
            raise fail(errno.ENOTDIR)
        fh = self.vfs.opendir(self._path(name))
        try:
            names = [entry[0] for entry in self.vfs.readdir(fh, 0)]
        finally:
            self.vfs.releasedir(fh)
        return sorted(entry for entry in names if entry not in {b".", b".."})

    def remount(self) -> None:
        if self._reopen:
            self.vfs = self._reopen()
