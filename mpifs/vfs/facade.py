"""The Vfs: every call of a POSIX file system, by path or handle, over index and data.

Paths are bytes, absolute inside the volume.  Every failure is an OSError with its errno.  Any
thread may call anything.  Permissions are the kernel's business (`default_permissions`).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator

from mpifs.core.errors import PosixError
from mpifs.core.limits import INDEX_ROW_BYTES, PATH_BYTES_MAX
from mpifs.core.types import TIME_NOW, Caller, SpaceUse, Stat
from mpifs.data.scatter import Scatter
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs import protection
from mpifs.vfs.cache import Lent
from mpifs.vfs.committer import Committer
from mpifs.vfs.directories import Directories
from mpifs.vfs.files import Files, Opened, stat_of
from mpifs.vfs.handles import Handles
from mpifs.vfs.names import Names
from mpifs.vfs.reader import Reader
from mpifs.vfs.writeback import WriteBack
from mpifs.vfs.xattrs import Xattrs


class Vfs:
    """One mounted volume.

    `on_change(paths, handles)` is set by the FUSE adapter: it drops the kernel's caches of these
    names and open handles and returns when that is done (bounded).  Called with no lock held.
    """

    def __init__(
        self,
        index: Index,
        scatter: Scatter,
        reader: Reader,
        writeback: WriteBack,
        committer: Committer,
        *,
        noatime: bool = False,
        refuse_links: bool = False,
    ) -> None:
        self.on_change: Callable[[list[bytes], list[int]], None] = lambda paths, handles: None
        self.index = index
        self.committer = committer
        self.writeback = writeback
        self._scatter = scatter
        self.reader = reader
        self._handles = Handles()
        self._names = Names(
            index,
            self._handles,
            committer,
            self._drop_caches,
            refuse_links=refuse_links,
        )
        self.files = Files(
            index,
            self._handles,
            reader,
            writeback,
            committer,
            self._names,
            noatime=noatime,
        )
        self._directories = Directories(index, self._handles, self._names.seen)
        self._xattrs = Xattrs(index, self.layout_of)
        writeback.on_lost = lambda inode: self._names.changed(inode, None)
        committer.start(writeback)

    def _touched(self, inode: Inode, path: bytes | None) -> None:
        """Attributes of an inode have changed through a path."""
        self.index.touch(inode)
        self.committer.kick()
        if inode.nlink > 1:
            self._names.changed(inode, self._names.alias(path))

    def _drop_caches(self, paths: list[bytes], handles: list[int]) -> None:
        self.on_change(paths, handles)  # set after this object was made

    # Attributes

    def getattr(self, path: bytes | None, fh: int | None = None) -> Stat:
        """stat(2).  Raises ENOENT, ENOTDIR, ENAMETOOLONG."""
        inode = self._names.find(path, fh)
        if inode.nlink > 1 and path is not None and not stat.S_ISDIR(inode.mode):
            self._names.seen(inode, self._names.alias(path))
        return stat_of(inode)

    def chmod(
        self, path: bytes | None, mode: int, fh: int | None = None, caller: Caller | None = None
    ) -> None:
        """chmod(2)."""
        inode = self._names.find(path, fh)
        protection.check_change(inode)
        with self.index.lock:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(mode)
            inode.ctime_ns = time.time_ns()
        self._touched(inode, path)

    def chown(
        self,
        path: bytes | None,
        uid: int,
        gid: int,
        fh: int | None = None,
        caller: Caller | None = None,
    ) -> None:
        """chown(2); -1 leaves an id.  Drops set-id bits of what is no folder, as Linux does."""
        inode = self._names.find(path, fh)
        protection.check_change(inode)
        with self.index.lock:
            if uid != -1:
                inode.uid = uid
            if gid != -1:
                inode.gid = gid
            if not stat.S_ISDIR(inode.mode) and not stat.S_ISLNK(inode.mode):
                inode.mode = protection.without_set_id(inode.mode)
            inode.ctime_ns = time.time_ns()
        self._touched(inode, path)

    def utimens(
        self,
        path: bytes | None,
        atime: int | None,
        mtime: int | None,
        fh: int | None = None,
    ) -> None:
        """utimensat(2): ns, TIME_NOW, or None to leave."""
        inode = self._names.find(path, fh)
        protection.check_change(inode)
        now = time.time_ns()
        with self.index.lock:
            if atime is not None:
                inode.atime_ns = now if atime == TIME_NOW else atime
            if mtime is not None:
                inode.mtime_ns = now if mtime == TIME_NOW else mtime
            inode.ctime_ns = now
        self._touched(inode, path)

    def truncate(
        self,
        path: bytes | None,
        size: int,
        fh: int | None = None,
        caller: Caller | None = None,
    ) -> None:
        """truncate(2), ftruncate(2)."""
        inode = self._names.find(path, fh)
        protection.check_change(inode)
        alias = self._names.alias(path) if inode.nlink > 1 else None
        self.files.truncate(inode, size, alias, caller)

    # Names

    def mknod(self, path: bytes, mode: int, rdev: int, caller: Caller) -> None:
        """mknod(2)."""
        self._names.mknod(path, mode, rdev, caller)

    def mkdir(self, path: bytes, mode: int, caller: Caller) -> None:
        """mkdir(2)."""
        self._names.mkdir(path, mode, caller)

    def symlink(self, target: bytes, path: bytes, caller: Caller) -> None:
        """symlink(2)."""
        self._names.symlink(target, path, caller)

    def readlink(self, path: bytes) -> bytes:
        """readlink(2)."""
        return self._names.readlink(path)

    def link(self, source: bytes, path: bytes) -> None:
        """link(2)."""
        self._names.link(source, path)

    def unlink(self, path: bytes) -> None:
        """unlink(2); also libfuse's farewell to a removed open file."""
        self._names.unlink(path)

    def rmdir(self, path: bytes) -> None:
        """rmdir(2)."""
        self._names.rmdir(path)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """renameat2(2) with NOREPLACE and EXCHANGE."""
        self._names.rename(old, new, flags)

    def hide(self, path: bytes, hidden: bytes, keeps_name: bool) -> None:
        """From now on the FUSE library calls an open file `hidden`; see Names.hide."""
        self._names.hide(path, hidden, keeps_name)

    # Files

    def create(self, path: bytes, mode: int, flags: int, caller: Caller) -> Opened:
        """open(2) with O_CREAT of a name that is not there."""
        inode, alias = self._names.make(path, stat.S_IFREG | stat.S_IMODE(mode), caller)
        return self.files.open(inode, flags, alias, caller, is_new=True)

    def open(self, path: bytes, flags: int, caller: Caller | None = None) -> Opened:
        """open(2) of what is there; truncates when O_TRUNC is among the flags."""
        if len(path) > PATH_BYTES_MAX * 2:
            raise PosixError(errno.ENAMETOOLONG)
        inode = self._names.find(path)
        protection.check_open(inode, flags)
        alias = self._names.alias(path) or (inode.parent, inode.name)
        self._names.seen(inode, alias)
        return self.files.open(inode, flags, alias, caller)

    def read(self, fh: int, into: memoryview, offset: int) -> int:
        """pread(2) into a buffer; returns the bytes read."""
        return self.files.read(self._handles.file(fh), into, offset)

    def lend(self, fh: int, size: int, offset: int) -> Lent | None:
        """pread(2) without a copy, if the bytes lie together in memory; None: `read` them."""
        return self.files.lend(self._handles.file(fh), size, offset)

    def write(self, fh: int, data: memoryview, offset: int, caller: Caller | None = None) -> int:
        """pwrite(2); returns the bytes taken."""
        return self.files.write(self._handles.file(fh), data, offset, caller)

    def flush(self, fh: int) -> None:
        """close(2) of one descriptor."""
        self.files.flush(self._handles.file(fh))

    def release(self, fh: int) -> None:
        """The last close of a handle."""
        self.files.release(fh)

    def fsync(self, fh: int, datasync: bool = False) -> None:
        """fsync(2): returns when data and index are durable."""
        self.files.fsync(self._handles.file(fh).inode)

    def fallocate(
        self, fh: int, mode: int, offset: int, length: int, caller: Caller | None = None
    ) -> None:
        """fallocate(2)."""
        self.files.allocate(self._handles.file(fh), mode, offset, length, caller)

    def lseek(self, fh: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        return self.files.seek(self._handles.file(fh), offset, whence)

    def copy_file_range(
        self,
        fh_in: int,
        offset_in: int,
        fh_out: int,
        offset_out: int,
        length: int,
        caller: Caller | None = None,
    ) -> int:
        """copy_file_range(2); returns the bytes copied."""
        source, target = self._handles.file(fh_in), self._handles.file(fh_out)
        return self.files.copy_range(source, offset_in, target, offset_out, length, caller)

    # Directories

    def opendir(self, path: bytes) -> int:
        """opendir(3).  Raises ENOTDIR."""
        return self._directories.open(self._names.find(path))

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
        self.committer.commit()

    # Extended attributes

    @property
    def has_xattrs(self) -> bool:
        """Whether any file may have attributes other than mpifs's own."""
        return self.index.has_xattrs

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        """setxattr(2)."""
        inode = self._names.find(path)
        protection.check_change(inode)
        self.committer.claim_room(INDEX_ROW_BYTES + len(value))
        with self.index.lock:
            self._xattrs.set(inode, name, value, flags, time.time_ns())
        self._touched(inode, path)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """getxattr(2)."""
        return self._xattrs.get(self._names.find(path), name)

    def listxattr(self, path: bytes) -> list[bytes]:
        """listxattr(2)."""
        return self._xattrs.names(self._names.find(path))

    def removexattr(self, path: bytes, name: bytes) -> None:
        """removexattr(2)."""
        inode = self._names.find(path)
        protection.check_change(inode)
        with self.index.lock:
            self._xattrs.remove(inode, name, time.time_ns())
        self._touched(inode, path)

    def getflags(self, path: bytes | None, fh: int | None = None) -> int:
        """FS_IOC_GETFLAGS: immutable and append-only."""
        return protection.flags_of(self._names.find(path, fh))

    def setflags(self, path: bytes | None, flags: int, fh: int | None = None) -> None:
        """FS_IOC_SETFLAGS.  Raises EOPNOTSUPP for flags that mpifs does not have."""
        inode = self._names.find(path, fh)
        with self.index.lock:
            protection.set_flags(inode, flags)
            inode.ctime_ns = time.time_ns()
        self._touched(inode, path)

    # The volume

    def statfs(self) -> SpaceUse:
        """statvfs(3) figures: what is free on the stores, divided by the replicas."""
        free = 0 if self.committer.is_full else self.writeback.free_bytes()
        counters = self.index.counters()
        return SpaceUse(
            free + counters.payload_bytes, free, counters.files, max(free // 4096, 1 if free else 0)
        )

    def sync(self) -> None:
        """sync(2): everything durable."""
        self.committer.sync()

    def drop_caches(self) -> None:
        """Makes everything durable and forgets the clean chunks: the next read comes from a store.
        The kernel's caches are the caller's business (posix_fadvise)."""
        self.committer.sync()
        self.reader.cache.clear()

    def layout(self, path: bytes) -> dict[str, object]:
        """Where the chunks of a file lie, as `mpifs layout --json` shows it; flushes the file."""
        inode = self._names.find(path)
        if not stat.S_ISREG(inode.mode):
            raise PosixError(errno.EINVAL, "only regular files have a layout")
        self.files.fsync(inode)
        return {"path": os.fsdecode(path), **self.layout_of(inode)}

    def layout_of(self, inode: Inode) -> dict[str, object]:
        """Layout of an inode as the index has it now."""
        chunks: list[dict[str, object]] = []
        first = 0
        while page := self.index.refs(inode.ino, first, 1024):
            chunks.extend(
                {
                    "index": chunk,
                    "length": ref.length,
                    "checksum": ref.checksum.hex(),
                    "workers": list(ref.stores),
                }
                for chunk, ref in page
            )
            first = page[-1][0] + 1
        return {
            "size": inode.size,
            "chunk_size": inode.chunk_size,
            "replicas": inode.replicas,
            "chunks": chunks,
        }

    def close(self) -> None:
        """Flushes and commits everything and ends the threads.  Raises what could not be saved."""
        for number in self._handles.files():
            self.release(number)
        try:
            self.committer.close()
        finally:
            self.reader.close()
            self._scatter.close()


__all__ = ["Opened", "Vfs"]
