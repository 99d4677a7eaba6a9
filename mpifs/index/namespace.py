"""Changing names: create, link, unlink, rmdir and rename, with the rules of POSIX and Linux.

Permissions are not checked here.  Invariants kept by every call: a directory's nlink is 2 + its
subdirectories and its size the number of its entries; an inode's nlink is the number of its names;
with nlink 0 it has a row in the orphan table; (parent, name) is a name it has, or parent is 0.
A call that raises has changed nothing.
"""

from __future__ import annotations

import errno
import stat
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID

from mpifs.core import limits
from mpifs.core.errors import DamageError, PosixError
from mpifs.core.placement import start_of
from mpifs.core.types import ROOT_INODE
from mpifs.index.inode import Inode
from mpifs.index.names import Names, check_name

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_TYPES = frozenset(
    (S_IFREG, S_IFDIR, S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
)


_NAME_ROWS = 4
"""A name that goes changes its row, its inode, its directory and perhaps the list of orphans."""


class Namespace(Names):
    """The changes of the tree.  Any thread; each call is atomic."""

    def create(
        self,
        parent: Inode,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
        now_ns: int,
    ) -> Inode:
        """Makes a file object of any type (`mode`; none given: a regular file) under a name.

        In a set-gid directory it gets the directory's group, and a directory the bit.  Chunk size
        and replicas are the parent's.  Raises PosixError: EEXIST, ENOENT (parent removed, empty
        target), ENOTDIR, EMLINK, ENAMETOOLONG, EINVAL; FullError (no numbers left).
        """
        mode = _checked_mode(mode, target)
        is_directory = S_IFMT(mode) == S_IFDIR
        with self.lock:
            self._check_new(parent, name)
            if parent.mode & S_ISGID:
                gid = parent.gid
                if is_directory:
                    mode |= S_ISGID
            if is_directory and parent.nlink >= limits.LINKS_MAX:
                raise PosixError(errno.EMLINK)
            ino = self._inode_numbers.take() or self._reserve(self._inode_numbers)
            inode = Inode(
                ino,
                mode,
                uid,
                gid,
                2 if is_directory else 1,
                rdev,
                len(target),
                0,
                now_ns,
                now_ns,
                now_ns,
                parent.ino,
                name,
                start_of(ino, len(self._stores) or 1),
                parent.chunk_size,
                parent.replicas,
                0,
                target,
            )
            if is_directory:
                parent.nlink += 1
                self._directory_count += 1
                self._keep_complete(ino)
            else:
                self._file_count += 1
            self._keep(inode)
            self._dirty[ino] = inode
            self._set_name(parent, name, inode)
            self._grow(parent, 1, now_ns)
            return inode

    def link(self, inode: Inode, parent: Inode, name: bytes, now_ns: int) -> None:
        """Gives an inode one more name.

        Raises PosixError: EPERM (a directory), EEXIST, EMLINK, ENOENT (inode or parent removed),
        ENOTDIR, ENAMETOOLONG, EINVAL.
        """
        with self.lock:
            if inode.is_directory:
                raise PosixError(errno.EPERM, "a directory cannot have a second name")
            self._check_new(parent, name)
            if not inode.nlink:
                raise PosixError(errno.ENOENT)
            if inode.nlink >= limits.LINKS_MAX:
                raise PosixError(errno.EMLINK)
            inode.nlink += 1
            self._take_place(inode, parent, name, now_ns)
            self._grow(parent, 1, now_ns)

    def unlink(self, parent: Inode, name: bytes, now_ns: int) -> Inode:
        """Takes a name from what is no directory; gives its inode.

        With nlink 0 it is an orphan now: call reap once nobody has it open.
        Raises PosixError: ENOENT, EISDIR, ENOTDIR, ENAMETOOLONG.
        """
        with self.lock:
            inode = self._existing(parent, name)
            if inode.is_directory:
                raise PosixError(errno.EISDIR)
            self._clear_name(parent, name)
            self._lose_name(inode, parent, name, now_ns)
            self._grow(parent, -1, now_ns)
            return inode

    def rmdir(self, parent: Inode, name: bytes, now_ns: int) -> Inode:
        """Removes an empty directory; it is an orphan now, as after unlink.

        Raises PosixError: ENOENT, ENOTDIR, ENOTEMPTY, EINVAL (`.`), ENAMETOOLONG.
        """
        with self.lock:
            if name in {b".", b".."}:
                raise PosixError(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
            inode = self._existing(parent, name)
            if not inode.is_directory:
                raise PosixError(errno.ENOTDIR)
            if inode.size:
                raise PosixError(errno.ENOTEMPTY)
            self._clear_name(parent, name)
            self._lose_name(inode, parent, name, now_ns)
            self._complete.discard(inode.ino)
            parent.nlink -= 1
            self._grow(parent, -1, now_ns)
            return inode

    def rename(
        self,
        old_parent: Inode,
        old_name: bytes,
        new_parent: Inode,
        new_name: bytes,
        flags: int,
        now_ns: int,
    ) -> Inode | None:
        """Moves a name as renameat2(2) does; gives the inode that lost its name, if one did.

        Two names of one inode, or the same name twice: nothing happens.  With RENAME_EXCHANGE
        nobody loses a name.  Raises PosixError: ENOENT, EEXIST (NOREPLACE), ENOTDIR, EISDIR,
        ENOTEMPTY, EMLINK, ENAMETOOLONG, EINVAL (flags, a directory into itself).
        """
        if flags not in {0, RENAME_NOREPLACE, RENAME_EXCHANGE}:
            raise PosixError(errno.EINVAL, "flags of rename that are not known or exclude another")
        with self.lock:
            check_name(new_name)
            self._check_parent(new_parent)
            moved = self._existing(old_parent, old_name)
            there = self._entry(new_parent.ino, new_name)
            if there and flags == RENAME_NOREPLACE:
                raise PosixError(errno.EEXIST)
            if not there and flags == RENAME_EXCHANGE:
                raise PosixError(errno.ENOENT)
            replaced = self._named(new_parent.ino, new_name, there) if there else None
            is_exchange = flags == RENAME_EXCHANGE
            self._check_loop(moved, replaced, old_parent, new_parent, is_exchange)
            if replaced is moved:
                return None
            _check_move(moved, replaced, old_parent, new_parent, is_exchange)
            if is_exchange:
                assert replaced is not None
                self._move_links(replaced, new_parent, old_parent)
                self._take_place(replaced, old_parent, old_name, now_ns)
            else:
                self._clear_name(old_parent, old_name)
                self._grow(old_parent, -1, now_ns)
                if replaced is not None:
                    self._lose_name(replaced, new_parent, new_name, now_ns)
                    new_parent.nlink -= replaced.is_directory
            self._move_links(moved, old_parent, new_parent)
            self._take_place(moved, new_parent, new_name, now_ns)
            self._grow(new_parent, replaced is None, now_ns)
            self._grow(old_parent, 0, now_ns)
            return None if is_exchange else replaced

    def _check_parent(self, parent: Inode) -> None:
        if not parent.is_directory:
            raise PosixError(errno.ENOTDIR)
        if not parent.nlink:
            raise PosixError(errno.ENOENT, "the directory has been removed")

    def _check_new(self, parent: Inode, name: bytes) -> None:
        check_name(name)
        self._check_parent(parent)
        if self._entry(parent.ino, name):
            raise PosixError(errno.EEXIST)

    def _existing(self, parent: Inode, name: bytes) -> Inode:
        if not parent.is_directory:
            raise PosixError(errno.ENOTDIR)
        ino = self._entry(parent.ino, name)
        if not ino:
            raise PosixError(errno.ENOENT)
        return self._named(parent.ino, name, ino)

    def _check_loop(
        self,
        moved: Inode,
        replaced: Inode | None,
        old_parent: Inode,
        new_parent: Inode,
        is_exchange: bool,
    ) -> None:
        """No directory may come to lie in itself, nor replace one that it lies in."""
        if old_parent is new_parent:
            return
        if moved.is_directory and self._is_within(new_parent, moved):
            raise PosixError(errno.EINVAL, "a directory cannot be moved into itself")
        if replaced is not None and replaced.is_directory and self._is_within(old_parent, replaced):
            raise PosixError(errno.EINVAL if is_exchange else errno.ENOTEMPTY)

    def _is_within(self, directory: Inode, ancestor: Inode) -> bool:
        seen: set[int] = set()
        while directory is not ancestor:
            if directory.ino == ROOT_INODE or not directory.parent:
                return False
            if directory.ino in seen:
                raise DamageError(f"index: directory {directory.ino} lies in itself")
            seen.add(directory.ino)
            directory = self._named(directory.ino, b"..", directory.parent)
        return True

    def _set_name(self, parent: Inode, name: bytes, inode: Inode) -> None:
        self._dentries.put(parent.ino, name, inode.ino << 4 | inode.mode >> 12)
        self._keep_name(parent.ino, name, inode.ino)

    def _clear_name(self, parent: Inode, name: bytes) -> None:
        self._dentries.put(parent.ino, name, None)
        self._names.pop((parent.ino, name), None)

    def _take_place(self, inode: Inode, parent: Inode, name: bytes, now_ns: int) -> None:
        """The name names this inode from now on; counts are the caller's."""
        self._set_name(parent, name, inode)
        inode.parent = parent.ino
        inode.name = name
        inode.ctime_ns = now_ns
        self._dirty[inode.ino] = inode

    def _lose_name(self, inode: Inode, parent: Inode, name: bytes, now_ns: int) -> None:
        inode.nlink = 0 if inode.is_directory else inode.nlink - 1
        inode.ctime_ns = now_ns
        if not inode.nlink or (inode.parent == parent.ino and inode.name == name):
            inode.parent = 0
        if not inode.nlink:
            self._orphans.put(0, inode.ino, True)
            self._orphan_count += 1
        self._dirty[inode.ino] = inode
        self.room.strain(_NAME_ROWS)

    def _grow(self, directory: Inode, change: int, now_ns: int) -> None:
        directory.size += change
        directory.stable_size = directory.size
        directory.mtime_ns = directory.ctime_ns = now_ns
        self._dirty[directory.ino] = directory

    def _move_links(self, inode: Inode, source: Inode, destination: Inode) -> None:
        """A directory's own entry `..` is a link of the directory it lies in."""
        if inode.is_directory:
            source.nlink -= 1
            destination.nlink += 1


def _check_move(
    moved: Inode,
    replaced: Inode | None,
    old_parent: Inode,
    new_parent: Inode,
    is_exchange: bool,
) -> None:
    """Whether types, emptiness and link counts allow it."""
    gains = moved.is_directory and old_parent is not new_parent
    if is_exchange:
        assert replaced is not None
        loses = replaced.is_directory and old_parent is not new_parent
        if gains != loses:
            full = new_parent if gains else old_parent
            if full.nlink >= limits.LINKS_MAX:
                raise PosixError(errno.EMLINK)
        return
    if replaced is not None:
        if moved.is_directory and not replaced.is_directory:
            raise PosixError(errno.ENOTDIR)
        if replaced.is_directory and not moved.is_directory:
            raise PosixError(errno.EISDIR)
        if replaced.is_directory and replaced.size:
            raise PosixError(errno.ENOTEMPTY)
    elif gains and new_parent.nlink >= limits.LINKS_MAX:
        raise PosixError(errno.EMLINK)


def _checked_mode(mode: int, target: bytes) -> int:
    """The mode with a type; a regular file's if none is given."""
    kind = S_IFMT(mode)
    if not kind:
        return mode | S_IFREG
    if kind not in _TYPES:
        raise PosixError(errno.EINVAL, "unknown type of file")
    if kind == S_IFLNK and not 0 < len(target) <= limits.SYMLINK_BYTES_MAX:
        raise PosixError(errno.ENAMETOOLONG if target else errno.ENOENT)
    return mode
