"""One raw request of the kernel's protocol.  Numbers: include/uapi/linux/fuse.h."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
from collections.abc import Sequence
from typing import Any

from mpifs.core.types import Caller

log = logging.getLogger(__name__)

HEADER_BYTES = 40
_CALLER = struct.Struct("=3I")
_CALLER_AT = 24
_IN_ALL = struct.Struct("=2I2Q")
_SIZE = struct.Struct("=I")
_OUT = struct.Struct("=IiQ")
"""fuse_out_header: length, -errno, unique."""
_VIEW_BYTES = 1024 * 1024 + 4096
"""Of libfuse 3's buffer: a WRITE of 1 MiB with its header.  A later one may have a longer."""

_memoryview_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memoryview_at.restype = ctypes.py_object
_memoryview_at.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]


def _memory_at(address: int, size: int) -> memoryview:
    """The bytes at an address, writable.  Not to be used once the memory is gone."""
    view: memoryview = _memoryview_at(address, size, 0x200)
    return view


class Buffer(ctypes.Structure):
    """struct fuse_buf: one raw request."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("mem", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("pos", ctypes.c_longlong),
    )


class Request:
    """The request that one loop thread is serving.  Valid until its next `receive`.

    struct fuse_in_header: len 4, opcode 4, unique 8, nodeid 8, uid 4, gid 4, pid 4, 4 of padding.
    """

    __slots__ = (
        "_answer",
        "_buffer",
        "_caller",
        "_caller_ids",
        "_channel",
        "_device",
        "_library",
        "_memory",
        "_pointer",
        "_seen",
        "_session",
        "_size",
        "length",
        "nodeid",
        "opcode",
        "unique",
        "view",
    )

    GETATTR = 3
    UNLINK = 10
    RENAME = 12
    OPEN = 14
    READ = 15
    WRITE = 16
    GETXATTR = 22
    FLUSH = 25
    RENAME2 = 45

    def __init__(
        self, library: Any, session: int, channel: int | None, size: int, device: int
    ) -> None:
        self._device = device
        self._answer = bytearray(_OUT.size)
        self._library = library
        self._session = session
        self._channel = ctypes.c_void_p(channel)
        self._size = size
        self._memory = ctypes.create_string_buffer(size) if size else None
        self._buffer = Buffer()
        self._pointer = ctypes.byref(self._buffer)
        self._caller = Caller(0, 0, 0)
        self._caller_ids = bytes(_CALLER.size)
        self._seen = 0
        self.view = memoryview(b"")
        """The library's buffer; `length` bytes of it are the request."""
        self.length = self.opcode = self.unique = self.nodeid = 0

    def receive(self) -> int:
        """Waits for a request.  Bytes received, 0 at the end of the mount, or -errno."""
        buffer = self._buffer
        if self._memory is None:
            result: int = self._library.fuse_session_receive_buf(self._session, self._pointer)
        else:
            buffer.mem = ctypes.addressof(self._memory)
            buffer.size = self._size
            buffer.flags = 0
            result = self._library.fuse_session_receive_buf(
                self._session, self._pointer, ctypes.byref(self._channel)
            )
        if result > 0:
            memory = buffer.mem
            if memory != self._seen or result > len(self.view):
                self._seen = memory  # the library keeps one buffer, but may exchange it
                self.view = _memory_at(memory, max(result, _VIEW_BYTES))
            self.length, self.opcode, self.unique, self.nodeid = _IN_ALL.unpack_from(self.view)
        return result

    def process(self) -> None:
        """Has the library serve it: the callbacks run in this thread."""
        if self._memory is None:
            self._library.fuse_session_process_buf(self._session, self._pointer)
        else:
            self._library.fuse_session_process_buf(self._session, self._pointer, self._channel)

    def room(self, size: int) -> memoryview:
        """Where `size` bytes of an answer go, until the next call."""
        if len(self._answer) < _OUT.size + size:
            self._answer = bytearray(_OUT.size + size)
        return memoryview(self._answer)[_OUT.size : _OUT.size + size]

    def answer(self, result: int) -> None:
        """Answers past the library: -errno, or with the first `result` bytes of the `room`."""
        size = _OUT.size + max(0, result)
        _OUT.pack_into(self._answer, 0, size, min(0, result), self.unique)
        with memoryview(self._answer)[:size] as whole:
            self._send((whole,))

    def answer_from(self, data: memoryview) -> None:
        """Answers past the library with bytes that lie elsewhere."""
        head = _OUT.pack(_OUT.size + len(data), 0, self.unique)
        self._send((head, data))

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:  # ENOENT: the asker was killed; else the mount is at its end
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                log.error("an answer was not taken: %s", error)

    @property
    def caller(self) -> Caller:
        """The process behind it."""
        ids = bytes(self.view[_CALLER_AT : _CALLER_AT + _CALLER.size])
        if ids != self._caller_ids:
            self._caller_ids = ids
            self._caller = Caller(*_CALLER.unpack(ids))
        return self._caller

    @property
    def new_name(self) -> bytes | None:
        """The new name that a RENAME asks for, None in any other request.

        Behind the header stand fuse_rename_in (8 bytes) or fuse_rename2_in (16), then both names.
        """
        sizes = {self.RENAME: 8, self.RENAME2: 16}
        start = sizes.get(self.opcode)
        if start is None:
            return None
        names = bytes(self.view[HEADER_BYTES + start : self.length])
        return names.split(b"\0")[1]

    @property
    def read_size(self) -> int:
        """Bytes that the reply to READ or READDIR may have: fuse_read_in.size."""
        size: int = _SIZE.unpack_from(self.view, HEADER_BYTES + 16)[0]
        return size
