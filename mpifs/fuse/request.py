"""One raw request of the kernel, and its answer."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence

from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.types import Caller
from mpifs.fuse.figures import FIGURES
from mpifs.fuse.protocol import (
    BODY_AT,
    HEADER_BYTES,
    IN_HEADER_BEGIN,
    IN_HEADER_END,
    OUT_HEADER,
    READ_IN,
)

log = logging.getLogger(__name__)

WRITE_BYTES_MAX = 1024 * 1024
"""Of one WRITE; the kernel allows 256 pages."""
_MEMORY_BYTES = IMAGE_HEADER_BYTES + WRITE_BYTES_MAX


class Request:
    """The request that one loop thread is serving.  Valid until its next `receive`.

    A view of its memory that is kept beyond the call shows other bytes later; so handlers release
    theirs (`with`).

    The memory is laid out as a chunk's buffer: of a WRITE the data stand behind the room for an
    image's header.  So a whole chunk need not be copied: `exchange` the memory.
    """

    __slots__ = (
        "_answer",
        "_begin",
        "_caller",
        "_device",
        "_parts",
        "length",
        "memory",
        "nodeid",
        "opcode",
        "unique",
        "view",
    )

    def __init__(self, device: int) -> None:
        self._device = device
        self._begin = bytearray(IN_HEADER_BEGIN.size)
        self._answer = bytearray(OUT_HEADER.size)
        self._caller = Caller(0, 0, 0)
        self.exchange(bytearray(_MEMORY_BYTES))
        self.length = self.opcode = self.unique = self.nodeid = 0

    def receive(self) -> int:
        """Waits for a request.  Bytes received, 0 at the end of the mount, or -errno."""
        try:
            size = os.readv(self._device, self._parts)
        except OSError as error:
            return 0 if error.errno == errno.ENODEV else -(error.errno or errno.EIO)
        if size < HEADER_BYTES:
            return -errno.EIO
        _, self.opcode, self.unique = IN_HEADER_BEGIN.unpack(self._begin)
        self.nodeid, uid, gid, pid, _ = IN_HEADER_END.unpack_from(self.memory)
        self.length = size - IN_HEADER_BEGIN.size
        caller = self._caller
        if pid != caller.pid or uid != caller.uid or gid != caller.gid:
            self._caller = Caller(uid, gid, pid)
        return size

    def exchange(self, memory: bytearray) -> None:
        """Takes other memory, which is as long, for the next request."""
        assert len(memory) == _MEMORY_BYTES
        self.memory = memory
        self._parts = [self._begin, memory]
        self.view = memoryview(memory)
        """The request from the end of its header on: `length` bytes, see BODY_AT."""

    @property
    def caller(self) -> Caller:
        """The process behind it."""
        return self._caller

    def name(self, behind: int = 0) -> bytes:
        """The name (or the last one) that stands `behind` so many bytes of structure."""
        return bytes(self.view[BODY_AT + behind : self.length - 1])

    def names(self, behind: int = 0) -> tuple[bytes, bytes]:
        """Two names."""
        first, _, second = self.name(behind).partition(b"\0")
        return first, second

    def room(self, size: int) -> memoryview:
        """Where `size` bytes of an answer go, until the next call."""
        if len(self._answer) < OUT_HEADER.size + size:
            self._answer = bytearray(OUT_HEADER.size + size)
        return memoryview(self._answer)[OUT_HEADER.size : OUT_HEADER.size + size]

    def answer_room(self, size: int) -> None:
        """Answers with the first `size` bytes of the `room`."""
        OUT_HEADER.pack_into(self._answer, 0, OUT_HEADER.size + size, 0, self.unique)
        with memoryview(self._answer)[: OUT_HEADER.size + size] as whole:
            self._send((whole,))

    def answer(self, data: bytes | bytearray | memoryview = b"") -> None:
        """Answers with bytes that lie elsewhere."""
        head = OUT_HEADER.pack(OUT_HEADER.size + len(data), 0, self.unique)
        self._send((head, data) if data else (head,))

    def refuse(self, code: int) -> None:
        """Answers with an errno."""
        FIGURES.refused(self.opcode)
        self._send((OUT_HEADER.pack(OUT_HEADER.size, -code, self.unique),))

    def _send(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:  # ENOENT: the asker was killed; else the mount is at its end
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                log.error("an answer was not taken: %s", error)

    @property
    def read_size(self) -> int:
        """Bytes that the reply to READ or READDIR may have."""
        size: int = READ_IN.unpack_from(self.view, BODY_AT)[2]
        return size
