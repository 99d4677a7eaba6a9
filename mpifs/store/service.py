"""A worker's service: message → call on its store → reply.

    waiting ──SERVE──▶ serving ──STOP, or rank 0 silent──▶ stopping ──queue empty, closed──▶ stopped

`handle`, `idle` and `should_stop` are called by the service loop's thread.  PUT, DELETE and MEND
are answered from the writer's thread, once durable; VERIFY, INSPECT, REBUILD and RETIRE from that
of `Checkup`, COPY from that of `Fetcher`; everything else at once.

No bytes of a request can make `handle` raise: every failure is an answer with an errno and a
sentence.  Payloads are verified on arrival, so damage on the way is EBADMSG and never stored.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial

from mpifs import faultpoint
from mpifs.core.checksum import ChecksumFunction, function_of
from mpifs.core.errors import (
    STORE_GONE_STATUS,
    FormatError,
    InUseError,
    MpifsError,
    PosixError,
    ProtocolError,
)
from mpifs.core.image import KEY_BYTES, decode_keys
from mpifs.core.kinds import Kind
from mpifs.core.layout import is_chunk_size
from mpifs.core.limits import (
    BATCH_COUNT_MAX,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    ENDING_SILENCE_S,
    HEARTBEAT_S,
    LEASE_CLOSE_S,
    MASTER_SILENCE_S,
    STORE_LOOK_S,
    STORES_MAX,
)
from mpifs.core.messages import HelloReply, Mend, MendReply, Retire, Serve, decode_args, encode_args
from mpifs.core.types import ChecksumKind
from mpifs.store.arrivals import arrived_images
from mpifs.store.checkup import Checkup
from mpifs.store.chunks import Change, ChunkStore
from mpifs.store.fetcher import Fetcher, Served
from mpifs.store.folder import find_stores, retire_folder, store_folder
from mpifs.store.mend import Mender
from mpifs.store.reads import Reads
from mpifs.store.survey import survey
from mpifs.store.watch import StoreWatch
from mpifs.store.writer import Job, Writer
from mpifs.transport.client import Client
from mpifs.transport.request import Request

_log = logging.getLogger(__name__)
MASTER_RANK = 0
_READS = (Kind.GET, Kind.GET_PART, Kind.GET_MANY)
"""What a test can have answered late."""
FREE_AGE_S = 0.05  # asking the disk and LMDB takes 15 µs, more than a small GET


class StoreService:
    """Serves one store of the volume at `volume_folder`, which SERVE names.

    `host` is this rank's host name for HELLO; `clock` counts seconds; `peers` asks other ranks, for
    COPY.  Once the store's files are not what was opened (StoreWatch), every request for the store
    and PING are refused with STORE_GONE_STATUS, until SERVE names another store.
    """

    def __init__(
        self,
        volume_folder: str,
        host: str,
        clock: Callable[[], float] = time.monotonic,
        peers: Client | None = None,
    ) -> None:
        self.others: dict[int, Callable[[Request], None]] = {}
        """What answers further kinds of requests, to their `done`; set before any comes."""
        self._volume_folder = volume_folder
        self._host = host
        self._clock = clock
        self._store: ChunkStore | None = None
        self._served: Serve | None = None
        self._sum: ChecksumFunction = function_of(ChecksumKind.XXH3_128)
        self._writer: Writer | None = None
        self._watch: StoreWatch | None = None
        self._gone = ""
        self._watched_s = float("-inf")
        self._free = 0
        self._free_s = float("-inf")
        self._is_stopped = threading.Event()
        self._looked_s = self._heard_s = clock()
        self._silence_s = MASTER_SILENCE_S
        self.is_forsaken = False
        """Whether it has closed because rank 0 was silent."""
        self._checkup = checkup = Checkup(volume_folder, self._being_served)
        self._fetcher = Fetcher(peers, self.being_written)
        reads = Reads(self._open_store, lambda: self._sum, lambda: self._free)
        self._forget_places = reads.forget
        self._handlers: dict[int, Callable[[Request], None]] = {
            Kind.HELLO: self._hello,
            Kind.SERVE: self._serve,
            Kind.PING: self._ping,
            Kind.STATS: self._stats,
            Kind.STOP: self._stop,
            Kind.SURVEY: self._survey,
            Kind.INSPECT: partial(checkup.submit, checkup.inspect),
            Kind.REBUILD: partial(checkup.submit, checkup.rebuild),
            Kind.RETIRE: partial(checkup.submit, self._retire),
            Kind.PUT: self._put,
            Kind.GET: reads.get,
            Kind.GET_PART: reads.get_part,
            Kind.GET_MANY: reads.get_many,
            Kind.DELETE: self._delete,
            Kind.LIST: reads.list,
            Kind.VERIFY: partial(checkup.submit, checkup.verify),
            Kind.MEND: self._mend,
            Kind.COPY: self._copy,
        }

    @property
    def store(self) -> ChunkStore | None:
        """The store that is being served, None before SERVE."""
        return self._store

    def handle(self, request: Request) -> None:
        """Answers one request, now or later; never raises for what the request holds."""
        if request.source == MASTER_RANK:
            self._heard_s = self._clock()
        try:
            kind = request.header.kind
            other = self.others.get(kind)
            if other is not None:
                other(request)
                return
            handler = self._handlers.get(kind)
            if handler is None:
                raise ProtocolError(f"unknown kind of request {kind}")
            if kind in _READS and faultpoint.is_late("store.read"):
                request.is_late = True
            handler(request)
        except MpifsError as error:
            request.refuse(error)
            request.done()
        if request.header.kind != Kind.PUT:  # the writer still needs a PUT's body
            request.done()

    def should_stop(self) -> bool:
        """Whether the loop is to end: STOP has been answered, or rank 0 is silent for too long.

        Time in which this loop itself stood still (a stopped process, a slow disk) counts as no
        silence of rank 0: its messages may be waiting.
        """
        now = self._clock()
        stood_s = now - self._looked_s
        self._looked_s = now
        if stood_s > HEARTBEAT_S:
            self._heard_s = min(now, self._heard_s + stood_s)
        if now - self._heard_s > self._silence_s and not self._is_stopped.is_set():
            _log.error("nothing heard from rank 0 for %.0f s: closing the store", self._silence_s)
            self.is_forsaken = True
            self.close()
        return self._is_stopped.is_set()

    def expect_end(self) -> None:
        """The job is being ended: rank 0 says STOP soon, or is dead.  Any thread."""
        self._silence_s = ENDING_SILENCE_S

    def idle(self) -> None:
        """Called by the loop when there is nothing to do: looks after the store's files."""
        if self._clock() - self._watched_s > STORE_LOOK_S:
            self._look()

    def close(self) -> None:
        """Commits what is queued and closes the store; waits at most LEASE_CLOSE_S twice."""
        self._checkup.stop()
        self._fetcher.stop()
        self._close_store()
        self._is_stopped.set()

    def _close_store(self) -> None:
        self._forget_places()
        store, self._store = self._store, None
        writer, self._writer = self._writer, None
        if writer is not None:
            if store is not None:
                writer.stop(store.close)
            writer.join(2 * LEASE_CLOSE_S)

    def _look(self) -> str:
        """What has become of the store's files, "" if they are as they were."""
        self._watched_s = self._clock()
        watch = self._watch
        if not self._gone and watch is not None and self._store is not None:
            self._gone = watch.look()
            if self._gone:
                _log.error("the store is gone: %s", self._gone)
        return self._gone

    def _check_gone(self) -> None:
        if self._gone:
            raise PosixError(STORE_GONE_STATUS, f"its store is gone: {self._gone}")

    def _open_store(self) -> ChunkStore:
        self._check_gone()
        if self._store is None:
            raise FormatError("this worker serves no store yet")
        return self._store

    def being_written(self) -> Served | None:
        """The store and how to write to it; None when none is served.  Any thread."""
        store, writer, served = self._store, self._writer, self._served
        if store is None or writer is None or served is None or self._gone:
            return None
        return Served(store, ChecksumKind(served.checksum), writer.submit)

    def loss(self) -> str:
        """What has become of the store's files, "" if they are as they were; any thread.  Whoever
        writes by `being_written` asks before he says that something is durable."""
        return self._look()

    def _being_served(self) -> tuple[ChunkStore, ChecksumFunction] | None:
        self._check_gone()
        store = self._store
        return None if store is None else (store, self._sum)

    def _known_free(self) -> int:
        """Free bytes of the store, at most FREE_AGE_S old."""
        store, now = self._store, self._clock()
        if store is not None and now - self._free_s > FREE_AGE_S:
            self._free_s = now
            self._free = store.free_bytes()
        return self._free

    def _hello(self, request: Request) -> None:
        stores = find_stores(self._volume_folder)
        request.reply(args=encode_args(HelloReply(self._host, os.getpid(), stores)))

    def _serve(self, request: Request) -> None:
        serve = decode_args(request.args, Serve)
        if self._gone and self._served is not None and serve.store_uuid != self._served.store_uuid:
            self._close_store()  # another store takes the place of the one that is gone
            self._gone = ""
        if self._store is not None:
            self._check_gone()
            if self._served != serve and (
                self._served is None or self._served.store_uuid != serve.store_uuid
            ):
                raise InUseError(f"this worker serves store {self._store.store} already")
            request.reply(args=encode_args(self._store.stats()), free=self._known_free())
            return
        kind = _checked_kind(serve)
        store = ChunkStore.open(
            store_folder(self._volume_folder, serve.store),
            volume_uuid=serve.volume_uuid,
            store_uuid=serve.store_uuid,
            store=serve.store,
            chunk_size=serve.chunk_size,
            checksum=kind,
            create=serve.create,
            relaxed=serve.relaxed,
            capacity_bytes=serve.capacity,
        )
        self._store, self._served, self._sum = store, serve, function_of(kind)
        self._watch, self._gone = StoreWatch(store.folder), ""
        self._writer = Writer(store, f"store-{serve.store}-writer", self._look)
        request.reply(args=encode_args(store.stats()), free=self._known_free())

    def _survey(self, request: Request) -> None:
        request.reply(args=encode_args(survey(self._volume_folder)))

    def _ping(self, request: Request) -> None:
        self._look()
        self._check_gone()
        request.reply(free=self._known_free())

    def _stats(self, request: Request) -> None:
        stats = self._open_store().stats()
        self._free = stats.free
        request.reply(args=encode_args(stats), free=stats.free)

    def _retire(self, request: Request) -> None:
        """Closes and removes the store; on the thread of the checks, since it may take a while."""
        asked, served = decode_args(request.args, Retire), self._served
        if served is None or (served.store, served.volume_uuid, served.store_uuid) != (
            asked.store,
            asked.volume_uuid,
            asked.store_uuid,
        ):
            raise FormatError("RETIRE of a store that this worker does not serve")
        is_there = not self._look()
        self._close_store()
        if is_there:
            retire_folder(store_folder(self._volume_folder, asked.store))
        request.reply()

    def _copy(self, request: Request) -> None:
        self._open_store()
        self._fetcher.submit(request)

    def _stop(self, request: Request) -> None:
        store, self._store = self._store, None  # from here on nothing begins to read
        self._checkup.stop()
        self._fetcher.stop()

        def at_end() -> None:
            if store is not None:
                store.close()
            request.reply(on_sent=self._is_stopped.set)

        if self._writer is None:
            at_end()
        elif not self._writer.stop(at_end):
            raise InUseError("this worker is stopping already")

    def _put(self, request: Request) -> None:
        self._open_store()
        served = self._served
        assert served is not None
        images = arrived_images(request, served, self._sum)
        faultpoint.reach("store.received")
        self._submit(request, Change(puts=images), request.header.body_bytes)

    def _delete(self, request: Request) -> None:
        keys = decode_keys(request.args)
        if len(keys) > BATCH_COUNT_MAX:
            raise ProtocolError(f"DELETE of {len(keys)} chunks; {BATCH_COUNT_MAX} are allowed")
        self._submit(request, Change(deletes=keys), len(keys) * KEY_BYTES)

    def _mend(self, request: Request) -> None:
        store, served = self._open_store(), self._served
        assert served is not None
        items = decode_args(request.args, Mend).items
        for item in items:
            if {len(item.key), len(item.found)} != {KEY_BYTES} or len(item.checksum) != 16:
                raise ProtocolError("MEND with an impossible key or checksum")
            if not 0 <= item.length <= CHUNK_BYTES_MAX:
                raise ProtocolError("MEND with an impossible length")
        mender = Mender(store, ChecksumKind(served.checksum), items)
        mended: list[bool] = []

        def done(failure: MpifsError | None) -> None:
            if failure is not None:
                request.refuse(failure)
            else:
                request.reply(args=encode_args(MendReply(mended)), free=self._known_free())

        self._queue(Job(Change(), len(request.args), done, lambda: mended.extend(mender.run())))

    def _submit(self, request: Request, change: Change, size: int) -> None:
        def done(failure: MpifsError | None) -> None:
            if self._gone:  # durable in files that nobody will ever find, or not at all
                failure = PosixError(STORE_GONE_STATUS, f"its store is gone: {self._gone}")
            if change.deletes:
                self._free_s = float("-inf")  # rank 0 must hear of the room that there is now
            if failure is not None:
                request.refuse(failure)
            else:
                request.reply(free=self._known_free())
            request.done()

        self._open_store()
        self._queue(Job(change, size, done))

    def _queue(self, job: Job) -> None:
        if self._writer is None or not self._writer.submit(job):
            raise PosixError(errno.EAGAIN, "this worker's write queue is full, or it is stopping")


def _checked_kind(serve: Serve) -> ChecksumKind:
    """The checksum kind, after all numbers of a Serve have been checked.  Raises ProtocolError."""
    try:
        kind = ChecksumKind(serve.checksum)
    except ValueError:
        raise ProtocolError(f"unknown checksum kind {serve.checksum}") from None
    if (
        not 1 <= serve.store <= STORES_MAX
        or len(serve.volume_uuid) != 16
        or len(serve.store_uuid) != 16
        or not is_chunk_size(serve.chunk_size, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
    ):
        raise ProtocolError("SERVE names an impossible store")
    return kind
