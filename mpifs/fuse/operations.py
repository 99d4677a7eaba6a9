"""The callbacks of libfuse for names, attributes and the volume: thin calls of the Vfs.

Signatures follow libfuse 3; where libfuse 2 passes fewer arguments they have defaults.  Pointers
are addresses, 0 or None for NULL.  With nullpath_ok a path is None when the handle tells the file.
"""

from __future__ import annotations

import ctypes
import errno
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpifs.core.types import TIME_NOW
from mpifs.fuse.attributes import StatPacker, time_of, write_space
from mpifs.fuse.binding import Binding
from mpifs.fuse.open_files import OpenFiles
from mpifs.fuse.request import Request
from mpifs.fuse.serving import Serving

if TYPE_CHECKING:
    from mpifs.vfs.facade import Vfs

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
_FSXATTR_BYTES = 28
_HIDDEN = re.compile(rb"/\.fuse_hidden[0-9a-f]{16}\Z")
_NO_ID = 0xFFFFFFFF
_TimePair = ctypes.c_long * 4


class Operations:
    """Names, attributes, xattrs.  Any number of threads; state is only the table of open files."""

    NAMES = (
        "getattr",
        "readlink",
        "mknod",
        "mkdir",
        "unlink",
        "rmdir",
        "symlink",
        "link",
        "rename",
        "chmod",
        "chown",
        "truncate",
        "utimens",
        "statfs",
        "setxattr",
        "getxattr",
        "listxattr",
        "removexattr",
        "ioctl",
    )

    def __init__(
        self,
        vfs: Vfs,
        binding: Binding,
        serving: Serving,
        files: OpenFiles,
        hidden_changed: Callable[[int], None],
    ) -> None:
        self._vfs = vfs
        self._serving = serving
        self._files = files
        self._hidden_changed = hidden_changed
        self._packer = StatPacker(binding.stat)
        self._statvfs = binding.statvfs
        self._fh_offset = binding.fh_offset

    def _fh(self, info: int | None) -> int | None:
        """The handle in a struct fuse_file_info."""
        return ctypes.c_uint64.from_address(info + self._fh_offset).value if info else None

    def _serve(self, path: bytes | None, info: int | None = None) -> int | None:
        """Notes what a changing request names, for the notifier; returns the handle."""
        serving = self._serving
        serving.path = path
        serving.fh = fh = self._fh(info)
        return fh

    # Attributes

    def getattr(self, path: bytes | None, stat: int, info: int | None = None) -> None:
        """stat(2), fstat(2).

        Of a removed open file libfuse takes one link off in its answer to GETATTR, for the name
        that it thinks it gave it; the Vfs has not counted that one.
        """
        fh = self._fh(info)
        try:
            found = self._vfs.getattr(path, fh)
        except OSError as error:
            if path is not None and _HIDDEN.search(path) and error.errno == errno.ENOENT:
                request = self._serving.request
                if request is not None and request.opcode == Request.GETATTR:
                    # The kernel has just found the file under a name that another has now.
                    raise OSError(errno.ESTALE, "replaced meanwhile") from error
            raise
        if self._files.is_hidden(path, fh) and found.nlink:
            request = self._serving.request
            if request is not None and request.opcode == Request.GETATTR:
                found = found._replace(nlink=found.nlink + 1)
        self._packer.write(found, stat)

    def chmod(self, path: bytes | None, mode: int, info: int | None = None) -> None:
        """chmod(2), fchmod(2)."""
        fh = self._serve(path, info)
        self._vfs.chmod(path, mode, fh, self._serving.caller())

    def chown(self, path: bytes | None, uid: int, gid: int, info: int | None = None) -> None:
        """chown(2), fchown(2)."""
        fh = self._serve(path, info)
        self._vfs.chown(
            path,
            -1 if uid == _NO_ID else uid,
            -1 if gid == _NO_ID else gid,
            fh,
            self._serving.caller(),
        )

    def truncate(self, path: bytes | None, size: int, info: int | None = None) -> None:
        """truncate(2), ftruncate(2)."""
        fh = self._serve(path, info)
        self._vfs.truncate(path, size, fh, self._serving.caller())
        if self._files.hidden and fh is not None:
            self._hidden_changed(fh)

    def utimens(self, path: bytes | None, times: int | None, info: int | None = None) -> None:
        """utimensat(2) with UTIME_NOW and UTIME_OMIT."""
        fh = self._serve(path, info)
        if not times:
            self._vfs.utimens(path, TIME_NOW, TIME_NOW, fh)
            return
        pair = _TimePair.from_address(times)
        atime = time_of(pair[0], pair[1], TIME_NOW)
        mtime = time_of(pair[2], pair[3], TIME_NOW)
        self._vfs.utimens(path, atime, mtime, fh)

    # Names

    def readlink(self, path: bytes, buffer: int, size: int) -> None:
        """readlink(2): NUL-terminated, cut if the buffer is short."""
        target = self._vfs.readlink(path)[: size - 1] + b"\0"
        ctypes.memmove(buffer, target, len(target))

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        """mknod(2)."""
        self._vfs.mknod(path, mode, rdev, self._serving.caller())

    def mkdir(self, path: bytes, mode: int) -> None:
        """mkdir(2)."""
        self._vfs.mkdir(path, mode, self._serving.caller())

    def unlink(self, path: bytes) -> None:
        """unlink(2)."""
        self._serve(path)
        self._vfs.unlink(path)

    def rmdir(self, path: bytes) -> None:
        """rmdir(2)."""
        self._vfs.rmdir(path)

    def symlink(self, target: bytes, path: bytes) -> None:
        """symlink(2)."""
        self._vfs.symlink(target, path, self._serving.caller())

    def link(self, source: bytes, path: bytes) -> None:
        """link(2).  The source's cached link count is wrong after it like any other name's: the
        kernel updates only the new name's, so no name is left out."""
        self._serve(None)
        self._vfs.link(source, path)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """renameat2(2): NOREPLACE and EXCHANGE, not WHITEOUT."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "unsupported rename flags")
        self._serve(old)
        if _HIDDEN.search(new) and self._hide(old, new):
            self._files.renamed(old, new, False)
            return
        self._vfs.rename(old, new, flags)
        self._files.renamed(old, new, bool(flags & RENAME_EXCHANGE))

    def _hide(self, path: bytes, hidden: bytes) -> bool:
        """libfuse removes no open file: it gives it a hidden name.  False if this rename is the
        user's own, who alone can have sent that name in the request."""
        request = self._serving.request
        if request is None:
            return False
        asked = request.new_name
        if asked is None and request.opcode != Request.UNLINK:
            return False
        if asked is not None and hidden.endswith(b"/" + asked):
            return False
        self._vfs.hide(path, hidden, keeps_name=asked is not None)
        return True

    # Extended attributes

    def setxattr(self, path: bytes, name: bytes, value: int | None, size: int, flags: int) -> None:
        """setxattr(2)."""
        self._serve(path)
        content = ctypes.string_at(value, size) if value and size else b""
        self._vfs.setxattr(path, name, content, flags)

    def getxattr(self, path: bytes, name: bytes, buffer: int | None, size: int) -> int:
        """getxattr(2): with size 0 the length only, ERANGE if it does not fit."""
        return self._give(self._vfs.getxattr(path, name), buffer, size)

    def listxattr(self, path: bytes, buffer: int | None, size: int) -> int:
        """listxattr(2): NUL-terminated names, sizes as in getxattr."""
        names = b"".join(name + b"\0" for name in self._vfs.listxattr(path))
        return self._give(names, buffer, size)

    @staticmethod
    def _give(value: bytes, buffer: int | None, size: int) -> int:
        if size:
            if len(value) > size:
                raise OSError(errno.ERANGE, "the buffer is too small")
            if buffer and value:
                ctypes.memmove(buffer, value, len(value))
        return len(value)

    def removexattr(self, path: bytes, name: bytes) -> None:
        """removexattr(2)."""
        self._serve(path)
        self._vfs.removexattr(path, name)

    # The volume

    def statfs(self, path: bytes | None, buffer: int) -> None:
        """statvfs(3)."""
        write_space(self._vfs.statfs(), self._statvfs.from_address(buffer))

    def ioctl(
        self,
        path: bytes | None,
        command: int,
        _argument: int | None,
        info: int | None,
        _flags: int,
        data: int | None,
    ) -> int:
        """The inode flags of chattr(1); Python's open() asks for another one each time."""
        command &= 0xFFFFFFFF
        if command == FS_IOC_GETFLAGS and data:
            flags = self._vfs.getflags(path, self._fh(info))
            ctypes.c_uint32.from_address(data).value = flags
            return 0
        if command == FS_IOC_SETFLAGS and data:
            fh = self._serve(path, info)
            self._vfs.setflags(path, ctypes.c_uint32.from_address(data).value, fh)
            return 0
        if command == FS_IOC_FSGETXATTR and data:
            # The kernel asks for a struct fsxattr before it sets flags.
            flags = self._vfs.getflags(path, self._fh(info))
            ctypes.memset(data, 0, _FSXATTR_BYTES)
            ctypes.c_uint32.from_address(data).value = flags >> 1  # FS_XFLAG_* of both
            return 0
        return -errno.ENOTTY
