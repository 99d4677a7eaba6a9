"""The Vfs: every call of a POSIX file system by path, over index and data.

Paths are bytes, absolute inside the volume; symbolic links in them are not followed.  Every failure
is an OSError with its errno.  Any thread may call anything.  The kernel comes in by `nodes`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from mpifs.core.errors import PosixError
from mpifs.core.limits import PATH_BYTES_MAX
from mpifs.core.types import Caller, SpaceUse, Stat
from mpifs.data.scatter import Scatter
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs import protection
from mpifs.vfs.cache import Lent
from mpifs.vfs.change import Change
from mpifs.vfs.committer import Committer
from mpifs.vfs.files import Files
from mpifs.vfs.handles import Handles
from mpifs.vfs.names import Names
from mpifs.vfs.nodes import Nodes
from mpifs.vfs.reader import Reader
from mpifs.vfs.writeback import WriteBack


class Vfs:
    """One volume that is served."""

    def __init__(
        self,
        index: Index,
        scatter: Scatter,
        reader: Reader,
        writeback: WriteBack,
        committer: Committer,
        *,
        noatime: bool = False,
    ) -> None:
        self.index = index
        self.committer = committer
        self.writeback = writeback
        self.scatter = scatter
        self.reader = reader
        self._handles = Handles()
        self._names = Names(index, committer)
        self._files = Files(index, self._handles, reader, writeback, committer, noatime=noatime)
        self.nodes = Nodes(
            index, self._handles, self._names, self._files, writeback, committer, self.layout_of
        )
        writeback.on_lost = lambda inode: self.nodes.on_change([inode.ino], [])
        committer.start(writeback)

    # Attributes

    def _find(self, path: bytes | None, fh: int | None = None) -> Inode:
        """The inode of a handle, else of a path."""
        if fh is not None:
            inode = self._handles.find(fh)
            if inode is not None:
                return inode
        if path is None:
            raise PosixError(errno.EBADF)
        return self.index.resolve(path)

    def getattr(self, path: bytes | None, fh: int | None = None) -> Stat:
        """stat(2).  Raises ENOENT, ENOTDIR, ENAMETOOLONG."""
        return self.nodes.getattr(self._find(path, fh).ino)

    def chmod(self, path: bytes | None, mode: int, fh: int | None = None) -> None:
        """chmod(2)."""
        self.nodes.setattr(self._find(path, fh).ino, Change(mode=mode))

    def chown(self, path: bytes | None, uid: int, gid: int, fh: int | None = None) -> None:
        """chown(2); -1 leaves an id."""
        change = Change(uid=None if uid == -1 else uid, gid=None if gid == -1 else gid)
        self.nodes.setattr(self._find(path, fh).ino, change)

    def utimens(
        self, path: bytes | None, atime: int | None, mtime: int | None, fh: int | None = None
    ) -> None:
        """utimensat(2): ns, TIME_NOW, or None to leave."""
        self.nodes.setattr(self._find(path, fh).ino, Change(atime_ns=atime, mtime_ns=mtime))

    def truncate(
        self, path: bytes | None, size: int, fh: int | None = None, caller: Caller | None = None
    ) -> None:
        """truncate(2), ftruncate(2)."""
        kills = caller is not None and caller.uid != 0
        self.nodes.setattr(self._find(path, fh).ino, Change(size=size, kills=kills))

    # Names

    def mknod(self, path: bytes, mode: int, rdev: int, caller: Caller) -> None:
        """mknod(2)."""
        parent, name = self.index.resolve_parent(path)
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        self._names.make(parent, name, mode, caller, rdev=rdev)

    def mkdir(self, path: bytes, mode: int, caller: Caller) -> None:
        """mkdir(2)."""
        parent, name = self.index.resolve_parent(path)
        self._names.make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def symlink(self, target: bytes, path: bytes, caller: Caller) -> None:
        """symlink(2)."""
        parent, name = self.index.resolve_parent(path)
        self._names.make(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    def readlink(self, path: bytes) -> bytes:
        """readlink(2)."""
        return self.nodes.readlink(self._find(path).ino)

    def link(self, source: bytes, path: bytes) -> None:
        """link(2)."""
        inode = self._find(source)
        parent, name = self.index.resolve_parent(path)
        self._names.link(inode, parent, name)

    def unlink(self, path: bytes) -> None:
        """unlink(2)."""
        self.committer.removed(self._names.unlink(*self.index.resolve_parent(path)))

    def rmdir(self, path: bytes) -> None:
        """rmdir(2)."""
        self._names.rmdir(*self.index.resolve_parent(path))

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """renameat2(2) with NOREPLACE and EXCHANGE."""
        source, target = self.index.resolve_parent(old), self.index.resolve_parent(new)
        replaced = self._names.rename(*source, *target, flags)
        if replaced is not None:
            self.committer.removed(replaced)

    # Files

    def create(self, path: bytes, mode: int, flags: int, caller: Caller) -> int:
        """open(2) with O_CREAT of a name that is not there; the handle."""
        parent, name = self.index.resolve_parent(path)
        inode = self._names.make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
        return self._files.open(inode, flags, is_new=True)[0]

    def open(self, path: bytes, flags: int, caller: Caller | None = None) -> int:
        """open(2) of what is there; truncates when O_TRUNC is among the flags; the handle."""
        if len(path) > PATH_BYTES_MAX * 2:
            raise PosixError(errno.ENAMETOOLONG)
        inode = self._find(path)
        protection.check_open(inode, flags)
        return self._files.open(inode, flags, kills=caller is not None and caller.uid != 0)[0]

    def read(self, fh: int, into: memoryview, offset: int) -> int:
        """pread(2) into a buffer; returns the bytes read."""
        return self.nodes.read(fh, into, offset)

    def lend(self, fh: int, size: int, offset: int) -> Lent | None:
        """pread(2) without a copy, if the bytes lie together in memory; None: `read` them."""
        return self.nodes.lend(fh, size, offset)

    def write(self, fh: int, data: memoryview, offset: int, caller: Caller | None = None) -> int:
        """pwrite(2); returns the bytes taken."""
        return self.nodes.write(fh, data, offset, caller is not None and caller.uid != 0)

    def flush(self, fh: int) -> None:
        """close(2) of one descriptor."""
        self.nodes.flush(fh)

    def release(self, fh: int) -> None:
        """The last close of a handle."""
        self.nodes.release(fh)

    def fsync(self, fh: int, datasync: bool = False) -> None:
        """fsync(2): returns when data and index are durable."""
        self.nodes.fsync(fh, datasync)

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        self.nodes.fallocate(fh, mode, offset, length)

    def lseek(self, fh: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        return self.nodes.lseek(fh, offset, whence)

    def copy_file_range(
        self, fh_in: int, offset_in: int, fh_out: int, offset_out: int, length: int
    ) -> int:
        """copy_file_range(2); returns the bytes copied."""
        return self.nodes.copy_file_range(fh_in, offset_in, fh_out, offset_out, length)

    # Directories

    def opendir(self, path: bytes) -> int:
        """opendir(3).  Raises ENOTDIR."""
        return self.nodes.opendir(self._find(path).ino)

    def readdir(
        self, fh: int, offset: int = 0, plus: bool = True
    ) -> Iterator[tuple[bytes, Stat, int]]:
        """See Nodes.readdir."""
        return self.nodes.readdir(fh, offset, plus)

    def releasedir(self, fh: int) -> None:
        """closedir(3)."""
        self.nodes.releasedir(fh)

    # Extended attributes

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        """setxattr(2)."""
        self.nodes.setxattr(self._find(path).ino, name, value, flags)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """getxattr(2)."""
        return self.nodes.getxattr(self._find(path).ino, name)

    def listxattr(self, path: bytes) -> list[bytes]:
        """listxattr(2)."""
        return self.nodes.listxattr(self._find(path).ino)

    def removexattr(self, path: bytes, name: bytes) -> None:
        """removexattr(2)."""
        self.nodes.removexattr(self._find(path).ino, name)

    # The volume

    def statfs(self) -> SpaceUse:
        """statvfs(3)."""
        return self.nodes.statfs()

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
        inode = self._find(path)
        if not stat.S_ISREG(inode.mode):
            raise PosixError(errno.EINVAL, "only regular files have a layout")
        self._files.fsync(inode)
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
        self.nodes.close()
        try:
            self.committer.close()
        finally:
            self.reader.close()
            self.scatter.close()
