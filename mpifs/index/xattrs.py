"""Extended attributes.

Only an inode with FLAG_XATTRS is asked for any: the kernel asks for `security.capability` before
each write, and the answer then costs nothing.
"""

from __future__ import annotations

import errno
from itertools import islice

from mpifs.core.errors import PosixError
from mpifs.core.limits import (
    XATTR_LIST_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from mpifs.core.records import FLAG_XATTRS, XATTRS, decode_xattr, inode_key, name_key
from mpifs.index.inode import Inode
from mpifs.index.memtable import UNKNOWN, merged
from mpifs.index.state import State

XATTR_CREATE = 1
XATTR_REPLACE = 2


class Xattrs(State):
    """Reading and changing extended attributes.  Any thread; each call is atomic."""

    def get_xattr(self, inode: Inode, name: bytes) -> bytes:
        """The value.  Raises PosixError: ENODATA, ERANGE (name)."""
        if not inode.flags & FLAG_XATTRS:
            raise PosixError(errno.ENODATA)
        with self.lock:
            value = self._xattr(inode, name)
        if value is None:
            raise PosixError(errno.ENODATA)
        return value

    def list_xattrs(self, inode: Inode) -> list[bytes]:
        """All names, in order."""
        with self.lock:
            return self._xattr_names(inode)

    def set_xattr(
        self, inode: Inode, name: bytes, value: bytes, flags: int = 0, *, now_ns: int
    ) -> None:
        """Sets an attribute; `flags` as in setxattr(2).

        Raises PosixError: EEXIST (XATTR_CREATE), ENODATA (XATTR_REPLACE), ERANGE (name), E2BIG
        (value), ENOSPC (the list would be too long for listxattr), EINVAL (flags).
        """
        _check_name(name)
        if flags & ~(XATTR_CREATE | XATTR_REPLACE):
            raise PosixError(errno.EINVAL)
        if len(value) > XATTR_VALUE_BYTES_MAX:
            raise PosixError(errno.E2BIG)
        with self.lock:
            is_there = self._xattr(inode, name) is not None
            if is_there and flags & XATTR_CREATE:
                raise PosixError(errno.EEXIST)
            if not is_there:
                if flags & XATTR_REPLACE:
                    raise PosixError(errno.ENODATA)
                listed = sum(len(each) + 1 for each in self._xattr_names(inode))
                if listed + len(name) + 1 > XATTR_LIST_BYTES_MAX:
                    raise PosixError(errno.ENOSPC, "too many extended attributes on one file")
            if inode.reaped:
                return
            self.has_xattrs = True
            self._xattrs.put(inode.ino, name, bytes(value))
            inode.flags |= FLAG_XATTRS
            inode.ctime_ns = now_ns
            self._dirty[inode.ino] = inode

    def remove_xattr(self, inode: Inode, name: bytes, *, now_ns: int) -> None:
        """Raises PosixError: ENODATA, ERANGE (name)."""
        with self.lock:
            if self._xattr(inode, name) is None:
                raise PosixError(errno.ENODATA)
            if inode.reaped:
                return
            self._xattrs.put(inode.ino, name, None)
            if not self._xattr_names(inode, 1):
                inode.flags &= ~FLAG_XATTRS
            inode.ctime_ns = now_ns
            self._dirty[inode.ino] = inode

    def _xattr(self, inode: Inode, name: bytes) -> bytes | None:
        _check_name(name)
        if not inode.flags & FLAG_XATTRS:
            return None
        found = self._xattrs.find(inode.ino, name)
        if found is not UNKNOWN:
            return found
        key = name_key(inode.ino, name)
        with self._env.read() as transaction:
            value = transaction.get(XATTRS, key)
            return None if value is None else decode_xattr(key, value)

    def _xattr_names(self, inode: Inode, limit: int | None = None) -> list[bytes]:
        if not inode.flags & FLAG_XATTRS:
            return []
        ino = inode.ino
        with self._env.read() as transaction:
            keys = transaction.scan_keys(XATTRS, inode_key(ino), inode_key(ino + 1))
            disk = ((bytes(key[8:]), b"") for key in keys)
            changes = self._xattrs.changes(ino, b"")
            return [name for name, _ in islice(merged(changes, disk), limit)]


def _check_name(name: bytes) -> None:
    if not 0 < len(name) <= XATTR_NAME_BYTES_MAX:
        raise PosixError(errno.ERANGE)
