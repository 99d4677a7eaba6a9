"""The two ends of a transfer on another rank: each call is a request of wire.md, section 10."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from mpifs.core.checksum import CHECKSUM_BYTES, Buffer
from mpifs.core.errors import MpifsError, ProtocolError
from mpifs.core.kinds import Kind
from mpifs.core.limits import TRANSFER_LOOK_S, TRANSFER_TIMEOUT_S
from mpifs.core.messages import decode_args, encode_args
from mpifs.core.transfer_messages import (
    Begin,
    BeginReply,
    Entry,
    Failure,
    Failures,
    Have,
    HaveReply,
    ListReply,
    Make,
    Number,
    PathAsk,
    ReadAsk,
    SmallFiles,
    SumsAsk,
    Take,
    TakeReply,
    Write,
)
from mpifs.transfer.ends import Taken
from mpifs.transport.client import Client, Pending, Reply, wait_any


def _nothing() -> None:
    """Nobody ends the wait before its time."""


class _Rank:
    """Requests to one rank.  `check` is called while one waits, and may raise to give it up."""

    def __init__(self, client: Client, rank: int, check: Callable[[], None] = _nothing) -> None:
        self._client = client
        self._rank = rank
        self._check = check

    def _start(
        self, kind: Kind, args: msgspec.Struct | None = None, body: Buffer | None = None
    ) -> Pending:
        return self._client.start(
            self._rank,
            kind,
            args=b"" if args is None else encode_args(args),
            body=body,
            timeout_s=TRANSFER_TIMEOUT_S,
        )

    def _ask(
        self, kind: Kind, args: msgspec.Struct | None = None, body: Buffer | None = None
    ) -> Reply:
        return _await(self._start(kind, args, body), self._check)


def _await(pending: Pending, check: Callable[[], None]) -> Reply:
    """The reply.  Raises as Pending.result, and what `check` raises."""
    while not wait_any((pending,), TRANSFER_LOOK_S):
        check()
    return pending.result()


class _Bytes:
    """A promise of a reply's body."""

    def __init__(self, pending: Pending, check: Callable[[], None], length: int) -> None:
        self._pending = pending
        self._check = check
        self._length = length

    def get(self) -> Buffer:
        body = _await(self._pending, self._check).body
        if len(body) != self._length:
            raise ProtocolError(f"rank {self._pending.rank} sent other bytes than were asked for")
        return body


class _Done:
    """A promise of an empty reply."""

    def __init__(self, pending: Pending, check: Callable[[], None]) -> None:
        self._pending = pending
        self._check = check

    def get(self) -> None:
        _await(self._pending, self._check)


class _Failed:
    """A promise of Failures."""

    def __init__(self, pending: Pending, check: Callable[[], None], count: int) -> None:
        self._pending = pending
        self._check = check
        self._count = count

    def get(self) -> list[Failure]:
        return _failures(_await(self._pending, self._check), self._count)


def _failures(reply: Reply, count: int) -> list[Failure]:
    found = decode_args(reply.args, Failures).failures
    if any(not 0 <= failure.item < count for failure in found):
        raise ProtocolError("a failure of an item that was not asked for")
    return found


class RemoteSource(_Rank):
    """See ends.Source."""

    def look(self, path: bytes) -> Entry:
        """See ends.Source."""
        return decode_args(self._ask(Kind.LOOK, PathAsk(path)).args, Entry)

    def entries(self, path: bytes, after: bytes = b"") -> ListReply:
        """See ends.Source."""
        return decode_args(self._ask(Kind.LIST_FOLDER, PathAsk(path, after)).body, ListReply)

    def sums(self, entry: Entry, chunk_bytes: int, first: int, count: int) -> bytes:
        """See ends.Source."""
        asked = SumsAsk(entry, chunk_bytes, first, count)
        return bytes(
            _Bytes(self._start(Kind.SUMS, asked), self._check, CHECKSUM_BYTES * count).get()
        )

    def read(self, entry: Entry, offset: int, length: int) -> _Bytes:
        """See ends.Source."""
        return _Bytes(self._start(Kind.READ, ReadAsk(entry, offset, length)), self._check, length)

    def take(self, entries: Sequence[Entry]) -> list[Taken]:
        """See ends.Source."""
        reply = self._ask(Kind.TAKE, body=encode_args(Take(list(entries))))
        told = decode_args(reply.args, TakeReply)
        failures = {failure.item: failure for failure in told.failures}
        if len(told.sums) != len(entries):
            raise ProtocolError(f"rank {self._rank} sent other files than were asked for")
        found, at = [], 0
        for place, entry in enumerate(entries):
            if place in failures:
                found.append(Taken(b"", b"", failures[place]))
                continue
            found.append(Taken(reply.body[at : at + entry.size], told.sums[place], None))
            at += entry.size
        if at != len(reply.body):
            raise ProtocolError(f"rank {self._rank} sent other bytes than were asked for")
        return found


class RemoteSink(_Rank):
    """See ends.Sink."""

    def begin(self, entry: Entry, chunk_bytes: int, checksum: bytes) -> BeginReply:
        """See ends.Sink."""
        reply = self._ask(Kind.BEGIN, Begin(entry, chunk_bytes, checksum))
        return decode_args(reply.args, BeginReply)

    def have(self, number: int, first: int, sums: bytes, *, of_file: bool) -> bytes:
        """See ends.Sink."""
        reply = self._ask(Kind.HAVE, Have(number, first, of_file), sums)
        return _there(reply, len(sums) // CHECKSUM_BYTES)

    def write(self, number: int, index: int, data: Buffer, checksum: bytes) -> _Done:
        """See ends.Sink."""
        return _Done(self._start(Kind.WRITE, Write(number, index, checksum), data), self._check)

    def finish(self, number: int) -> None:
        """See ends.Sink."""
        self._ask(Kind.FINISH, Number(number))

    def abandon(self, number: int) -> None:
        """See ends.Sink."""
        with contextlib.suppress(MpifsError):
            self._start(Kind.ABANDON, Number(number))

    def have_small(self, entries: Sequence[Entry], sums: Sequence[bytes]) -> bytes:
        """See ends.Sink."""
        body = encode_args(SmallFiles(list(entries), list(sums)))
        return _there(self._ask(Kind.HAVE_SMALL, body=body), len(entries))

    def put_small(
        self, entries: Sequence[Entry], sums: Sequence[bytes], data: Sequence[Buffer]
    ) -> _Failed:
        """See ends.Sink."""
        body = encode_args(SmallFiles(list(entries), list(sums), b"".join(data)))
        return _Failed(self._start(Kind.PUT_SMALL, body=body), self._check, len(entries))

    def make(self, entries: Sequence[Entry], *, is_last: bool) -> list[Failure]:
        """See ends.Sink."""
        body = encode_args(Make(list(entries), is_last))
        return _failures(self._ask(Kind.MAKE, body=body), len(entries))


def _there(reply: Reply, count: int) -> bytes:
    there = decode_args(reply.args, HaveReply).there
    if len(there) != count:
        raise ProtocolError("an answer of another length than was asked for")
    return there
