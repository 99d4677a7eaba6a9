"""Requests for names, attributes and the volume: thin calls of the vfs.

Each handler takes a Request and gives the answer's bytes; OSErrors become its errno (dispatch.py).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpifs.core.types import TIME_NOW
from mpifs.fuse.attributes import Answers, signed, space
from mpifs.fuse.protocol import (
    BODY_AT,
    FH,
    FORGET_COUNT,
    FORGET_ONE,
    IOCTL_IN,
    IOCTL_OUT,
    MKDIR_IN,
    MKNOD_IN,
    NUMBER_BYTES,
    RENAME2_IN,
    SETATTR_IN,
    SETXATTR_IN,
    SIZE,
    Opcode,
    Valid,
)
from mpifs.vfs.change import Change
from mpifs.vfs.xattrs import LABEL

if TYPE_CHECKING:
    from mpifs.fuse.request import Request
    from mpifs.vfs.nodes import Nodes

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
_FLAGS = struct.Struct("=I")
_NS = 10**9
_REFUSED = b"system."
_PRIVILEGED = b"security."
_NAME_AT = BODY_AT + SIZE.size

Handler = Callable[["Request"], "bytes | bytearray | None"]
"""Gives the answer's bytes; None: it has answered itself, or there is nothing to answer."""


class Operations:
    """Names, attributes, extended attributes.  Any number of threads; no state."""

    def __init__(self, nodes: Nodes, answers: Answers) -> None:
        self._nodes = nodes
        self._answers = answers

    def handlers(self) -> dict[int, Handler]:
        """By opcode."""
        return {
            Opcode.LOOKUP: self.lookup,
            Opcode.FORGET: self.forget,
            Opcode.BATCH_FORGET: self.batch_forget,
            Opcode.GETATTR: self.getattr,
            Opcode.SETATTR: self.setattr,
            Opcode.READLINK: self.readlink,
            Opcode.SYMLINK: self.symlink,
            Opcode.MKNOD: self.mknod,
            Opcode.MKDIR: self.mkdir,
            Opcode.UNLINK: self.unlink,
            Opcode.RMDIR: self.rmdir,
            Opcode.RENAME: self.rename,
            Opcode.RENAME2: self.rename2,
            Opcode.LINK: self.link,
            Opcode.STATFS: self.statfs,
            Opcode.SETXATTR: self.setxattr,
            Opcode.GETXATTR: self.getxattr,
            Opcode.LISTXATTR: self.listxattr,
            Opcode.REMOVEXATTR: self.removexattr,
            Opcode.IOCTL: self.ioctl,
        }

    # Nodes and attributes

    def lookup(self, request: Request) -> bytes:
        """A name's node."""
        found = self._nodes.lookup(request.nodeid, request.name())
        return self._answers.absent if found is None else self._answers.entry(found)

    def forget(self, request: Request) -> None:
        """The kernel has let go of a node: it has sent all its requests."""
        self._nodes.forget(request.nodeid)

    def batch_forget(self, request: Request) -> None:
        """Of many."""
        (count,) = FORGET_COUNT.unpack_from(request.view, BODY_AT)
        place = BODY_AT + FORGET_COUNT.size
        for _ in range(count):
            self._nodes.forget(FORGET_ONE.unpack_from(request.view, place)[0])
            place += FORGET_ONE.size

    def getattr(self, request: Request) -> bytes:
        """stat(2), fstat(2)."""
        return self._answers.attributes(self._nodes.getattr(request.nodeid))

    def setattr(self, request: Request) -> bytes:
        """chmod(2), chown(2), truncate(2), utimensat(2), and times that the kernel has kept."""
        (
            bits, _, _, size, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
            mode, _, uid, gid, _,
        ) = SETATTR_IN.unpack_from(request.view, BODY_AT)  # fmt: skip

        def time_of(bit: int, seconds: int, ns: int, now_bit: int = 0) -> int | None:
            if bits & now_bit:
                return TIME_NOW
            return signed(seconds) * _NS + ns if bits & bit else None

        change = Change(
            mode if bits & Valid.MODE else None,
            uid if bits & Valid.UID else None,
            gid if bits & Valid.GID else None,
            size if bits & Valid.SIZE else None,
            time_of(Valid.ATIME, atime, atime_ns, Valid.ATIME_NOW),
            time_of(Valid.MTIME, mtime, mtime_ns, Valid.MTIME_NOW),
            time_of(Valid.CTIME, ctime, ctime_ns),
            bool(bits & Valid.KILL_SUIDGID),
        )
        return self._answers.attributes(self._nodes.setattr(request.nodeid, change))

    # Names

    def readlink(self, request: Request) -> bytes:
        """readlink(2)."""
        return self._nodes.readlink(request.nodeid)

    def symlink(self, request: Request) -> bytes:
        """symlink(2)."""
        name, target = request.names()
        mode = stat.S_IFLNK | 0o777
        made = self._nodes.make(request.nodeid, name, mode, request.caller, target=target)
        return self._answers.entry(made)

    def mknod(self, request: Request) -> bytes:
        """mknod(2)."""
        mode, rdev, _, _ = MKNOD_IN.unpack_from(request.view, BODY_AT)
        name = request.name(MKNOD_IN.size)
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        return self._answers.entry(
            self._nodes.make(request.nodeid, name, mode, request.caller, rdev=rdev)
        )

    def mkdir(self, request: Request) -> bytes:
        """mkdir(2)."""
        mode, _ = MKDIR_IN.unpack_from(request.view, BODY_AT)
        name = request.name(MKDIR_IN.size)
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._answers.entry(self._nodes.make(request.nodeid, name, mode, request.caller))

    def unlink(self, request: Request) -> bytes:
        """unlink(2)."""
        self._nodes.unlink(request.nodeid, request.name())
        return b""

    def rmdir(self, request: Request) -> bytes:
        """rmdir(2)."""
        self._nodes.rmdir(request.nodeid, request.name())
        return b""

    def rename(self, request: Request) -> bytes:
        """rename(2)."""
        (folder,) = FH.unpack_from(request.view, BODY_AT)
        old, new = request.names(NUMBER_BYTES)
        self._nodes.rename(request.nodeid, old, folder, new)
        return b""

    def rename2(self, request: Request) -> bytes:
        """renameat2(2): NOREPLACE and EXCHANGE, not WHITEOUT."""
        folder, flags = RENAME2_IN.unpack_from(request.view, BODY_AT)
        old, new = request.names(RENAME2_IN.size)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "unsupported rename flags")
        self._nodes.rename(request.nodeid, old, folder, new, flags)
        return b""

    def link(self, request: Request) -> bytes:
        """link(2)."""
        (source,) = FH.unpack_from(request.view, BODY_AT)
        return self._answers.entry(
            self._nodes.link(source, request.nodeid, request.name(NUMBER_BYTES))
        )

    # Extended attributes

    def setxattr(self, request: Request) -> bytes:
        """setxattr(2)."""
        size, flags = SETXATTR_IN.unpack_from(request.view, BODY_AT)
        name, _, rest = bytes(request.view[BODY_AT + SETXATTR_IN.size : request.length]).partition(
            b"\0"
        )
        self._nodes.setxattr(request.nodeid, name, rest[:size], flags)
        return b""

    def getxattr(self, request: Request) -> bytes | None:
        """getxattr(2): with size 0 the length only, ERANGE if it does not fit."""
        view = request.view
        # Names that no file can have: `ls -l` asks for them, and when it hears that they are not
        # supported (not: absent) the others of the same file system are not asked.
        if (
            view[_NAME_AT : _NAME_AT + len(_REFUSED)] == _REFUSED
            or view[_NAME_AT : request.length - 1] == LABEL
        ):
            request.refuse(errno.EOPNOTSUPP)
            return None
        nodes = self._nodes
        # A write asks for capabilities.
        if not nodes.has_xattrs and view[_NAME_AT : _NAME_AT + len(_PRIVILEGED)] == _PRIVILEGED:
            request.refuse(errno.ENODATA)
            return None
        (size,) = SIZE.unpack_from(view, BODY_AT)
        return _given(nodes.getxattr(request.nodeid, request.name(SIZE.size)), size)

    def listxattr(self, request: Request) -> bytes:
        """listxattr(2): NUL-terminated names, sizes as in getxattr."""
        (size,) = SIZE.unpack_from(request.view, BODY_AT)
        names = self._nodes.listxattr(request.nodeid)
        return _given(b"".join(name + b"\0" for name in names), size)

    def removexattr(self, request: Request) -> bytes:
        """removexattr(2)."""
        self._nodes.removexattr(request.nodeid, request.name())
        return b""

    # The volume

    def statfs(self, request: Request) -> bytes:
        """statvfs(3)."""
        return space(self._nodes.statfs())

    def ioctl(self, request: Request) -> bytes:
        """The inode flags of chattr(1); Python's open() asks for another one each time."""
        _, _, command, _, _, room = IOCTL_IN.unpack_from(request.view, BODY_AT)
        nodes, nodeid = self._nodes, request.nodeid
        done = IOCTL_OUT.pack(0, 0, 0, 0)
        if command == FS_IOC_GETFLAGS:
            return done + _FLAGS.pack(nodes.getflags(nodeid)).ljust(room, b"\0")[:room]
        if command == FS_IOC_SETFLAGS:
            (flags,) = _FLAGS.unpack_from(request.view, BODY_AT + IOCTL_IN.size)
            nodes.setflags(nodeid, flags)
            return done
        if command == FS_IOC_FSGETXATTR:
            # The kernel asks for a struct fsxattr before it sets flags: FS_XFLAG_* of both.
            flags = nodes.getflags(nodeid) >> 1
            return done + _FLAGS.pack(flags).ljust(room, b"\0")[:room]
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))


def _given(value: bytes, size: int) -> bytes:
    if not size:
        return SIZE.pack(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, "the buffer is too small")
    return value
