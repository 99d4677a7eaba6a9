"""The file system as the kernel names it: inode numbers, (folder, name) and handles.

An inode number is the kernel's node: a file is one node whatever names it has, and the kernel's
caches of it are one.  Every failure is an OSError with its errno.  Any thread may call anything.
Permissions are the kernel's business (`default_permissions`).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator

from mpifs.core.errors import PosixError
from mpifs.core.limits import INDEX_ROW_BYTES
from mpifs.core.types import ROOT_INODE, TIME_NOW, Caller, SpaceUse, Stat
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs import protection
from mpifs.vfs.cache import Lent
from mpifs.vfs.change import Change
from mpifs.vfs.committer import Committer
from mpifs.vfs.directories import Directories
from mpifs.vfs.file_data import FileData
from mpifs.vfs.files import Files, stat_of
from mpifs.vfs.handles import FileHandle, Handles
from mpifs.vfs.names import Names
from mpifs.vfs.writeback import WriteBack
from mpifs.vfs.xattrs import Xattrs


class Nodes:
    """One volume.

    `on_change(inodes, entries)` is set by the FUSE adapter: it has the kernel's caches of inodes
    and of (folder, name) dropped and returns at once.  Whoever changes what the kernel knows, but
    not on its behalf, calls it.

    `_kept`: inodes without a name of which the kernel has not yet let go: it may still ask for them
    through a descriptor.  They are pinned, and their dirty data stays.  Dict operations, atomic in
    CPython.
    """

    def __init__(
        self,
        index: Index,
        handles: Handles,
        names: Names,
        files: Files,
        writeback: WriteBack,
        committer: Committer,
        layout: Callable[[Inode], object],
    ) -> None:
        self.on_change: Callable[[Iterable[int], Iterable[tuple[int, bytes]]], None] = (
            lambda inodes, entries: None
        )
        self._index = index
        self._handles = handles
        self._names = names
        self._files = files
        self._writeback = writeback
        self._committer = committer
        self._directories = Directories(index, handles)
        self._xattrs = Xattrs(index, layout)
        self._kept: dict[int, Inode] = {}

    def use_direct_writers(self) -> None:
        """From now on files that are opened for writing alone go past the kernel's page cache: a
        third of the time for large writes, and one request instead of two for odd ones.  Before the
        kernel opens anything; it must allow others to map such files meanwhile."""
        self._files.has_direct_writers = True

    # Nodes

    def lookup(self, parent: int, name: bytes) -> Stat | None:
        """What a name names, None if there is none; `.` and `..` revive a node that the kernel has
        forgotten.

        Raises ENOTDIR, ENAMETOOLONG, ESTALE."""
        ino = self._index.lookup(parent, name)
        if not ino:
            inode = self._index.inode(parent)
            if name == b".":
                return stat_of(inode)
            if not inode.is_directory:
                raise PosixError(errno.ENOTDIR)
            if name != b"..":
                return None
            ino = inode.parent or ROOT_INODE
        return stat_of(self._index.inode(ino))

    def forget(self, ino: int) -> None:
        """The kernel knows the node no more."""
        inode = self._kept.pop(ino, None)
        if inode is not None:
            self._index.unpin(inode)
            self._committer.removed(inode)
            self._committer.kick()

    def close(self) -> None:
        """The kernel is gone, with all it knew."""
        for ino in list(self._kept):
            self.forget(ino)

    def _lost(self, inode: Inode) -> None:
        """A name was taken away: if it was the last, what it named stays until it is forgotten."""
        if not inode.nlink and self._kept.setdefault(inode.ino, inode) is inode:
            self._index.pin(inode)

    def getattr(self, ino: int) -> Stat:
        """stat(2).  Raises ESTALE."""
        return stat_of(self._index.inode(ino))

    def setattr(self, ino: int, change: Change) -> Stat:
        """chmod(2), chown(2), truncate(2), utimensat(2).  A change of owner drops set-id bits of
        what is no folder, as Linux does."""
        inode = self._index.inode(ino)
        if change.is_note:  # what was appended was allowed
            protection.check_addition(inode)
        else:
            protection.check_change(inode)
        if change.size is not None:
            self._files.truncate(inode, change.size, kills=change.kills)
        now = time.time_ns()
        with self._index.lock:
            if change.uid is not None:
                inode.uid = change.uid
            if change.gid is not None:
                inode.gid = change.gid
            is_given = change.uid is not None or change.gid is not None
            if is_given and not stat.S_ISDIR(inode.mode) and not stat.S_ISLNK(inode.mode):
                inode.mode = protection.without_set_id(inode.mode)
            if change.mode is not None:
                inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(change.mode)
            if change.atime_ns is not None:
                inode.atime_ns = now if change.atime_ns == TIME_NOW else change.atime_ns
            if change.mtime_ns is not None:
                inode.mtime_ns = now if change.mtime_ns == TIME_NOW else change.mtime_ns
            inode.ctime_ns = now if change.ctime_ns is None else change.ctime_ns
        self._touched(inode)
        return stat_of(inode)

    def _touched(self, inode: Inode) -> None:
        self._index.touch(inode)
        self._committer.kick()

    # Names

    def make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Stat:
        """mknod(2), mkdir(2), symlink(2)."""
        folder = self._index.inode(parent)
        return stat_of(self._names.make(folder, name, mode, caller, rdev=rdev, target=target))

    def readlink(self, ino: int) -> bytes:
        """readlink(2)."""
        inode = self._index.inode(ino)
        if not stat.S_ISLNK(inode.mode):
            raise PosixError(errno.EINVAL)
        return inode.target

    def link(self, ino: int, parent: int, name: bytes) -> Stat:
        """link(2)."""
        inode = self._index.inode(ino)
        self._names.link(inode, self._index.inode(parent), name)
        return stat_of(inode)

    def unlink(self, parent: int, name: bytes) -> None:
        """unlink(2)."""
        self._lost(self._names.unlink(self._index.inode(parent), name))

    def rmdir(self, parent: int, name: bytes) -> None:
        """rmdir(2)."""
        self._lost(self._names.rmdir(self._index.inode(parent), name))

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """renameat2(2) with NOREPLACE and EXCHANGE."""
        inode = self._index.inode
        replaced = self._names.rename(inode(parent), name, inode(new_parent), new_name, flags)
        if replaced is not None:
            self._lost(replaced)

    # Files

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Stat, int, bool]:
        """open(2) with O_CREAT: its attributes, and what `open` gives.

        A name that was made past the kernel meanwhile is opened, as O_CREAT asks for.
        """
        folder = self._index.inode(parent)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        try:
            inode = self._names.make(folder, name, mode, caller)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            stat_there = self.lookup(parent, name)
            if stat_there is None:
                raise PosixError(errno.ENOENT) from None
            return (stat_there, *self.open(stat_there.ino, flags, kills=caller.uid != 0))
        return (stat_of(inode), *self._files.open(inode, flags, is_new=True, by_kernel=True))

    def open(self, ino: int, flags: int, *, kills: bool = False) -> tuple[int, bool]:
        """open(2) of what is there; truncates when O_TRUNC is among the flags.  A handle, and
        whether it must go past the kernel's page cache."""
        inode = self._index.inode(ino)
        protection.check_open(inode, flags)
        return self._files.open(inode, flags, by_kernel=True, kills=kills)

    def read(self, fh: int, into: memoryview, offset: int) -> int:
        """pread(2) into a buffer; returns the bytes read."""
        return self._files.read(self._handles.file(fh), into, offset)

    def lend(self, fh: int, size: int, offset: int) -> Lent | None:
        """pread(2) without a copy, if the bytes lie together in memory; None: `read` them."""
        return self._files.lend(self._handles.file(fh), size, offset)

    def write(self, fh: int, data: memoryview, offset: int, kills: bool = False) -> int:
        """pwrite(2); returns the bytes taken."""
        handle = self._handles.file(fh)
        count = self._files.write(handle, data, offset, kills)
        if handle.is_direct:
            self._written_past_cache(handle)
        return count

    def take(
        self,
        fh: int,
        memory: bytearray,
        size: int,
        offset: int,
        exchange: Callable[[bytearray], None],
        kills: bool = False,
    ) -> bool:
        """pwrite(2) of a whole chunk without a copy, if it is one: `memory` is the vfs's from the
        moment in which it calls `exchange` with other memory, as long.  False: `write` it.

        The bytes stand in `memory` behind IMAGE_HEADER_BYTES."""
        handle = self._handles.file(fh)
        is_taken = self._files.take(handle, memory, size, offset, exchange, kills)
        if is_taken and handle.is_direct:
            self._written_past_cache(handle)
        return is_taken

    def _written_past_cache(self, handle: FileHandle) -> None:
        if handle.flags & os.O_DSYNC:  # or O_SYNC, which has its bit; the kernel does not ask
            self._files.fsync(handle.inode)
        of_file = handle.inode.data
        if isinstance(of_file, FileData) and of_file.direct_readers:
            self.on_change([handle.inode.ino], [])  # they may have mapped it

    def flush(self, fh: int) -> None:
        """close(2) of one descriptor."""
        self._files.flush(self._handles.file(fh))

    def release(self, fh: int) -> None:
        """The last close of a handle."""
        self._files.release(fh)

    def fsync(self, fh: int, datasync: bool = False) -> None:
        """fsync(2): returns when data and index are durable."""
        self._files.fsync(self._handles.file(fh).inode)

    def fallocate(self, fh: int, mode: int, offset: int, length: int, kills: bool = False) -> None:
        """fallocate(2)."""
        self._files.allocate(self._handles.file(fh), mode, offset, length, kills)

    def lseek(self, fh: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        return self._files.seek(self._handles.file(fh), offset, whence)

    def copy_file_range(
        self, fh: int, offset: int, to_fh: int, to: int, length: int, kills: bool = False
    ) -> int:
        """copy_file_range(2); returns the bytes copied."""
        source, target = self._handles.file(fh), self._handles.file(to_fh)
        return self._files.copy_range(source, offset, target, to, length, kills)

    # Directories

    def opendir(self, ino: int) -> int:
        """opendir(3).  Raises ENOTDIR."""
        return self._directories.open(self._index.inode(ino))

    def readdir(
        self, fh: int, offset: int = 0, plus: bool = True
    ) -> Iterator[tuple[bytes, Stat, int]]:
        """Entries from `offset` on with the offset behind each; `plus` asks for all attributes,
        without it only ino and the type in mode are set."""
        return self._directories.read(fh, offset, plus)

    def releasedir(self, fh: int) -> None:
        """closedir(3)."""
        self._directories.release(fh)

    def fsyncdir(self, fh: int, datasync: bool = False) -> None:
        """fsync(2) of a directory."""
        self._committer.commit()

    # Extended attributes and flags

    @property
    def has_xattrs(self) -> bool:
        """Whether any file may have attributes other than mpifs's own."""
        return self._index.has_xattrs

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """setxattr(2)."""
        inode = self._index.inode(ino)
        protection.check_change(inode)
        self._committer.claim_room(INDEX_ROW_BYTES + len(value))
        with self._index.lock:
            self._xattrs.set(inode, name, value, flags, time.time_ns())
        self._touched(inode)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """getxattr(2)."""
        return self._xattrs.get(self._index.inode(ino), name)

    def listxattr(self, ino: int) -> list[bytes]:
        """listxattr(2)."""
        return self._xattrs.names(self._index.inode(ino))

    def removexattr(self, ino: int, name: bytes) -> None:
        """removexattr(2)."""
        inode = self._index.inode(ino)
        protection.check_change(inode)
        with self._index.lock:
            self._xattrs.remove(inode, name, time.time_ns())
        self._touched(inode)

    def getflags(self, ino: int) -> int:
        """FS_IOC_GETFLAGS: immutable and append-only."""
        return protection.flags_of(self._index.inode(ino))

    def setflags(self, ino: int, flags: int) -> None:
        """FS_IOC_SETFLAGS.  Raises EOPNOTSUPP for flags that mpifs does not have."""
        inode = self._index.inode(ino)
        with self._index.lock:
            protection.set_flags(inode, flags)
            inode.ctime_ns = time.time_ns()
        self._touched(inode)

    # The volume

    def statfs(self) -> SpaceUse:
        """statvfs(3) figures: what is free on the stores, divided by the replicas."""
        free = 0 if self._committer.is_full else self._writeback.free_bytes()
        counters = self._index.counters()
        return SpaceUse(
            free + counters.payload_bytes, free, counters.files, max(free // 4096, 1 if free else 0)
        )
