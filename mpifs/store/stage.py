"""The threads of a worker for stage-in and stage-out: answer STAGE_IN and STAGE_OUT.

    loop → queue → [STAGE_THREADS threads: files read and summed] → writer → reply
                                          └ chunks written to files, proved → reply

Each thread takes a whole order: so the reads of several overlap, and while one waits for its commit
the next is being read.  An order that fails in parts says so per part; the loop is never held up.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from mpifs import faultpoint
from mpifs.core.errors import STORE_GONE_STATUS, FormatError, InUseError, MpifsError, PosixError
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    COPY_QUEUE_LOOK_S,
    IDLE_LOOK_S,
    STAGE_DETAIL_MAX,
    STAGE_QUEUE_MAX,
    STAGE_THREADS,
    STAGE_WORK_S,
)
from mpifs.core.stage_messages import (
    StageDone,
    StageOrder,
    StageOutOrder,
    StageReply,
    decode_body,
    encode_body,
)
from mpifs.store.chunks import Change, Image
from mpifs.store.fetcher import Served
from mpifs.store.stage_in import PartReader
from mpifs.store.stage_out import carry_out, stored_payload
from mpifs.store.writer import Job
from mpifs.transport.request import Request

_log = logging.getLogger(__name__)

Work = Callable[[Request, float], None]


class Staging:
    """`served` gives the store that is being served, None before and after; `loss` says what has
    become of its files, "" if all is well.  `handlers` belong into StoreService.others; they are
    called by the service loop's thread and take requests over."""

    def __init__(self, served: Callable[[], Served | None], loss: Callable[[], str]) -> None:
        self._served = served
        self._loss = loss
        self._queue: queue.Queue[tuple[Request, Work, float]] = queue.Queue(STAGE_QUEUE_MAX)
        self._threads: list[threading.Thread] = []
        self.handlers: dict[int, Callable[[Request], None]] = {
            Kind.STAGE_IN: partial(self._submit, self._stage_in),
            Kind.STAGE_OUT: partial(self._submit, self._stage_out),
        }

    def _submit(self, work: Work, request: Request) -> None:
        """Raises EAGAIN."""
        if len(self._threads) < STAGE_THREADS:
            name = f"stage-{len(self._threads) + 1}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        try:
            self._queue.put_nowait((request, work, time.monotonic() + STAGE_WORK_S))
        except queue.Full:
            raise PosixError(errno.EAGAIN, "this worker has too many orders to stage") from None

    def _run(self) -> None:
        while True:
            try:
                request, work, deadline_s = self._queue.get(timeout=IDLE_LOOK_S)
            except queue.Empty:
                continue
            try:
                work(request, deadline_s)
            except MpifsError as error:
                request.refuse(error)
            except MemoryError:
                sentence = "a worker is out of memory (a limit of its process)"
                request.refuse(PosixError(errno.ENOMEM, sentence))
            except Exception as error:  # noqa: BLE001 - who asked must hear, the thread must go on
                _log.exception("staging failed")
                request.refuse(PosixError(errno.EIO, f"internal error: {error!r}"))
            finally:
                request.done()

    def _store_now(self) -> Served:
        served = self._served()
        if served is None:
            raise FormatError("this worker serves no store")
        return served

    def _stage_in(self, request: Request, deadline_s: float) -> None:
        served = self._store_now()
        order = decode_body(request.body or b"", StageOrder)
        answers: list[StageDone] = []
        images: list[Image] = []
        with PartReader(order.folders, served.kind) as reader:
            for item in order.items:
                try:
                    if time.monotonic() > deadline_s:
                        raise PosixError(errno.ETIMEDOUT, "the file system of the source is slow")
                    image = reader.read(item)
                except OSError as error:
                    answers.append(_failed(error))
                else:
                    images.append(image)
                    answers.append(StageDone(0, image.header.checksum))
        faultpoint.reach("stage.read")
        if not images:
            request.reply(body=encode_body(StageReply(answers)), items=len(answers))
            return

        def stored(error: MpifsError | None) -> None:
            loss = self._loss()
            if loss:  # durable in files that nobody will ever find
                request.refuse(PosixError(STORE_GONE_STATUS, f"its store is gone: {loss}"))
                return
            if error is not None:
                answers[:] = [each if each.code else _failed(error) for each in answers]
            free = served.store.free_bytes()
            request.reply(body=encode_body(StageReply(answers)), items=len(answers), free=free)

        size = sum(len(image.data) for image in images)
        job = Job(Change(puts=images), size, stored)
        while not self._store_now().submit(job):
            if time.monotonic() > deadline_s:
                raise InUseError("this worker's write queue is full, or it is stopping")
            time.sleep(COPY_QUEUE_LOOK_S)

    def _stage_out(self, request: Request, deadline_s: float) -> None:
        served = self._store_now()
        order = decode_body(request.body or b"", StageOutOrder)
        answers = carry_out(order, served.kind, partial(stored_payload, served.store), deadline_s)
        request.reply(body=encode_body(StageReply(answers)), items=len(answers))


def _failed(error: OSError) -> StageDone:
    sentence = str(error) if isinstance(error, MpifsError) else str(error.strerror or error)
    return StageDone(error.errno or errno.EIO, b"", sentence[:STAGE_DETAIL_MAX])
