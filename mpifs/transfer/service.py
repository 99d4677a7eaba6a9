"""A rank's service for its local files: message → LocalSource or LocalSink → reply.

Registered with the rank's service loop (`handlers`), which it never keeps waiting: a few threads
of its own read and write, pulls have a thread each (pulls.py).  No bytes of a request can make it
fail: every failure is an answer with an errno and a sentence.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from collections.abc import Callable

from mpifs.core.errors import InUseError, MpifsError, PosixError
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    BODY_BYTES_MAX,
    IDLE_LOOK_S,
    TRANSFER_QUEUE_MAX,
    TRANSFER_THREADS,
)
from mpifs.core.messages import decode_args, encode_args
from mpifs.core.transfer_messages import (
    Begin,
    Failure,
    Failures,
    Have,
    HaveReply,
    Local,
    LocalReply,
    Make,
    Number,
    PathAsk,
    Pull,
    PullNumber,
    ReadAsk,
    SmallFiles,
    SumsAsk,
    Take,
    TakeReply,
    Write,
)
from mpifs.transfer.folder import LocalFolder
from mpifs.transfer.pulls import Pulls
from mpifs.transfer.sink import LocalSink
from mpifs.transfer.source import LocalSource
from mpifs.transfer.tally import cut
from mpifs.transport.client import Client
from mpifs.transport.request import Request

_log = logging.getLogger(__name__)
_MASTER_RANK = 0
_DETAIL_MAX = 150  # bytes of an item's sentence: a pack's failures stay below ARGS_BYTES_MAX.


class _Local:
    """This rank's folder and its two ends."""

    def __init__(self, path: str) -> None:
        self.folder = LocalFolder(path)
        self.source = LocalSource(self.folder)
        self.sink = LocalSink(self.folder)


def rank_folder(base: str, rank: int) -> str:
    """Where a rank's local files are."""
    return os.path.join(base, f"rank-{rank}")


class TransferService:
    """`host` is this rank's host name; `peers` asks the other ranks.

    `_local` is set by LOCAL and then constant for its folder; guarded by `_lock`, as `_threads` is.
    """

    def __init__(self, host: str, peers: Client) -> None:
        self._host = host
        self._pulls = Pulls(peers)
        self._lock = threading.Lock()
        self._local: _Local | None = None
        self._threads: list[threading.Thread] = []
        self._is_stopped = threading.Event()
        self._queue: queue.Queue[tuple[Callable[[Request], None], Request]] = queue.Queue(
            TRANSFER_QUEUE_MAX
        )
        actions: dict[Kind, Callable[[Request], None]] = {
            Kind.LOCAL: self._set_local,
            Kind.PULL: self._pull,
            Kind.LOOK: self._look,
            Kind.LIST_FOLDER: self._list,
            Kind.SUMS: self._sums,
            Kind.READ: self._read,
            Kind.TAKE: self._take,
            Kind.BEGIN: self._begin,
            Kind.HAVE: self._have,
            Kind.WRITE: self._write,
            Kind.FINISH: self._finish,
            Kind.ABANDON: self._abandon,
            Kind.HAVE_SMALL: self._have_small,
            Kind.PUT_SMALL: self._put_small,
            Kind.MAKE: self._make,
        }
        self.handlers: dict[int, Callable[[Request], None]] = {
            kind: self._submitter(action) for kind, action in actions.items()
        }
        self.handlers[Kind.PULL_POLL] = self._poll
        self.handlers[Kind.PULL_CANCEL] = self._cancel

    def stop(self) -> None:
        """Refuses what waits and ends pulls at their next step; partial files stay."""
        self._is_stopped.set()
        self._pulls.stop()

    # The threads.

    def _submitter(self, action: Callable[[Request], None]) -> Callable[[Request], None]:
        def submit(request: Request) -> None:
            try:
                self._queue.put_nowait((action, request))
            except queue.Full:
                request.done()
                raise PosixError(errno.EAGAIN, "this rank has too many transfers to do") from None
            if len(self._threads) < TRANSFER_THREADS:
                name = f"transfer-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

        return submit

    def _run(self) -> None:
        while True:
            try:
                action, request = self._queue.get(timeout=IDLE_LOOK_S)
            except queue.Empty:
                continue
            try:
                if self._is_stopped.is_set():
                    raise InUseError("this rank is stopping")
                action(request)
            except MpifsError as error:
                request.refuse(error)
            except OSError as error:
                code = error.errno or errno.EIO
                request.refuse(PosixError(code, f"its local disk: {os.strerror(code)}"))
            except MemoryError:
                request.refuse(PosixError(errno.ENOMEM, "this rank is out of memory"))
            except Exception:  # noqa: BLE001 - who asked must hear, and the thread must go on
                _log.exception("request of kind %d failed", request.header.kind)
                request.refuse(OSError(errno.EIO, "internal error, see the log"))
            finally:
                request.done()

    # The folder.

    def _set_local(self, request: Request) -> None:
        asked = decode_args(request.args, Local)
        if request.source != _MASTER_RANK:
            raise PosixError(errno.EPERM, "only rank 0 says where local files are")
        path = rank_folder(os.fsdecode(asked.folder), asked.rank)
        with self._lock:
            if self._local is None or self._local.folder.path != os.path.abspath(path):
                self._local = _Local(path)
            free = self._local.folder.free_bytes()
        request.reply(args=encode_args(LocalReply(self._host, os.getpid(), free)))

    def _mine(self) -> _Local:
        local = self._local
        if local is None:
            raise PosixError(errno.ENXIO, "this rank has no local folder; mount with --local DIR")
        return local

    # The source.

    def _look(self, request: Request) -> None:
        entry = self._mine().source.look(decode_args(request.args, PathAsk).path)
        request.reply(args=encode_args(entry))

    def _list(self, request: Request) -> None:
        asked = decode_args(request.args, PathAsk)
        request.reply(body=encode_args(self._mine().source.entries(asked.path, asked.after)))

    def _sums(self, request: Request) -> None:
        asked = decode_args(request.args, SumsAsk)
        sums = self._mine().source.sums(asked.entry, asked.chunk_bytes, asked.first, asked.count)
        request.reply(body=sums)

    def _read(self, request: Request) -> None:
        asked = decode_args(request.args, ReadAsk)
        data = self._mine().source.read(asked.entry, asked.offset, asked.length).get()
        request.reply(body=data)

    def _take(self, request: Request) -> None:
        taken = self._mine().source.take(decode_args(_body(request), Take).entries)
        failures = [each.failure for each in taken if each.failure is not None]
        sums = [each.checksum for each in taken]
        body = b"".join(each.data for each in taken)
        request.reply(args=encode_args(TakeReply(sums, _short(failures))), body=body)

    # The sink.

    def _begin(self, request: Request) -> None:
        asked = decode_args(request.args, Begin)
        begun = self._mine().sink.begin(asked.entry, asked.chunk_bytes, asked.checksum)
        request.reply(args=encode_args(begun))

    def _have(self, request: Request) -> None:
        asked = decode_args(request.args, Have)
        sums = bytes(_body(request))
        there = self._mine().sink.have(asked.number, asked.first, sums, of_file=asked.of_file)
        request.reply(args=encode_args(HaveReply(there)))

    def _write(self, request: Request) -> None:
        asked = decode_args(request.args, Write)
        self._mine().sink.write(asked.number, asked.index, _body(request), asked.checksum)
        request.reply()

    def _finish(self, request: Request) -> None:
        self._mine().sink.finish(decode_args(request.args, Number).number)
        request.reply()

    def _abandon(self, request: Request) -> None:
        self._mine().sink.abandon(decode_args(request.args, Number).number)
        request.reply()

    def _have_small(self, request: Request) -> None:
        asked = decode_args(_body(request), SmallFiles)
        there = self._mine().sink.have_small(asked.entries, asked.sums)
        request.reply(args=encode_args(HaveReply(there)))

    def _put_small(self, request: Request) -> None:
        asked = decode_args(_body(request), SmallFiles)
        view, data, at = memoryview(asked.data), [], 0
        for entry in asked.entries:
            size = max(0, min(entry.size, BODY_BYTES_MAX))
            data.append(view[at : at + size])
            at += size
        failures = self._mine().sink.put_small(asked.entries, asked.sums, data).get()
        if len(asked.entries) == 1 and not failures:
            _log.info("stored %s", os.fsdecode(asked.entries[0].path))
        request.reply(args=encode_args(Failures(_short(failures))))

    def _make(self, request: Request) -> None:
        asked = decode_args(_body(request), Make)
        failures = self._mine().sink.make(asked.entries, is_last=asked.is_last)
        request.reply(args=encode_args(Failures(_short(failures))))

    # Pulls.

    def _pull(self, request: Request) -> None:
        number = self._pulls.start(self._mine().sink, decode_args(_body(request), Pull))
        request.reply(args=encode_args(PullNumber(number)))

    def _poll(self, request: Request) -> None:
        asked = decode_args(request.args, Number)
        request.reply(args=encode_args(self._pulls.tally(asked.number).report(asked.after)))
        request.done()

    def _cancel(self, request: Request) -> None:
        self._pulls.tally(decode_args(request.args, Number).number).cancel()
        request.reply()
        request.done()


def _body(request: Request) -> memoryview:
    return request.body if request.body is not None else memoryview(b"")


def _short(failures: list[Failure]) -> list[Failure]:
    return [Failure(each.item, each.code, cut(each.detail, _DETAIL_MAX)) for each in failures]
