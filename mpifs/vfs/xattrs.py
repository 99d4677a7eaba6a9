"""Extended attributes: what the index keeps, and mpifs's own `user.mpifs.*`.

`user.mpifs.layout` tells where the chunks lie (read only); `user.mpifs.chunk_size` and
`user.mpifs.replicas` may be set on an empty file or a folder and are inherited by what is made in
it.  POSIX ACLs and SELinux's labels are refused: stored but not applied they would be a lie.
"""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Callable

from mpifs.core.errors import PosixError
from mpifs.core.layout import is_chunk_size
from mpifs.core.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, REPLICAS_MAX
from mpifs.index.index import Index
from mpifs.index.inode import Inode

OWN_PREFIX = b"user.mpifs."
LAYOUT = b"user.mpifs.layout"
CHUNK_SIZE = b"user.mpifs.chunk_size"
REPLICAS = b"user.mpifs.replicas"
ACLS = b"system.posix_acl_"
LABEL = b"security.selinux"
_PREFIXES = (b"user.", b"trusted.", b"security.")


class Xattrs:
    """Attributes by inode.  Callers hold index.lock for changes."""

    def __init__(self, index: Index, layout: Callable[[Inode], object]) -> None:
        self._index = index
        self._layout = layout

    @staticmethod
    def _check(inode: Inode, name: bytes, code: int) -> None:
        if name.startswith(ACLS) or name == LABEL or not name.startswith(_PREFIXES):
            raise PosixError(errno.EOPNOTSUPP)
        kind = stat.S_IFMT(inode.mode)
        if name.startswith(b"user.") and kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise PosixError(code)

    def get(self, inode: Inode, name: bytes) -> bytes:
        """Raises ENODATA, EOPNOTSUPP."""
        self._check(inode, name, errno.ENODATA)
        if not name.startswith(OWN_PREFIX):
            return self._index.get_xattr(inode, name)
        if name == CHUNK_SIZE:
            return b"%d" % inode.chunk_size
        if name == REPLICAS:
            return b"%d" % inode.replicas
        if name == LAYOUT and stat.S_ISREG(inode.mode):
            return json.dumps(self._layout(inode)).encode()
        raise PosixError(errno.ENODATA)

    def set(self, inode: Inode, name: bytes, value: bytes, flags: int, now_ns: int) -> None:
        """Raises EEXIST, ENODATA, EPERM, EINVAL, ERANGE, E2BIG, ENOSPC, EOPNOTSUPP."""
        self._check(inode, name, errno.EPERM)
        if not name.startswith(OWN_PREFIX):
            self._index.set_xattr(inode, name, value, flags, now_ns=now_ns)
            return
        self._set_own(inode, name, value)
        inode.ctime_ns = now_ns
        self._index.touch(inode)

    def _set_own(self, inode: Inode, name: bytes, value: bytes) -> None:
        if name not in (CHUNK_SIZE, REPLICAS):
            raise PosixError(errno.EPERM, f"{name.decode(errors='replace')} cannot be set")
        if stat.S_ISREG(inode.mode) and (inode.size or inode.data is not None):
            raise PosixError(errno.EPERM, "only an empty, closed file or a folder takes it")
        try:
            number = int(value)
        except ValueError:
            raise PosixError(errno.EINVAL) from None
        if name == CHUNK_SIZE:
            if not is_chunk_size(number, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX):
                raise PosixError(errno.EINVAL)
            inode.chunk_size = number
        else:
            if not 1 <= number <= min(REPLICAS_MAX, len(self._index.stores())):
                raise PosixError(errno.EINVAL)
            inode.replicas = number

    def names(self, inode: Inode) -> list[bytes]:
        """The names listxattr(2) shows: mpifs's own are not listed, so that copies stay clean."""
        return self._index.list_xattrs(inode)

    def remove(self, inode: Inode, name: bytes, now_ns: int) -> None:
        """Raises ENODATA, EOPNOTSUPP, EPERM."""
        self._check(inode, name, errno.EPERM)
        if name.startswith(OWN_PREFIX):
            raise PosixError(errno.EPERM)
        self._index.remove_xattr(inode, name, now_ns=now_ns)
