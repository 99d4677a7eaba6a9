"""What the state machine drives: a few file system calls, the same for a folder and for the Vfs.

Names are paths of bytes relative to the driver's root, b"" being the root itself; every failure is
an OSError with errno.  `Facts` holds what both sides must agree on.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.mount.calls import fallocate as sys_fallocate
from tests.mount.calls import renameat2


class Facts(NamedTuple):
    """Attributes that are compared."""

    mode: int
    nlink: int
    size: int
    target: bytes | None


class Driver(Protocol):
    """The file system under test, or its oracle."""

    def create(self, name: bytes, mode: int) -> Any: ...
    def open(self, name: bytes, flags: int) -> Any: ...
    def close(self, handle: Any) -> None: ...
    def read(self, handle: Any, offset: int, size: int) -> bytes: ...
    def write(self, handle: Any, offset: int, data: bytes) -> int: ...
    def map_write(self, handle: Any, offset: int, data: bytes) -> int: ...
    def ftruncate(self, handle: Any, size: int) -> None: ...
    def fallocate(self, handle: Any, mode: int, offset: int, length: int) -> None: ...
    def fsync(self, handle: Any) -> None: ...
    def fstat(self, handle: Any) -> tuple[int, int]: ...
    def truncate(self, name: bytes, size: int) -> None: ...
    def mkdir(self, name: bytes, mode: int) -> None: ...
    def rmdir(self, name: bytes) -> None: ...
    def symlink(self, target: bytes, name: bytes) -> None: ...
    def link(self, old: bytes, new: bytes) -> None: ...
    def unlink(self, name: bytes) -> None: ...
    def rename(self, old: bytes, new: bytes, flags: int) -> None: ...
    def chmod(self, name: bytes, mode: int) -> None: ...
    def utimes(self, name: bytes, atime_ns: int, mtime_ns: int) -> None: ...
    def times(self, name: bytes) -> tuple[int, int]: ...
    def setxattr(self, name: bytes, key: bytes, value: bytes, flags: int) -> None: ...
    def removexattr(self, name: bytes, key: bytes) -> None: ...
    def xattrs(self, name: bytes) -> dict[bytes, bytes]: ...
    def facts(self, name: bytes) -> Facts: ...
    def entries(self, name: bytes) -> list[bytes]: ...
    def remount(self) -> None: ...


class FolderDriver:
    """System calls below a folder: in the mount, or on the local disk as oracle."""

    def __init__(self, root: Path, remount: Callable[[], None] | None = None) -> None:
        self._root, self._remount = os.fsencode(root), remount

    def _path(self, name: bytes) -> bytes:
        return os.path.join(self._root, name) if name else self._root

    def create(self, name: bytes, mode: int) -> int:
        return os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open(self, name: bytes, flags: int) -> int:
        handle = os.open(self._path(name), flags)
        if stat.S_ISDIR(os.fstat(handle).st_mode):  # the machine opens files only
            os.close(handle)
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return handle

    def close(self, handle: int) -> None:
        os.close(handle)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        parts = b""
        while len(parts) < size and (
            part := os.pread(handle, size - len(parts), offset + len(parts))
        ):
            parts += part
        return parts

    def write(self, handle: int, offset: int, data: bytes) -> int:
        return os.pwrite(handle, data, offset)

    def map_write(self, handle: int, offset: int, data: bytes) -> int:
        size = os.fstat(handle).st_size
        data = data[: max(0, size - offset)]
        if data:
            with mmap.mmap(handle, size) as view:
                view[offset : offset + len(data)] = data
        return len(data)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        sys_fallocate(handle, mode, offset, length)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def fstat(self, handle: int) -> tuple[int, int]:
        info = os.fstat(handle)
        return info.st_size, info.st_nlink

    def truncate(self, name: bytes, size: int) -> None:
        os.truncate(self._path(name), size)

    def mkdir(self, name: bytes, mode: int) -> None:
        os.mkdir(self._path(name), mode)

    def rmdir(self, name: bytes) -> None:
        os.rmdir(self._path(name))

    def symlink(self, target: bytes, name: bytes) -> None:
        os.symlink(target, self._path(name))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self._path(old), self._path(new), follow_symlinks=False)

    def unlink(self, name: bytes) -> None:
        os.unlink(self._path(name))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        renameat2(self._path(old), self._path(new), flags)

    def chmod(self, name: bytes, mode: int) -> None:
        os.chmod(self._path(name), mode)

    def utimes(self, name: bytes, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._path(name), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def times(self, name: bytes) -> tuple[int, int]:
        info = os.lstat(self._path(name))
        return info.st_atime_ns, info.st_mtime_ns

    def setxattr(self, name: bytes, key: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._path(name), key, value, flags, follow_symlinks=False)

    def removexattr(self, name: bytes, key: bytes) -> None:
        os.removexattr(self._path(name), key, follow_symlinks=False)

    def xattrs(self, name: bytes) -> dict[bytes, bytes]:
        path = self._path(name)
        if stat.S_ISLNK(os.lstat(path).st_mode):
            return {}
        return {os.fsencode(key): os.getxattr(path, key) for key in os.listxattr(path)}

    def facts(self, name: bytes) -> Facts:
        path = self._path(name)
        info = os.lstat(path)
        is_folder = stat.S_ISDIR(info.st_mode)
        target = os.readlink(path) if stat.S_ISLNK(info.st_mode) else None
        return Facts(info.st_mode, info.st_nlink, 0 if is_folder else info.st_size, target)

    def entries(self, name: bytes) -> list[bytes]:
        return sorted(os.listdir(self._path(name)))

    def remount(self) -> None:
        if self._remount:
            self._remount()
