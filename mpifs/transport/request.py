"""A request as its handler sees it: what was asked, and how to answer."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Protocol

from mpifs import faultpoint
from mpifs.core.checksum import Buffer
from mpifs.core.limits import ARGS_BYTES_MAX, BODY_BYTES_MAX
from mpifs.core.messages import Header


class Answers(Protocol):
    """What a request needs of its server; any thread."""

    def answer(
        self,
        request: Request,
        status: int,
        args: Buffer,
        body: Buffer | None,
        items: int,
        free: int,
        on_sent: Callable[[], None] | None,
    ) -> None:
        """Sends a reply."""

    def give_back(self, buffer: bytearray | None, size: int) -> None:
        """A body of `size` bytes is done with; None: its buffer cannot be used again."""


class Request:
    """A request with its arguments and body, to be answered once and then `done`.

    `args` is a copy.  `body` lies at offset 0 of `buffer`, a buffer of `take_buffer` that may be
    longer (None if there is no body); both are valid until `done`.  Any one thread may use it.
    """

    __slots__ = ("_server", "args", "body", "buffer", "header", "is_answered", "is_late", "source")

    def __init__(self, server: Answers, header: Header, source: int, args: bytes) -> None:
        self._server = server
        self.header = header
        self.source = source
        self.args = args
        self.buffer: bytearray | None = None
        self.body: memoryview | None = None
        self.is_answered = False
        self.is_late = False
        """For tests: the answer is sent late, as faultpoint.later does it."""

    def reply(
        self,
        *,
        status: int = 0,
        args: Buffer = b"",
        body: Buffer | None = None,
        items: int = 0,
        free: int = 0,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Sends the answer; further ones are ignored.  Never raises for the asker's sake.

        `on_sent` is called exactly once, from this or the loop's thread, when `body` may change
        again: at once for a short one.  With `status` an errno, `args` is a UTF-8 sentence.

        Requires: args and body within their limits.
        """
        assert len(args) <= ARGS_BYTES_MAX
        assert body is None or len(body) <= BODY_BYTES_MAX
        if self.is_answered:
            if on_sent is not None:
                on_sent()
            return
        self.is_answered = True
        if self.is_late:
            send = self._server.answer
            faultpoint.later(partial(send, self, status, args, body, items, free, on_sent))
        else:
            self._server.answer(self, status, args, body, items, free, on_sent)

    def refuse(self, error: OSError) -> None:
        """Answers with an error's number and sentence."""
        sentence = str(error).encode(errors="backslashreplace")[:ARGS_BYTES_MAX]
        self.reply(status=error.errno or errno.EIO, args=sentence)

    def done(self) -> None:
        """Gives the body's buffer back.  May be repeated."""
        buffer, self.buffer = self.buffer, None
        if buffer is not None:
            body, self.body = self.body, None
            is_free = True
            try:
                if body is not None:
                    body.release()
            except BufferError:  # a receive that failed still refers to it: never lent again.
                is_free = False
            self._server.give_back(buffer if is_free else None, self.header.body_bytes)
