"""Carries files from one rank to another, as rank 0 sees it.

    rank 0 → worker: rank 0 pushes; worker → rank 0: rank 0 fetches;
    worker → worker: rank 0 orders the receiver, which fetches from the source by itself

Rank 0 answers no requests, and needs not: it is the one that asks.  Any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence

from mpifs.core.errors import MpifsError, PosixError, SilentError
from mpifs.core.kinds import Kind
from mpifs.core.limits import REQUEST_TIMEOUT_S, TRANSFER_POLL_S
from mpifs.core.messages import decode_args, encode_args
from mpifs.core.transfer_messages import (
    Local,
    LocalReply,
    Number,
    Pull,
    PullNumber,
    TallyReport,
)
from mpifs.transfer.ends import Sink, Source
from mpifs.transfer.folder import LocalFolder
from mpifs.transfer.mover import Mover
from mpifs.transfer.remote import RemoteSink, RemoteSource
from mpifs.transfer.service import rank_folder
from mpifs.transfer.sink import LocalSink
from mpifs.transfer.source import LocalSource
from mpifs.transfer.tally import CancelledTransferError, Tally
from mpifs.transport.client import Client

MASTER = 0


class Carrier:
    """`base` is the folder of the hosts, DIR; `is_away` says that a rank will not answer."""

    def __init__(self, client: Client, base: str, is_away: Callable[[int], bool]) -> None:
        self._client = client
        self._base = base
        self._is_away = is_away
        self.folder = LocalFolder(rank_folder(base, MASTER))
        self._source = LocalSource(self.folder)
        self._sink = LocalSink(self.folder)

    def close(self) -> None:
        """Abandons what is being received here."""
        self._sink.close()

    def prepare(self, ranks: Sequence[int]) -> dict[int, LocalReply | MpifsError]:
        """Tells these workers where their files are; who they are, or why they do not answer.

        Before each use: a worker that was restarted does not know it."""
        found: dict[int, LocalReply | MpifsError] = {}
        pending = {}
        for rank in ranks:
            args = encode_args(Local(os.fsencode(self._base), rank))
            try:
                if self._is_away(rank):
                    raise SilentError(rank, "its process has died")
                pending[rank] = self._client.start(
                    rank, Kind.LOCAL, args=args, timeout_s=REQUEST_TIMEOUT_S
                )
            except MpifsError as error:
                found[rank] = error
        for rank, answer in pending.items():
            try:
                found[rank] = decode_args(answer.wait().args, LocalReply)
            except MpifsError as error:
                found[rank] = error
        return found

    def source(self, rank: int, check: Callable[[], None] = lambda: None) -> Source:
        """Where files of a rank come from; `check` may raise to end a wait for it."""
        return RemoteSource(self._client, rank, check) if rank != MASTER else self._source

    def sink(self, rank: int, check: Callable[[], None] = lambda: None) -> Sink:
        """Where files of a rank go."""
        return RemoteSink(self._client, rank, check) if rank != MASTER else self._sink

    def can_carry(self, source: int, target: int) -> bool:
        """Whether two ranks have a link; a worker that was restarted has one to rank 0 alone."""
        return MASTER in (source, target) or self._client.endpoint.can_talk(source, target)

    def carry(
        self, source: int, target: int, names: Sequence[bytes], into: bytes, tally: Tally
    ) -> None:
        """Moves files; what fails is in the tally.  Never raises an OSError."""
        try:
            if source == target:
                raise PosixError(errno.EINVAL, f"rank {source} cannot send files to itself")
            if MASTER in (source, target):
                ends = self.source(source, tally.check), self.sink(target, tally.check)
                Mover(*ends, into, tally).move(names)
            else:
                self._order(source, target, names, into, tally)
        except OSError as error:
            tally.fail(names[0] if names else b"", error)
        tally.is_over = True

    def _order(
        self, source: int, target: int, names: Sequence[bytes], into: bytes, tally: Tally
    ) -> None:
        """Has the target fetch the files, and follows it."""
        if not self.can_carry(source, target):
            raise PosixError(
                errno.EHOSTUNREACH,
                f"worker {source} and worker {target} have no link to each other, because one of "
                "them was restarted; send the files by way of rank 0, or start the job again",
            )
        tally.check()
        body = encode_args(Pull(source, list(names), into))
        reply = self._client.call(target, Kind.PULL, body=body, timeout_s=REQUEST_TIMEOUT_S)
        number = decode_args(reply.args, PullNumber).number
        try:
            while not self._poll(target, number, tally):
                tally.check()
                if self._is_away(source):
                    raise SilentError(source, "its process has died")
                time.sleep(TRANSFER_POLL_S)
        except BaseException as error:
            self._cancel(target, number)
            if isinstance(error, CancelledTransferError):
                with contextlib.suppress(MpifsError):
                    self._poll(target, number, tally)
            raise

    def _poll(self, target: int, number: int, tally: Tally) -> bool:
        args = encode_args(Number(number, len(tally.errors)))
        reply = self._client.call(target, Kind.PULL_POLL, args=args, timeout_s=REQUEST_TIMEOUT_S)
        report = decode_args(reply.args, TallyReport)
        tally.take(report)
        return report.is_over

    def _cancel(self, target: int, number: int) -> None:
        with contextlib.suppress(MpifsError):
            self._client.call(
                target, Kind.PULL_CANCEL, args=encode_args(Number(number)), timeout_s=5.0
            )
