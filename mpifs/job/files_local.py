"""Files of this machine, and of a mounted volume: through its mount point like any program.

Going through the kernel keeps its caches right; a second way into a mounted volume would leave
them stale.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from mpifs.core.checksum import Buffer
from mpifs.core.errors import PosixError
from mpifs.job.control import ControlClient
from mpifs.job.files_protocol import Attributes, OpenFile, Wanted, is_copied_xattr
from mpifs.job.files_remote import remote_layout

LAYOUT_XATTR = "user.mpifs.layout"


def attributes_of(found: os.stat_result) -> Attributes:
    """Attributes from an os.stat_result."""
    return Attributes(
        found.st_dev,
        found.st_ino,
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_rdev,
        found.st_size,
        found.st_blocks,
        found.st_atime_ns,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


class LocalOpenFile:
    """An OpenFile on a file descriptor, which it owns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def attributes(self) -> Attributes:
        """See OpenFile."""
        return attributes_of(os.fstat(self._descriptor))

    def read_into(self, into: memoryview, offset: int) -> int:
        """See OpenFile."""
        return os.preadv(self._descriptor, [into], offset)

    def write(self, data: Buffer, offset: int) -> None:
        """See OpenFile."""
        left = memoryview(data)
        while left:
            count = os.pwrite(self._descriptor, left, offset)
            left, offset = left[count:], offset + count

    def seek(self, offset: int, whence: int) -> int:
        """See OpenFile."""
        return os.lseek(self._descriptor, offset, whence)

    def truncate(self, size: int) -> None:
        """See OpenFile."""
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        """See OpenFile."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class LocalFiles:
    """Files below `root`; with root b"" paths are as the user gave them.  Thread-safe."""

    def __init__(self, root: bytes = b"") -> None:
        self.root = root

    def real(self, path: bytes) -> bytes:
        """The path on this machine."""
        return self.root + path

    def stat(self, path: bytes, *, follow: bool = False) -> Attributes:
        """See Files."""
        return attributes_of(os.stat(self.real(path), follow_symlinks=follow))

    def scan(self, path: bytes) -> Iterator[tuple[bytes, Attributes]]:
        """See Files.  A name that goes away meanwhile is left out."""
        with os.scandir(self.real(path)) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, attributes_of(os.lstat(entry.path))

    def open(self, path: bytes, *, follow: bool = False) -> OpenFile:
        """See Files."""
        # O_NONBLOCK: a FIFO put in the file's place meanwhile must not hold us for ever.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(self.real(path), flags)
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            raise PosixError(errno.EINVAL, "not a regular file")
        return LocalOpenFile(descriptor)

    def create(self, path: bytes, mode: int) -> OpenFile:
        """See Files."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return LocalOpenFile(os.open(self.real(path), flags, mode))

    def mkdir(self, path: bytes, mode: int) -> None:
        """See Files."""
        os.mkdir(self.real(path), mode)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        """See Files."""
        os.mknod(self.real(path), mode, rdev)

    def symlink(self, target: bytes, path: bytes) -> None:
        """See Files."""
        os.symlink(target, self.real(path))

    def readlink(self, path: bytes) -> bytes:
        """See Files."""
        return os.readlink(self.real(path))

    def link(self, existing: bytes, path: bytes) -> None:
        """See Files."""
        os.link(self.real(existing), self.real(path), follow_symlinks=False)

    def rename(self, old: bytes, new: bytes) -> None:
        """See Files."""
        os.rename(self.real(old), self.real(new))

    def unlink(self, path: bytes) -> None:
        """See Files."""
        os.unlink(self.real(path))

    def rmdir(self, path: bytes) -> None:
        """See Files."""
        os.rmdir(self.real(path))

    def set_attributes(self, path: bytes, wanted: Wanted) -> None:
        """See Files."""
        real = self.real(path)
        if wanted.owner is not None:
            os.chown(real, *wanted.owner, follow_symlinks=False)
        if wanted.mode is not None and not stat.S_ISLNK(os.lstat(real).st_mode):
            os.chmod(real, wanted.mode)
        if wanted.times_ns is not None:
            os.utime(real, ns=wanted.times_ns, follow_symlinks=False)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        """See Files."""
        real, found = self.real(path), {}
        try:
            names = os.listxattr(real, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.EPERM):
                return {}
            raise
        for name in map(os.fsencode, names):
            if is_copied_xattr(name):
                try:
                    found[name] = os.getxattr(real, name, follow_symlinks=False)
                except OSError as error:
                    if error.errno != errno.ENODATA:  # taken away meanwhile.
                        raise
        return found

    def set_xattr(self, path: bytes, name: bytes, value: bytes) -> None:
        """See Files."""
        os.setxattr(self.real(path), name, value, follow_symlinks=False)

    def layout(self, path: bytes) -> dict[str, Any]:
        """See Files: a file of this machine has none."""
        raise PosixError(errno.ENOTSUP, "this file lies in no mpifs volume")

    def sync(self) -> None:
        """See Files: the kernel writes back in its own time, as after cp."""


class MountedFiles(LocalFiles):
    """Files of a mounted volume: through the kernel, but for what only rank 0 can tell.

    `client` is None where the mount is another user's, whose control socket is closed to us.
    """

    def __init__(self, mountpoint: bytes, client: ControlClient | None) -> None:
        super().__init__(mountpoint)
        self._client = client

    def layout(self, path: bytes) -> dict[str, Any]:
        """See Files.  Without a control socket, the file's attribute; a long one does not fit."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.real(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                os.fsync(descriptor)  # mmap: the kernel may hold pages that rank 0 has not seen.
            finally:
                os.close(descriptor)
        if self._client is not None:
            return remote_layout(self._client, path)
        found: dict[str, Any] = json.loads(os.getxattr(self.real(path), LAYOUT_XATTR))
        return found

    def sync(self) -> None:
        """See Files."""
        if self._client is not None:
            self._client.call("files.sync")
