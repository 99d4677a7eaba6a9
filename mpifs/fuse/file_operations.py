"""Requests on open files.  `read` fills the answer and `write` takes the request where they lie."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import BULK_BYTES
from mpifs.fuse.attributes import Answers
from mpifs.fuse.protocol import (
    BODY_AT,
    COPY_IN,
    DIRECT_IO,
    FALLOCATE_IN,
    FH,
    FH_FLAGS,
    KEEP_CACHE,
    LSEEK_IN,
    MKNOD_IN,
    NO_FLUSH,
    OPEN_IN,
    OPEN_KILL_SUIDGID,
    OPEN_OUT,
    READ_IN,
    WRITE_IN_BYTES,
    WRITE_KILL_SUIDGID,
    WRITE_OUT,
    Opcode,
)

if TYPE_CHECKING:
    from mpifs.fuse.operations import Handler
    from mpifs.fuse.request import Request
    from mpifs.vfs.nodes import Nodes

_WRITE_DATA_AT = BODY_AT + WRITE_IN_BYTES
assert _WRITE_DATA_AT == IMAGE_HEADER_BYTES


class FileOperations:
    """open to release.  Any number of threads; no state.

    `write_back(node)` has the kernel write what it holds dirty of a node (write-back cache):
    without it a hole would be seen where data is to come.
    """

    def __init__(self, nodes: Nodes, answers: Answers, write_back: Callable[[int], object]) -> None:
        self._nodes = nodes
        self._write_back = write_back
        self._answers = answers

    def handlers(self) -> dict[int, Handler]:
        """By opcode."""
        return {
            Opcode.CREATE: self.create,
            Opcode.OPEN: self.open,
            Opcode.READ: self.read,
            Opcode.WRITE: self.write,
            Opcode.FLUSH: self.flush,
            Opcode.RELEASE: self.release,
            Opcode.FSYNC: self.fsync,
            Opcode.FALLOCATE: self.fallocate,
            Opcode.LSEEK: self.lseek,
            Opcode.COPY_FILE_RANGE: self.copy_file_range,
        }

    def create(self, request: Request) -> bytes:
        """open(2) with O_CREAT of a name that the kernel does not know."""
        flags, mode, _, _ = MKNOD_IN.unpack_from(request.view, BODY_AT)
        name = request.name(MKNOD_IN.size)
        stat, fh, is_direct = self._nodes.create(request.nodeid, name, mode, flags, request.caller)
        return self._answers.entry(stat) + _opened(fh, is_direct, flags)

    def open(self, request: Request) -> bytes:
        """open(2) of what is there; truncates when O_TRUNC is set."""
        flags, more = OPEN_IN.unpack_from(request.view, BODY_AT)
        kills = bool(more & OPEN_KILL_SUIDGID)
        return _opened(*self._nodes.open(request.nodeid, flags, kills=kills), flags=flags)

    def read(self, request: Request) -> None:
        """pread(2), from where the bytes lie or straight into the answer."""
        fh, offset, size, _ = READ_IN.unpack_from(request.view, BODY_AT)
        nodes = self._nodes
        if size >= BULK_BYTES:  # whole chunks are fetched, and a copy costs more than lending.
            lent = nodes.lend(fh, size, offset)
            if lent is not None:
                with lent:
                    request.answer(lent.payload)
                return
        with request.room(size) as into:
            count = nodes.read(fh, into, offset)
        request.answer_room(count)

    def write(self, request: Request) -> bytes:
        """pwrite(2), straight from the request; a whole chunk stays in the request's memory."""
        fh, offset, size, flags = READ_IN.unpack_from(request.view, BODY_AT)
        kills = bool(flags & WRITE_KILL_SUIDGID)
        if size >= BULK_BYTES and self._nodes.take(
            fh, request.memory, size, offset, request.exchange, kills
        ):
            return WRITE_OUT.pack(size)
        with request.view[_WRITE_DATA_AT : _WRITE_DATA_AT + size] as data:
            count = self._nodes.write(fh, data, offset, kills)
        return WRITE_OUT.pack(count)

    def flush(self, request: Request) -> bytes:
        """close(2) of one descriptor."""
        self._nodes.flush(FH.unpack_from(request.view, BODY_AT)[0])
        return b""

    def release(self, request: Request) -> bytes:
        """The last close."""
        self._nodes.release(FH.unpack_from(request.view, BODY_AT)[0])
        return b""

    def fsync(self, request: Request) -> bytes:
        """fsync(2), fdatasync(2)."""
        fh, flags = FH_FLAGS.unpack_from(request.view, BODY_AT)
        self._nodes.fsync(fh, bool(flags & 1))
        return b""

    def fallocate(self, request: Request) -> bytes:
        """fallocate(2)."""
        fh, offset, length, mode = FALLOCATE_IN.unpack_from(request.view, BODY_AT)
        self._nodes.fallocate(fh, mode, offset, length, request.caller.uid != 0)
        return b""

    def lseek(self, request: Request) -> bytes:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        fh, offset, whence = LSEEK_IN.unpack_from(request.view, BODY_AT)
        self._write_back(request.nodeid)
        return FH.pack(self._nodes.lseek(fh, offset, whence))

    def copy_file_range(self, request: Request) -> bytes:
        """copy_file_range(2)."""
        fh, offset, _, to_fh, to, length, flags = COPY_IN.unpack_from(request.view, BODY_AT)
        if flags:
            raise OSError(errno.EINVAL, "copy_file_range has no flags")
        kills = request.caller.uid != 0
        return WRITE_OUT.pack(self._nodes.copy_file_range(fh, offset, to_fh, to, length, kills))


def _opened(fh: int, is_direct: bool, flags: int) -> bytes:
    """The kernel's pages stay: nobody but this mount changes a file, or the kernel is told."""
    how = KEEP_CACHE
    if flags & os.O_ACCMODE == os.O_RDONLY:
        how |= NO_FLUSH  # of a reader nothing is to be told at its close
    if is_direct:
        how |= DIRECT_IO
    return OPEN_OUT.pack(fh, how, 0)
