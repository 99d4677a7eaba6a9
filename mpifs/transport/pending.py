"""One request under way: its slot, its operations, and how they come to an end.

    HEADER ──reply header came, body follows──► BODY ──► SENDS ──► over: reply or error
       └──reply header came, all is in it────────────────►┘
    any ──deadline, dead peer, bad reply──► over, retired; `sweep` empties the slot

A rank that was cut off or replaced ends its requests at once; they are retired like late ones.
A slot's tags are used again only when nothing can arrive on them any more.  A request that has
missed its deadline, or that its asker dropped, therefore stays retired until its late reply has
been received and dropped.
"""

from __future__ import annotations

import contextlib
import errno
import time
from enum import Enum, auto
from typing import NamedTuple, Protocol

from mpifs import faultpoint
from mpifs.core.checksum import Buffer
from mpifs.core.errors import (
    STORE_GONE_STATUS,
    MpifsError,
    PeerDeadError,
    ProtocolError,
    RemoteError,
    SilentError,
    StoreGoneError,
)
from mpifs.core.limits import HEADER_BYTES, INLINE_BYTES_MAX, REFUSED_BODY_S
from mpifs.core.messages import MESSAGE_BYTES_MAX, TAG_REPLY_BASE, Header, decode_message
from mpifs.transport.endpoint import TAG_REPLY_DATA_BASE, Bell, Endpoint, Operation

_NOTHING = memoryview(b"")


class Reply(NamedTuple):
    """A good answer.  `args` and an inline `body` are copies; else `body` lies in `into`."""

    header: Header
    args: memoryview
    body: memoryview


class Slot:
    """A pair of tags and the buffer for the reply's header message; one request at a time."""

    __slots__ = ("buffer", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.buffer = bytearray(MESSAGE_BYTES_MAX)


class Owner(Protocol):
    """What a request needs of its client."""

    endpoint: Endpoint
    epoch: int

    def release(self, pending: Pending, slot: Slot, is_empty: bool) -> None:
        """Takes the slot back for use (is_empty) or for sweeping."""
        ...

    def retire(self, pending: Pending, slot: Slot) -> None:
        """Takes the slot back for sweeping later.  One atomic step: called by `__del__`, so at any
        moment of any thread."""
        ...


class _Stage(Enum):
    HEADER = auto()
    BODY = auto()
    SENDS = auto()
    OVER = auto()


class Pending:
    """A request that has been sent.  Used by one thread at a time."""

    __slots__ = (
        "_body",
        "_deadline",
        "_error",
        "_header",
        "_into",
        "_life",
        "_number",
        "_owner",
        "_receive",
        "_reply",
        "_sends",
        "_slot",
        "_stage",
        "_stale",
        "bell",
        "is_spoilt",
        "rank",
    )

    def __init__(
        self,
        owner: Owner,
        rank: int,
        slot: Slot,
        number: int,
        bell: Bell,
        into: Buffer | None,
        deadline: float,
    ) -> None:
        self._owner = owner
        self.rank = rank
        """The rank asked."""
        self.bell = bell
        """Rung when the reply has been posted: the bell of the thread that started."""
        self.is_spoilt = False
        """Whether an answer made no sense: what else may come on the slot's tags is unknown."""
        self._slot = slot
        self._number = number
        self._into = None if into is None else memoryview(into)
        self._deadline = deadline
        self._life = owner.endpoint.life(rank)
        self._stage = _Stage.HEADER
        self._receive: Operation | None = None
        self._sends: list[Operation] = []
        self._stale: list[Operation] = []
        self._header: Header | None = None
        self._body = _NOTHING
        self._reply: Reply | None = None
        self._error: MpifsError | None = None

    def __del__(self) -> None:
        """Who drops a request gives it up.  It must live on until it is swept: MPI still writes
        into its buffers when the peer answers, whoever has got that memory by then."""
        if self._stage is not _Stage.OVER:
            self._error = MpifsError(f"a request to rank {self.rank} was given up")
            self._stage = _Stage.OVER
            self._owner.retire(self, self._slot)

    # For the client, while it starts the request.

    def listen(self) -> None:
        """Posts the receive of the reply's header.  Raises PeerDeadError."""
        tag = TAG_REPLY_BASE + self._slot.index
        self._receive = self._owner.endpoint.irecv(self.rank, tag, self._slot.buffer)

    def track(self, send: Operation) -> None:
        """Adds a send whose end this request must see."""
        self._sends.append(send)

    def drop_sent(self) -> None:
        """Forgets the sends that are complete, as short ones are at once.  Raises PeerDeadError."""
        while self._sends and self._sends[-1].test():
            self._sends.pop()

    def fail(self, error: MpifsError) -> None:
        """Ends the request with `error`; its slot is swept."""
        if self._stage is not _Stage.OVER:
            self._error = error
            self.is_spoilt = self.is_spoilt or isinstance(error, ProtocolError)
            self._end(is_empty=False)

    # For the asker.

    @property
    def received_bytes(self) -> int:
        """What the reply was long, without its header; 0 as long as there is none."""
        header = self._header
        return 0 if header is None else header.args_bytes + header.body_bytes

    @property
    def is_moving(self) -> bool:
        """Whether long messages are under way that need this process to look after them."""
        return bool(self._sends) or self._stage is _Stage.BODY

    @property
    def is_settled(self) -> bool:
        """Whether the buffers `body` and `into` are the caller's again.

        Always so after a reply.  After SilentError it may take until the peer moves or is dead.
        """
        return self._stage is _Stage.OVER and not self._sends and self._receive is None

    def poll(self) -> bool:
        """Moves on without waiting; True when `wait` will return or raise at once."""
        if self._stage is _Stage.OVER:
            return True
        try:
            if self._advance():
                self._end(is_empty=True)
                return True
        except MpifsError as error:
            self.fail(error)
            return True
        if self._owner.endpoint.life(self.rank) != self._life:
            self.fail(PeerDeadError(self.rank, "was given up"))
            return True
        if time.monotonic() < self._deadline:
            return False
        if self._header is not None and self._header.status == errno.EPROTO:
            self.fail(ProtocolError(f"rank {self.rank} could not read the request"))
        else:
            self.fail(SilentError(self.rank, "gave no answer before the deadline"))
        return True

    def result(self) -> Reply:
        """The reply, or raises what became of the request.  Requires: poll() was True.

        RemoteError: the peer refused, with its errno and sentence.  SilentError: no answer before
        the deadline; whether the request was carried out is unknown.  PeerDeadError (a
        SilentError): its process has died.  StoreGoneError (another): its store's files are.
        ProtocolError: the answer makes no sense, or is too
        long for `into`.
        """
        if self._error is not None:
            raise self._error
        assert self._reply is not None
        return self._reply

    # The steps.

    def _advance(self) -> bool:
        """True when all operations are complete and the reply or the peer's error stands."""
        if self._stage is _Stage.HEADER:
            if self._receive is None or not self._receive.test():
                return False
            receive, self._receive = self._receive, None
            if not self._take_header(receive.received):
                return False
        if self._stage is _Stage.BODY:
            if self._receive is None or not self._receive.test():
                return False
            receive, self._receive = self._receive, None
            self._stage = _Stage.SENDS
            if receive.received != len(self._body):
                raise ProtocolError(f"body from rank {self.rank} is not as long as its header says")
            faultpoint.alter("transport.reply.body", memoryview(self._body))
        self.drop_sent()
        if self._sends:
            return False
        self._conclude()
        return True

    def _take_header(self, size: int) -> bool:
        """Reads the reply's header message; False if it was another request's reply."""
        header = self._decode(size)
        if header.request != self._number or header.epoch != self._owner.epoch:
            if not header.is_inline:
                self._stale.append(self._receive_body(bytearray(header.body_bytes)))
            self.listen()
            return False
        self._header = header
        if header.status == errno.EPROTO:  # perhaps unread, and then its body is never received
            self._deadline = min(self._deadline, time.monotonic() + REFUSED_BODY_S)
        if header.is_inline:
            self._stage = _Stage.SENDS
            return True
        if self._into is None:
            self._body = memoryview(bytearray(header.body_bytes))
        elif len(self._into) < header.body_bytes:
            self._error = ProtocolError(f"reply of rank {self.rank} is too long for its buffer")
            self._body = memoryview(bytearray(header.body_bytes))
        else:
            self._body = self._into[: header.body_bytes]
        self._receive = self._receive_body(self._body)
        self._stage = _Stage.BODY
        return True

    def _decode(self, size: int) -> Header:
        """The header of the message of `size` bytes in the slot's buffer."""
        self.is_spoilt = True
        message = memoryview(self._slot.buffer)[:size]
        faultpoint.alter("transport.reply.header", message)
        try:
            header = decode_message(message)
        except ProtocolError as error:
            self._drain_body()
            raise ProtocolError(f"reply of rank {self.rank}: {error}") from None
        self.is_spoilt = False
        return header

    def _drain_body(self) -> None:
        """An unreadable reply may have a long body; until that is received it keeps the pages of
        the peer's store in use."""
        if self._into is not None and len(self._into) > INLINE_BYTES_MAX:
            with contextlib.suppress(MpifsError):
                self._stale.append(self._receive_body(bytearray(len(self._into))))

    def _receive_body(self, into: bytearray | memoryview) -> Operation:
        if self._owner.endpoint.life(self.rank) != self._life:  # it would come from another one.
            raise PeerDeadError(self.rank, "was given up")
        tag = TAG_REPLY_DATA_BASE + self._slot.index
        return self._owner.endpoint.irecv(self.rank, tag, into)

    def _conclude(self) -> None:
        """Makes the reply, or the error, of a complete exchange."""
        header = self._header
        assert header is not None
        end = HEADER_BYTES + header.args_bytes
        args = _NOTHING
        if header.args_bytes:
            args = memoryview(bytes(self._slot.buffer[HEADER_BYTES:end]))
        if header.status:
            sentence = bytes(args).decode(errors="backslashreplace")
            is_gone = header.status == STORE_GONE_STATUS
            self._error = (
                StoreGoneError(self.rank, sentence)
                if is_gone
                else RemoteError(self.rank, sentence, header.status)
            )
        if self._error is not None:
            return
        if header.is_inline and header.body_bytes:
            inline = memoryview(self._slot.buffer)[end : end + header.body_bytes]
            if self._into is None:
                self._body = memoryview(bytes(inline))
            elif len(self._into) < header.body_bytes:
                self._error = ProtocolError(f"reply of rank {self.rank} is too long for its buffer")
                return
            else:
                self._body = self._into[: header.body_bytes]
                self._body[:] = inline
        self._reply = Reply(header, args, self._body)

    # The end.

    def _end(self, is_empty: bool) -> None:
        if not is_empty and self._stage is _Stage.BODY and self._receive is not None:
            self._leave_body()
        is_empty = is_empty and not self._stale
        self._stage = _Stage.OVER
        self._into = None
        self._owner.release(self, self._slot, is_empty)

    def _leave_body(self) -> None:
        """Stops receiving into the caller's buffer, if the message has not yet begun to come."""
        assert self._header is not None
        assert self._receive is not None
        if not self._receive.cancel():
            return
        if not self._receive.received:
            with contextlib.suppress(MpifsError):
                self._stale.append(self._receive_body(bytearray(self._header.body_bytes)))
        self._receive = None

    def sweep(self) -> bool:
        """One step of emptying a retired slot; True when it is over with.

        Then nothing can arrive on the slot any more, unless the request `is_spoilt`.
        """
        self._sends = [send for send in self._sends if not _is_over(send)]
        self._stale = [stale for stale in self._stale if not _is_over(stale)]
        if self._receive is not None and _is_over(self._receive):
            size, self._receive = self._receive.received, None
            if self._header is None and size:
                self._drop_late_reply(size)
        return self._receive is None and not self._sends and not self._stale

    def _drop_late_reply(self, size: int) -> None:
        try:
            self._header = self._decode(size)
            if not self._header.is_inline:
                self._stale.append(self._receive_body(bytearray(self._header.body_bytes)))
        except MpifsError:
            return


def _is_over(operation: Operation) -> bool:
    try:
        return operation.test()
    except MpifsError:
        return True
