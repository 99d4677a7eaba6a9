"""The thread of a worker that brings chunks from other workers into its store: answers COPY.

    queue → [thread: GETs to the source, a few at once → compare the checksums] → writer → reply

What is fetched is compared with the checksum of the request, which is the index's, before anything
that stands under its key is touched.  What is there already, whole, is neither fetched nor written:
so a repetition is cheap.  At most two batches of COPY_BYTES_MAX are in memory, one being fetched
while the other one is being made durable.  Payloads never pass through rank 0.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mpifs.core.block_table import add_table, stored_bytes
from mpifs.core.checksum import function_of
from mpifs.core.errors import (
    ChunkMissingError,
    DamageError,
    FormatError,
    InUseError,
    MpifsError,
    PosixError,
    ProtocolError,
    SilentError,
)
from mpifs.core.image import (
    IMAGE_HEADER_BYTES,
    KEY_BYTES,
    decode_header,
    decode_key,
    encode_header_into,
)
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    CHUNK_BYTES_MAX,
    COPIES_MAX,
    COPY_BYTES_MAX,
    COPY_COUNT_MAX,
    COPY_DETAIL_MAX,
    COPY_FETCHES,
    COPY_QUEUE_LOOK_S,
    COPY_WORK_S,
    IDLE_LOOK_S,
    REQUEST_TIMEOUT_S,
)
from mpifs.core.messages import Copy, CopyFailure, CopyItem, CopyReply, decode_args, encode_args
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.store.chunks import Change, ChunkStore, Image
from mpifs.store.value import is_whole
from mpifs.store.writer import Job
from mpifs.transport.client import Client, Pending
from mpifs.transport.request import Request

_log = logging.getLogger(__name__)


class Served(NamedTuple):
    """The store that is being served, and how to write to it."""

    store: ChunkStore
    kind: ChecksumKind
    submit: Callable[[Job], bool]


@dataclass(slots=True, eq=False)
class _Work:
    """One COPY.  `failures` and `waiting` are guarded by `lock`; the last one answers."""

    request: Request
    deadline_s: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    failures: list[CopyFailure] = field(default_factory=list)
    waiting: int = 1
    """Items on their way to the disk, and the thread itself while it goes through the items."""

    def fail(self, item: int, error: MpifsError) -> None:
        failure = CopyFailure(item, error.errno or errno.EIO, str(error)[:COPY_DETAIL_MAX])
        with self.lock:
            self.failures.append(failure)

    def begin(self) -> None:
        with self.lock:
            self.waiting += 1

    def end(self) -> None:
        with self.lock:
            self.waiting -= 1
            is_last = not self.waiting
        if is_last:
            self.request.reply(args=encode_args(CopyReply(self.failures)))


class Fetcher:
    """`served` gives the store that is being served, None before and after; `peers` asks the other
    ranks (None: this rank cannot, and refuses)."""

    def __init__(self, peers: Client | None, served: Callable[[], Served | None]) -> None:
        self._peers = peers
        self._served = served
        self._is_stopped = threading.Event()
        self._batches = threading.Semaphore(2)
        self._queue: queue.Queue[_Work] = queue.Queue(COPIES_MAX)
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> None:
        """Has a COPY answered; the service loop's thread.  Raises EAGAIN, FormatError."""
        if self._peers is None:
            raise FormatError("this worker cannot reach the others")
        if self._served() is None:
            raise FormatError("this worker serves no store")
        try:
            self._queue.put_nowait(_Work(request, time.monotonic() + COPY_WORK_S))
        except queue.Full:
            raise PosixError(errno.EAGAIN, "this worker has too many chunks to fetch") from None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fetcher", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Refuses what waits and soon ends what is under way."""
        self._is_stopped.set()

    def _run(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=IDLE_LOOK_S)
            except queue.Empty:
                continue
            try:
                if self._is_stopped.is_set():
                    raise InUseError("this worker is stopping")
                asked = decode_args(work.request.args, Copy)
                _check(asked)
            except MpifsError as error:
                work.request.refuse(error)
                continue
            try:
                self._copy(work, asked)
            except Exception as error:  # noqa: BLE001 - who asked must hear, the thread must go on
                _log.exception("COPY failed")
                for item in range(len(asked.items)):
                    work.fail(item, DamageError(f"internal error: {error!r}"))
            work.end()

    def _copy(self, work: _Work, asked: Copy) -> None:
        for batch in _batches(asked.items):
            if not self._batches.acquire(timeout=max(0.0, work.deadline_s - time.monotonic())):
                for item in batch:
                    work.fail(item, SilentError(work.request.source, "its disk takes too long"))
                continue
            held = _Held(len(batch), self._batches)
            for item, buffer, clash in self._fetched(work, asked, batch):
                if buffer is None:
                    held.give()
                else:
                    self._store(work, asked.items[item], item, buffer, held, is_other=clash)

    def _fetched(
        self, work: _Work, asked: Copy, batch: Sequence[int]
    ) -> Iterator[tuple[int, bytearray | None, bool]]:
        """(item, its image with padding or None, whether another chunk stands under its key)."""
        under_way: deque[tuple[int, bytearray, Pending, bool]] = deque()
        todo = deque(batch)
        while todo or under_way:
            while todo and len(under_way) < COPY_FETCHES:
                item = todo.popleft()
                try:
                    state = self._look(work, asked.items[item])
                    if state is None:
                        yield item, None, False
                        continue
                    buffer, pending = self._ask(work, asked.source, asked.items[item])
                    under_way.append((item, buffer, pending, state))
                except MpifsError as error:
                    work.fail(item, error)
                    yield item, None, False
            if not under_way:
                continue
            item, buffer, pending, clash = under_way.popleft()
            try:
                self._take(pending, asked.items[item], buffer)
            except MpifsError as error:
                work.fail(item, error)
                yield item, None, False
            else:
                yield item, buffer, clash

    def _store_now(self) -> Served:
        served = self._served()
        if served is None or self._is_stopped.is_set():
            raise InUseError("this worker is stopping")
        return served

    def _look(self, work: _Work, item: CopyItem) -> bool | None:
        """None: the chunk is here, whole.  True: another whole one stands in its place."""
        if time.monotonic() > work.deadline_s:
            raise SilentError(work.request.source, "there was no time left to fetch it")
        served = self._store_now()
        try:
            with served.store.get(decode_key(item.key)) as lease:
                if not is_whole(lease.image):
                    return False
                found = lease.header.length, lease.header.checksum
                return None if found == (item.length, item.checksum) else True
        except (ChunkMissingError, DamageError):
            return False

    def _ask(self, work: _Work, source: int, item: CopyItem) -> tuple[bytearray, Pending]:
        assert self._peers is not None
        buffer = bytearray(stored_bytes(item.length))
        pending = self._peers.start(
            source,
            Kind.GET,
            args=item.key,
            into=memoryview(buffer)[: IMAGE_HEADER_BYTES + item.length],
            timeout_s=min(REQUEST_TIMEOUT_S, max(1.0, work.deadline_s - time.monotonic())),
        )
        return buffer, pending

    def _take(self, pending: Pending, item: CopyItem, buffer: bytearray) -> None:
        """Checks an answer; afterwards the image stands in `buffer`.  Raises MpifsError."""
        body = pending.wait().body
        size = IMAGE_HEADER_BYTES + item.length
        key = decode_key(item.key)
        if len(body) != size or decode_header(body).key != key:
            raise DamageError(f"its source holds another chunk in the place of {key}")
        if body.obj is not buffer:
            memoryview(buffer)[:size] = body
        kind = self._store_now().kind
        if function_of(kind)(memoryview(buffer)[IMAGE_HEADER_BYTES:size]) != item.checksum:
            raise DamageError(f"its source holds other bytes of {key}")
        encode_header_into(buffer, 0, kind, key, item.length, item.checksum)
        add_table(buffer, item.key, item.length, item.checksum, kind)

    def _store(
        self,
        work: _Work,
        item: CopyItem,
        number: int,
        buffer: bytearray,
        held: _Held,
        *,
        is_other: bool,
    ) -> None:
        key = decode_key(item.key)
        work.begin()

        def done(error: MpifsError | None) -> None:
            if error is not None:
                work.fail(number, error)
            held.give()
            work.end()

        image = Image(decode_header(buffer), memoryview(buffer))
        try:
            if is_other:
                self._queue_job(work, Job(Change(deletes=[key]), KEY_BYTES, _ignore))
            self._queue_job(work, Job(Change(puts=[image]), len(buffer), done))
        except MpifsError as error:
            done(error)

    def _queue_job(self, work: _Work, job: Job) -> None:
        while not self._store_now().submit(job):
            if time.monotonic() > work.deadline_s:
                raise PosixError(errno.EAGAIN, "this worker's write queue is full")
            time.sleep(COPY_QUEUE_LOOK_S)


class _Held:
    """The place of a batch in memory, given back when `count` items are done with it."""

    def __init__(self, count: int, room: threading.Semaphore) -> None:
        self._lock = threading.Lock()
        self._count = count
        self._room = room

    def give(self) -> None:
        """One item needs its buffer no more."""
        with self._lock:
            self._count -= 1
            is_last = not self._count
        if is_last:
            self._room.release()


def _ignore(error: MpifsError | None) -> None:
    """A failed deletion shows in the put behind it."""


def _check(asked: Copy) -> None:
    """Raises ProtocolError."""
    if not 1 <= len(asked.items) <= COPY_COUNT_MAX or asked.source < 1:
        raise ProtocolError("COPY of nothing, of too much, or from nowhere")
    for item in asked.items:
        is_key = len(item.key) == KEY_BYTES and decode_key(item.key) != ChunkKey(0, 0, 0)
        if not is_key or len(item.checksum) != 16 or not 0 < item.length <= CHUNK_BYTES_MAX:
            raise ProtocolError("COPY with an impossible key, length or checksum")


def _batches(items: Sequence[CopyItem]) -> Iterator[list[int]]:
    """Places of items that are in memory together."""
    batch: list[int] = []
    size = 0
    for place, item in enumerate(items):
        if batch and size + item.length > COPY_BYTES_MAX:
            yield batch
            batch, size = [], 0
        batch.append(place)
        size += item.length
    if batch:
        yield batch
