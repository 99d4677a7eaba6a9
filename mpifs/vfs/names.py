"""Everything that makes, moves and removes a name: the index's rules, and what they mean for data
that is not yet stored."""

from __future__ import annotations

import errno
import stat
import time

from mpifs.core.errors import PosixError
from mpifs.core.limits import INDEX_ROW_BYTES, SYMLINK_BYTES_MAX
from mpifs.core.types import Caller
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs.committer import Committer
from mpifs.vfs.file_data import FileData
from mpifs.vfs.protection import check_addition, check_change


class Names:
    """Operations on names in folders.  Any thread.

    Those that take a last name give its inode, with `nlink` 0: whoever knows that nobody needs it
    any more tells the committer (`removed`).
    """

    def __init__(self, index: Index, committer: Committer) -> None:
        self._index = index
        self._committer = committer

    def make(
        self,
        parent: Inode,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:
        """A new file object of any type.  Raises EEXIST, ENOENT, ENOTDIR, EMLINK, ENAMETOOLONG,
        EINVAL, EPERM, ENOSPC."""
        if stat.S_ISLNK(mode):
            if not target:
                raise PosixError(errno.ENOENT)
            if len(target) > SYMLINK_BYTES_MAX:
                raise PosixError(errno.ENAMETOOLONG)
        self._committer.claim_room(INDEX_ROW_BYTES + len(target))
        check_addition(parent)
        inode = self._index.create(
            parent,
            name,
            mode,
            caller.uid,
            caller.gid,
            rdev=rdev,
            target=target,
            now_ns=time.time_ns(),
        )
        self._committer.names_changed()
        return inode

    def link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """link(2)."""
        check_change(inode)
        check_addition(parent)
        self._committer.claim_room(INDEX_ROW_BYTES)
        self._index.link(inode, parent, name, time.time_ns())
        self._committer.names_changed()

    def unlink(self, parent: Inode, name: bytes) -> Inode:
        """unlink(2); the inode that the name had."""
        self._check_removal(parent, name)
        inode = self._index.unlink(parent, name, time.time_ns())
        self._committer.names_changed()
        self._committer.after_removal()
        return inode

    def rmdir(self, parent: Inode, name: bytes) -> Inode:
        """rmdir(2); the folder."""
        self._check_removal(parent, name)
        inode = self._index.rmdir(parent, name, time.time_ns())
        self._committer.names_changed()
        self._committer.after_removal()
        return inode

    def _check_removal(self, parent: Inode, name: bytes) -> None:
        """Raises EPERM if a name must stay: its file or its directory is protected."""
        check_change(parent)
        ino = self._index.lookup(parent.ino, name)
        if ino:
            check_change(self._index.inode(ino))

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int = 0
    ) -> Inode | None:
        """renameat2(2) with NOREPLACE and EXCHANGE; the inode that was replaced."""
        self._check_removal(parent, name)
        check_addition(new_parent)
        if self._index.lookup(new_parent.ino, new_name):
            self._check_removal(new_parent, new_name)
        self._committer.claim_room(INDEX_ROW_BYTES, is_growth=False)
        with self._committer.rename_gate:
            with self._index.lock:
                ino = self._index.lookup(parent.ino, name)
                moved = self._index.inode(ino) if ino else None
                replaced = self._index.rename(
                    parent, name, new_parent, new_name, flags, time.time_ns()
                )
            data = moved.data if moved is not None else None
            self._committer.renamed_over(data if isinstance(data, FileData) else None)
        self._committer.names_changed()
        return replaced
