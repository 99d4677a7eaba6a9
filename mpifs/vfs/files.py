"""Open files: open, read, write, truncate, fallocate, lseek, flush, fsync, release."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable

from mpifs.core.errors import PosixError
from mpifs.core.limits import FILE_BYTES_MAX, INDEX_REF_BYTES
from mpifs.core.records import FLAG_XATTRS
from mpifs.core.types import Stat
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs.cache import Lent
from mpifs.vfs.committer import Committer
from mpifs.vfs.dirty_memory import buffer_bytes
from mpifs.vfs.file_data import FileData
from mpifs.vfs.handles import FileHandle, Handles
from mpifs.vfs.protection import CAPABILITY, SET_ID, check_change, without_set_id
from mpifs.vfs.reader import Reader
from mpifs.vfs.writeback import WriteBack

_DAY_NS = 86_400 * 10**9
_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_ZERO_RANGE = 16


def stat_of(inode: Inode) -> Stat:
    """Attributes as the user sees them now."""
    data = inode.data
    stored = inode.bytes_stored
    if isinstance(data, FileData) and data.has_unwritten:
        unwritten = sum(b.length for b in [*data.dirty.values(), *data.in_flight])
        # Most often what is unwritten takes the place of something, or goes to the end.
        stored = min(stored + unwritten, max(stored, inode.size))
    return Stat(
        inode.ino,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev,
        inode.size,
        (stored + 511) // 512,
        inode.chunk_size,
        inode.atime_ns,
        inode.mtime_ns,
        inode.ctime_ns,
    )


class Files:
    """Data operations by inode or handle.  Any thread.

    `kills`: the change of the content takes set-id bits off (see vfs/protection.py).
    """

    def __init__(
        self,
        index: Index,
        handles: Handles,
        reader: Reader,
        writeback: WriteBack,
        committer: Committer,
        *,
        noatime: bool,
    ) -> None:
        self._index = index
        self._handles = handles
        self._reader = reader
        self._writeback = writeback
        self._committer = committer
        self._noatime = noatime
        self.has_direct_writers = False
        """Set once, before the kernel opens anything: whether its writers may go past its cache."""

    def open(
        self,
        inode: Inode,
        flags: int,
        *,
        is_new: bool = False,
        by_kernel: bool = False,
        kills: bool = False,
    ) -> tuple[int, bool]:
        """Opens a regular file (or a node that the kernel lets through): the handle's number, and
        whether it goes past the kernel's page cache (see FileData.take_handle).

        Raises EISDIR, ENFILE; ENOENT if it was removed while this call was on its way: its data may
        be dropped by then (Committer.removed looks at the handles under the same lock), unless the
        kernel knows the file (`by_kernel`), for which it is kept.
        """
        if stat.S_ISDIR(inode.mode):
            raise PosixError(errno.EISDIR)
        handle = FileHandle(inode, flags)
        number = self._handles.add(handle)
        self._index.pin(inode)
        with self._writeback.locked(inode) as data:
            is_gone = inode.reaped or not (inode.nlink or data.handles or by_kernel)
            if not is_gone:
                data.handles.add(number)
                if by_kernel and self.has_direct_writers:
                    handle.is_direct = data.take_handle(
                        reads=handle.can_read, writes=handle.can_write
                    )
        if is_gone:
            self._handles.remove(number)
            self._index.unpin(inode)
            raise PosixError(errno.ENOENT)
        if flags & os.O_TRUNC and not is_new:
            self.truncate(inode, 0, kills=kills)
        return number, handle.is_direct is True

    def read(self, handle: FileHandle, into: memoryview, offset: int) -> int:
        """Returns the bytes read."""
        count = self._reader.read(handle, into, offset)
        self._touch_atime(handle.inode)
        return count

    def lend(self, handle: FileHandle, size: int, offset: int) -> Lent | None:
        """As `read`, without a copy, if the bytes lie together; see Reader.lend."""
        lent = self._reader.lend(handle, size, offset)
        if lent is not None:
            self._touch_atime(handle.inode)
        return lent

    def _touch_atime(self, inode: Inode) -> None:
        """As mount(8) has it for relatime."""
        if self._noatime:
            return
        atime, now = inode.atime_ns, time.time_ns()
        if atime <= inode.mtime_ns or atime <= inode.ctime_ns or now - atime > _DAY_NS:
            inode.atime_ns = now
            self._index.touch(inode)
            self._committer.kick()

    def write(
        self, handle: FileHandle, source: memoryview, offset: int, kills: bool = False
    ) -> int:
        """Returns the bytes taken.  Raises EBADF, EFBIG, ENOSPC, or the file's pending error."""
        size = len(source)
        inode = handle.inode
        data = inode.data
        if isinstance(data, FileData) and data.dirty and handle.can_write and not data.error:
            with data.lock:
                if self._writeback.write_more(data, source, offset):
                    self._note_write(inode, kills)
                    return size
        data = self._admit(handle, size, offset)
        with data.lock:
            self._writeback.write(data, source, offset)
            self._note_write(inode, kills)
        return size

    def take(
        self,
        handle: FileHandle,
        memory: bytearray,
        size: int,
        offset: int,
        exchange: Callable[[bytearray], None],
        kills: bool = False,
    ) -> bool:
        """As `write` of bytes that are a whole chunk and stand where they do in a chunk's buffer;
        see Nodes.take."""
        chunk_size = handle.inode.chunk_size
        if size != chunk_size or offset % chunk_size or len(memory) != buffer_bytes(chunk_size):
            return False
        data = self._admit(handle, size, offset)
        with data.lock:
            is_taken = self._writeback.take(data, memory, offset, exchange)
            if is_taken:
                self._note_write(data.inode, kills)
        return is_taken

    def _note_write(self, inode: Inode, kills: bool) -> None:
        """Requires: the file's lock is held."""
        self._drop_privileges(inode, kills)
        inode.mtime_ns = inode.ctime_ns = time.time_ns()
        self._index.touch(inode)

    def _admit(self, handle: FileHandle, size: int, offset: int) -> FileData:
        """Claims the room for a write, waits for memory."""
        if not handle.can_write:
            raise PosixError(errno.EBADF)
        if offset + size > FILE_BYTES_MAX:
            raise PosixError(errno.EFBIG)
        inode = handle.inode
        data = inode.data
        assert isinstance(data, FileData)
        if data.error is not None:
            raise data.error
        is_growth = offset + size > inode.size
        chunk_size = inode.chunk_size
        refs = size // chunk_size + 1
        # A chunk's ref is replaced, and the first one's room was claimed with the name.
        takes_refs = offset + size > max(-(-inode.size // chunk_size), 1) * chunk_size
        self._committer.claim_room(refs * INDEX_REF_BYTES, is_growth=takes_refs)
        self._writeback.admit(size, is_growth=is_growth)
        return data

    def truncate(self, inode: Inode, size: int, *, kills: bool = False) -> None:
        """Raises EINVAL, EISDIR, EFBIG."""
        if stat.S_ISDIR(inode.mode):
            raise PosixError(errno.EISDIR)
        if not stat.S_ISREG(inode.mode) or size < 0:
            raise PosixError(errno.EINVAL)
        if size > FILE_BYTES_MAX:
            raise PosixError(errno.EFBIG)
        with self._writeback.locked(inode) as data:
            self._writeback.truncate(data, size)
            self._note_write(inode, kills)
        self._committer.kick()

    def allocate(
        self,
        handle: FileHandle,
        mode: int,
        offset: int,
        length: int,
        kills: bool = False,
    ) -> None:
        """fallocate(2): modes 0, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE; others EOPNOTSUPP."""
        if not handle.can_write:
            raise PosixError(errno.EBADF)
        if offset < 0 or length <= 0:
            raise PosixError(errno.EINVAL)
        if offset + length > FILE_BYTES_MAX:
            raise PosixError(errno.EFBIG)
        if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE):
            raise PosixError(errno.EOPNOTSUPP)
        if mode & _PUNCH_HOLE and not mode & _KEEP_SIZE:
            raise PosixError(errno.EOPNOTSUPP)
        inode = handle.inode
        check_change(inode)
        end = offset + length
        if mode & (_PUNCH_HOLE | _ZERO_RANGE):
            self._writeback.admit(2 * inode.chunk_size)
        elif self._writeback.free_bytes() < max(0, end - inode.size):
            raise PosixError(errno.ENOSPC)
        with self._writeback.locked(inode) as data:
            if mode & (_PUNCH_HOLE | _ZERO_RANGE) and offset < inode.size:
                self._writeback.zero(data, offset, min(end, inode.size))
            if not mode & _KEEP_SIZE and end > inode.size:
                self._writeback.truncate(data, end)
            self._note_write(inode, kills)
        self._committer.kick()

    def _drop_privileges(self, inode: Inode, kills: bool) -> None:
        """The content is changed: that a program is trusted was said of the former one.

        Capabilities go in any case, as Linux has it; set-id bits if the caller is not trusted to
        keep them.  Requires: the file's lock is held."""
        if kills and inode.mode & SET_ID:
            inode.mode = without_set_id(inode.mode)
        if inode.flags & FLAG_XATTRS:
            with contextlib.suppress(PosixError):  # ENODATA: it has others
                self._index.remove_xattr(inode, CAPABILITY, now_ns=time.time_ns())

    def seek(self, handle: FileHandle, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE, chunk-wise; past the end ENXIO."""
        inode = handle.inode
        size = inode.size
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise PosixError(errno.EINVAL)
        if offset < 0 or offset >= size:
            raise PosixError(errno.ENXIO)
        chunk_size = inode.chunk_size
        dirty: set[int] = set()
        data = inode.data
        if isinstance(data, FileData):
            with data.lock:
                dirty.update(data.dirty)
                dirty.update(b.chunk for b in data.in_flight if not b.is_cancelled)
        last = (size - 1) // chunk_size
        chunk = offset // chunk_size
        wants_data = whence == os.SEEK_DATA
        while chunk <= last:
            if wants_data:
                stored = self._index.refs(inode.ino, chunk, 1)
                found = min(
                    [c for c in dirty if c >= chunk] + [c for c, _ in stored], default=last + 1
                )
                if found > chunk:
                    self._index.check_holes(inode)
                if found > last:
                    raise PosixError(errno.ENXIO)
                return max(offset, found * chunk_size)
            if chunk not in dirty and self._index.ref(inode, chunk) is None:
                return max(offset, chunk * chunk_size)
            chunk += 1
        return size

    def copy_range(
        self,
        source: FileHandle,
        offset: int,
        target: FileHandle,
        to: int,
        length: int,
        kills: bool = False,
    ) -> int:
        """copy_file_range(2) by way of memory, at most one chunk a call."""
        length = min(length, source.inode.size - offset, source.inode.chunk_size)
        if length <= 0:
            return 0
        if source.inode is target.inode and abs(to - offset) < length:
            raise PosixError(errno.EINVAL)
        buffer = memoryview(bytearray(length))
        count = self.read(source, buffer, offset)
        return self.write(target, buffer[:count], to, kills) if count else 0

    def flush(self, handle: FileHandle) -> None:
        """close(2): the data is on its way within the commit interval; remembered errors now."""
        data = handle.inode.data
        if not isinstance(data, FileData) or not handle.can_write:
            return
        if data.has_unwritten:
            data.closing = True
            self._committer.kick()
            if self._writeback.is_tight():
                self._writeback.flush(data)
                self._writeback.wait(data)
        error = data.take_error()
        if error is not None:
            raise error

    def fsync(self, inode: Inode) -> None:
        """Data and index durable."""
        data = inode.data
        self._committer.sync_file(data if isinstance(data, FileData) else None)

    def release(self, number: int) -> None:
        """The last close of a handle.  Raises EBADF."""
        handle = self._handles.file(number)
        self._handles.remove(number)
        inode = handle.inode
        with self._writeback.locked(inode) as data:
            data.handles.discard(number)
            if handle.is_direct is not None:
                data.give_handle(
                    is_direct=handle.is_direct, reads=handle.can_read, writes=handle.can_write
                )
            is_due = not data.handles and (data.has_unwritten or not inode.nlink)
        if is_due:
            self._committer.removed(inode)
            self._committer.kick()
        self._index.unpin(inode)
