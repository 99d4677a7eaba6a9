"""Writing chunks into files of another file system, and proving that they lie there.

    payload (checked against the index's sum) → written → synced → read back, compared → renamed

What is read back comes from the disk where the file system obeys POSIX_FADV_DONTNEED.  A file gets
its name only when that has been right, so nobody ever finds wrong bytes under it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Callable

from mpifs import faultpoint
from mpifs.core.checksum import ChecksumFunction, function_of
from mpifs.core.errors import DamageError, MpifsError, PosixError
from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import STAGE_DETAIL_MAX, STAGE_SYNC_COUNT
from mpifs.core.stage_messages import Dress, StageDone, StageOutOrder, StageOutPart
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.store.chunks import ChunkStore

Payload = Callable[[StageOutPart], bytes]
"""A chunk's bytes.  Raises MpifsError."""

UNSEEN = errno.EXDEV
"""Of an order whose probe is not there: this host has another file system at these paths."""
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def stored_payload(store: ChunkStore, item: StageOutPart) -> bytes:
    """A copy of a stored chunk's payload.  Raises ChunkMissingError, DamageError."""
    with store.get(ChunkKey(item.inode, item.chunk, item.generation)) as lease:
        return bytes(lease.image[IMAGE_HEADER_BYTES:])


class _Written:
    """A part that is written: its place in the order, and its open file.  `is_done`: all of it."""

    __slots__ = ("checksum", "file", "folder", "is_done", "item", "number")

    def __init__(
        self, number: int, item: StageOutPart, folder: int, file: int, checksum: bytes
    ) -> None:
        self.number = number
        self.item = item
        self.folder = folder
        self.file = file
        self.checksum = checksum
        self.is_done = False


def carry_out(
    order: StageOutOrder, kind: ChecksumKind, payload: Payload, deadline_s: float
) -> list[StageDone]:
    """Writes and proves the parts of an order; what became of each.  Raises EXDEV (UNSEEN)."""
    if not os.path.exists(order.probe):
        raise PosixError(UNSEEN, "this host has another file system there")
    work = _Work(order, function_of(kind), payload)
    try:
        for number, item in enumerate(order.items):
            try:
                if time.monotonic() > deadline_s:
                    raise PosixError(errno.ETIMEDOUT, "the file system of the target is slow")
                work.write(number, item)
            except OSError as error:
                work.failed(number, error)
        work.sync()
        for each in work.written:
            try:
                if each.is_done:
                    work.prove(each)
            except OSError as error:
                work.failed(each.number, error)
    finally:
        work.close()
    return work.answers


class _Work:
    """One order being carried out.  `answers` has a row per part at the end."""

    def __init__(self, order: StageOutOrder, checksum: ChecksumFunction, payload: Payload) -> None:
        self._paths = order.folders
        self._open: dict[int, int] = {}
        self._sum = checksum
        self._payload = payload
        self._sync_error: OSError | None = None
        self.written: list[_Written] = []
        self.answers = [StageDone(errno.EIO, b"", "not done") for _ in order.items]

    def failed(self, number: int, error: OSError) -> None:
        """A part could not be done."""
        sentence = str(error) if isinstance(error, MpifsError) else str(error.strerror or error)
        code = error.errno or errno.EIO
        self.answers[number] = StageDone(code, b"", sentence[:STAGE_DETAIL_MAX])

    def write(self, number: int, item: StageOutPart) -> None:
        """Compares a part with what is there, or writes it.  Raises OSError."""
        folder = self._folder(item.folder)
        data, checksum = memoryview(b""), item.checksum
        if item.keep < item.length:
            data = self._payload_of(item)[: item.keep]
            checksum = self._sum(data)
        if item.checks and self._is_there(folder, item, checksum):
            self.answers[number] = StageDone(0, item.checksum, was_there=True)
            return
        if not item.writes:
            raise DamageError("other bytes lie there")
        data = data or self._payload_of(item)
        if item.final:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(item.name, dir_fd=folder)  # what a run that was killed has left
            file = os.open(item.name, _OPEN | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        else:
            file = os.open(item.name, _OPEN, dir_fd=folder)
        written = _Written(number, item, folder, file, checksum)
        self.written.append(written)
        position = item.offset
        while data:
            count = os.pwrite(file, data, position)
            data, position = data[count:], position + count
        if item.dress is not None:
            dress(file, item.dress)
        written.is_done = True
        faultpoint.reach("stage.written_part")

    def _payload_of(self, item: StageOutPart) -> memoryview:
        data = memoryview(self._payload(item))
        if len(data) != item.length or self._sum(data) != item.checksum:
            raise DamageError("the store holds other bytes: checksum is wrong")
        return data

    def sync(self) -> None:
        """Everything written is on the disk afterwards; many files of one file system together."""
        try:
            if len(self.written) < STAGE_SYNC_COUNT:
                for each in self.written:
                    os.fsync(each.file)
                return
            devices = {os.fstat(each.file).st_dev: each.file for each in self.written}
            for file in devices.values():
                sync_file_system(file)
        except OSError as error:
            self._sync_error = error

    def prove(self, each: _Written) -> None:
        """Reads a part back; then a whole file gets its name.  Raises OSError."""
        if self._sync_error is not None:
            raise self._sync_error
        item = each.item
        os.posix_fadvise(each.file, item.offset, item.keep, os.POSIX_FADV_DONTNEED)
        if not self._has(each.file, item, each.checksum):
            raise DamageError("what lies there is not what was written: its disk is damaged")
        if item.final:
            if os.fstat(each.file).st_size != item.keep:
                raise DamageError("another program has written to the file meanwhile")
            os.rename(item.name, item.final, src_dir_fd=each.folder, dst_dir_fd=each.folder)
        self.answers[each.number] = StageDone(0, item.checksum)

    def _is_there(self, folder: int, item: StageOutPart, checksum: bytes) -> bool:
        """Whether the file as it is has the right bytes in this place."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = os.open(item.final or item.name, flags, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                return False
            raise
        try:
            is_long = item.final and os.fstat(file).st_size != item.keep
            return not is_long and self._has(file, item, checksum)
        finally:
            os.close(file)

    def _has(self, file: int, item: StageOutPart, checksum: bytes) -> bool:
        data = bytearray(item.keep)
        view, count = memoryview(data), 0
        while count < item.keep:
            more = os.preadv(file, [view[count:]], item.offset + count)
            if not more:
                return False
            count += more
        return self._sum(data) == checksum

    def _folder(self, number: int) -> int:
        folder = self._open.get(number)
        if folder is None:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            folder = self._open[number] = os.open(self._paths[number], flags)
        return folder

    def close(self) -> None:
        """Closes all files; what was made and has got no name goes."""
        for each in self.written:
            os.close(each.file)
            if each.item.final and self.answers[each.number].code:
                with contextlib.suppress(OSError):
                    os.unlink(each.item.name, dir_fd=each.folder)
        for folder in self._open.values():
            os.close(folder)


def dress(file: int, looks: Dress) -> None:
    """Gives an open file its attributes, times last.  Raises OSError."""
    for name, value in looks.xattrs:
        try:
            os.setxattr(file, name, value)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
    if looks.uid != -1:
        os.fchown(file, looks.uid, looks.gid)
    os.fchmod(file, looks.mode)
    os.utime(file, ns=(looks.atime_ns, looks.mtime_ns))


def sync_file_system(file: int) -> None:
    """syncfs(2) of the file system of an open file.  Raises OSError."""
    if _libc.syncfs(file):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


_libc = ctypes.CDLL(None, use_errno=True)
