"""Frames of the control socket: how commands and rank 0 talk over a Unix stream socket.

A frame is a u32 (little endian) with the length of a MessagePack document, the document, and then
as many raw bytes as the document's field `body` says: file bytes never pass through MessagePack.
One request, one answer, in turn.  Anything else is a ProtocolError, after which the connection
has no known position and must be closed.  Never allocates more than CONTROL_FRAME_BYTES_MAX for
a document, whatever a peer sends.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import Any, TypeVar

import msgspec

from mpifs.core.checksum import Buffer
from mpifs.core.errors import PosixError, ProtocolError
from mpifs.core.limits import CONTROL_FRAME_BYTES_MAX

_LENGTH = struct.Struct("<I")


class RequestFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named call with its arguments; `body` counts the raw bytes that follow."""

    name: str
    args: dict[str, Any] = {}
    body: int = 0


class AnswerFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The result of a call, or (errno not 0) why there is none."""

    result: dict[str, Any] = {}
    body: int = 0
    errno: int = 0
    message: str = ""


Frame = TypeVar("Frame", RequestFrame, AnswerFrame)


class EndOfStreamError(ConnectionError):
    """The peer closed the connection between two frames."""


class FrameStream:
    """Frames over one connected socket.  Used by one thread at a time.

    Every method takes a deadline (time.monotonic()) or None to wait without one, and raises
    TimeoutError when it passes; after any error the stream must be closed.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(
        self, frame: RequestFrame | AnswerFrame, body: Buffer, deadline_s: float | None
    ) -> None:
        """Sends one frame with its raw bytes.  Requires: frame.body == length of `body`."""
        document = msgspec.msgpack.encode(frame)
        if len(document) > CONTROL_FRAME_BYTES_MAX:
            raise ProtocolError("an answer of the control socket is too large")
        parts = [memoryview(_LENGTH.pack(len(document)) + document)]
        if frame.body:
            parts.append(memoryview(body).cast("B"))
        while parts:
            self._arm(deadline_s)
            sent = self._socket.sendmsg(parts)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    def receive(self, kind: type[Frame], idle_s: float | None, frame_s: float) -> Frame:
        """The next frame without its raw bytes, which the caller must then receive.

        Waits `idle_s` for its first byte and `frame_s` for the rest.  Raises EndOfStreamError
        when the peer has closed, ProtocolError for anything that is no frame.
        """
        prefix = memoryview(bytearray(_LENGTH.size))
        self._arm(None if idle_s is None else time.monotonic() + idle_s)
        first = self._socket.recv_into(prefix)
        if first == 0:
            raise EndOfStreamError(errno.ECONNRESET, "the connection was closed")
        deadline_s = time.monotonic() + frame_s
        self.receive_into(prefix[first:], deadline_s)
        (length,) = _LENGTH.unpack(prefix)
        if length > CONTROL_FRAME_BYTES_MAX:
            raise ProtocolError(f"a frame of {length} bytes on the control socket is too large")
        document = memoryview(bytearray(length))
        self.receive_into(document, deadline_s)
        try:
            frame = msgspec.msgpack.decode(document, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
            raise ProtocolError(f"no valid frame on the control socket ({error})") from None
        if not 0 <= frame.body <= CONTROL_FRAME_BYTES_MAX:
            raise ProtocolError(f"{frame.body} raw bytes on the control socket are too many")
        return frame

    def receive_into(self, into: memoryview, deadline_s: float | None) -> None:
        """Fills `into` with the raw bytes that come next."""
        while into:
            self._arm(deadline_s)
            count = self._socket.recv_into(into)
            if count == 0:
                raise ConnectionResetError(
                    errno.ECONNRESET, "the connection was closed in the middle of a frame"
                )
            into = into[count:]

    def _arm(self, deadline_s: float | None) -> None:
        if deadline_s is None:
            self._socket.settimeout(None)
            return
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        self._socket.settimeout(left_s)


class _MissingError(PosixError, FileNotFoundError):
    """ENOENT as Python's own class of it, for callers that catch that."""


class _TakenError(PosixError, FileExistsError):
    """EEXIST likewise."""


class _NoFolderError(PosixError, NotADirectoryError):
    """ENOTDIR likewise."""


class _FolderError(PosixError, IsADirectoryError):
    """EISDIR likewise."""


_KINDS: dict[int, type[PosixError]] = {
    errno.ENOENT: _MissingError,
    errno.EEXIST: _TakenError,
    errno.ENOTDIR: _NoFolderError,
    errno.EISDIR: _FolderError,
}


def error_of(code: int, message: str) -> PosixError:
    """The error of an answer; code that knows only Python's classes of OSError can catch it."""
    return _KINDS.get(code, PosixError)(code, message)


def sentence_of(error: OSError) -> str:
    """What an error says, in characters that MessagePack can carry."""
    text = error.strerror or str(error) or type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
