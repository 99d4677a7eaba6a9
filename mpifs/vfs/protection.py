"""Immutable and append-only files (chattr(1) +i and +a, ioctl_iflags(2)); set-id bits.

The kernel knows these flags of its own file systems only; so the vfs refuses with EPERM what they
forbid.  That only a privileged caller changes them is the kernel's check.

Set-id bits and capabilities: with HANDLE_KILLPRIV_V2 (fuse/protocol.py) the vfs takes them off a
file whose content is changed; without it the kernel does the same first.
"""

from __future__ import annotations

import errno
import os
import stat

from mpifs.core.errors import PosixError
from mpifs.core.records import FLAG_APPEND, FLAG_IMMUTABLE
from mpifs.index.inode import Inode

FS_IMMUTABLE = 0x10
FS_APPEND = 0x20
_EITHER = FLAG_IMMUTABLE | FLAG_APPEND
SET_ID = stat.S_ISUID | stat.S_ISGID
CAPABILITY = b"security.capability"
"""The attribute that makes a program privileged, as the set-id bits do (capabilities(7))."""


def check_change(inode: Inode) -> None:
    """Before attributes, links or the size of an inode change, or it loses a name."""
    if inode.flags & _EITHER:
        raise PosixError(errno.EPERM)


def check_addition(inode: Inode) -> None:
    """Before a name is made in a directory, or something was appended to a file."""
    if inode.flags & FLAG_IMMUTABLE:
        raise PosixError(errno.EPERM)


def check_open(inode: Inode, flags: int) -> None:
    """Before a file is opened: for writing it must not be immutable, and an append-only one takes
    only O_APPEND without O_TRUNC."""
    if not inode.flags & _EITHER:
        return
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    if inode.flags & FLAG_IMMUTABLE and (writes or flags & os.O_TRUNC):
        raise PosixError(errno.EPERM)
    if flags & os.O_TRUNC or (writes and not flags & os.O_APPEND):
        raise PosixError(errno.EPERM)


def flags_of(inode: Inode) -> int:
    """The flags as FS_IOC_GETFLAGS gives them."""
    shown = FS_IMMUTABLE if inode.flags & FLAG_IMMUTABLE else 0
    return shown | (FS_APPEND if inode.flags & FLAG_APPEND else 0)


def set_flags(inode: Inode, flags: int) -> None:
    """FS_IOC_SETFLAGS.  Raises EOPNOTSUPP for any other flag.  Requires: index.lock is held."""
    if flags & ~(FS_IMMUTABLE | FS_APPEND):
        raise PosixError(errno.EOPNOTSUPP)
    inode.flags &= ~_EITHER
    inode.flags |= FLAG_IMMUTABLE if flags & FS_IMMUTABLE else 0
    inode.flags |= FLAG_APPEND if flags & FS_APPEND else 0


def without_set_id(mode: int) -> int:
    """`mode` as a change of the content or owner leaves it: set-gid without group execute is not
    a privilege (inode(7))."""
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
