"""A worker's service: message → call on its store → reply.

    waiting ──SERVE──▶ serving ──STOP, or rank 0 silent──▶ stopping ──queue empty, closed──▶ stopped

`handle`, `idle` and `should_stop` are called by the service loop's thread.  PUT, DELETE and MEND
are answered from the writer's thread, once durable; VERIFY, INSPECT and REBUILD from that of
`Checkup`; everything else at once.  A GET is sent straight from LMDB's pages: its read transaction
lives until `on_sent`.

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

from mpifs.core.checksum import ChecksumFunction, function_of
from mpifs.core.errors import (
    DamageError,
    FormatError,
    InUseError,
    MpifsError,
    PosixError,
    ProtocolError,
)
from mpifs.core.image import IMAGE_HEADER_BYTES, KEY_BYTES, decode_key, decode_keys, split_batch
from mpifs.core.layout import is_chunk_size
from mpifs.core.limits import (
    BATCH_COUNT_MAX,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    HEARTBEAT_S,
    INDEX_COPY_PIECE_BYTES,
    LEASE_CLOSE_S,
    LEASES_MAX,
    LIST_COUNT_MAX,
    MASTER_SILENCE_S,
    STORES_MAX,
)
from mpifs.core.messages import (
    HelloReply,
    Kind,
    ListKeys,
    Mend,
    MendReply,
    Serve,
    decode_args,
    encode_args,
)
from mpifs.core.types import ChecksumKind
from mpifs.store.checkup import Checkup
from mpifs.store.chunks import Change, ChunkStore, Image, Lease
from mpifs.store.folder import find_stores, store_folder
from mpifs.store.mend import Mender
from mpifs.store.survey import survey
from mpifs.store.value import COPY_INODE, stored_bytes
from mpifs.store.writer import Job, Writer
from mpifs.transport.server import Request

_log = logging.getLogger(__name__)
MASTER_RANK = 0
FREE_AGE_S = 0.05  # asking the disk and LMDB takes 15 µs, more than a small GET


class StoreService:
    """Serves one store of the volume at `volume_folder`, which SERVE names.

    `host` is this rank's host name for HELLO; `clock` counts seconds.
    """

    def __init__(
        self, volume_folder: str, host: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._volume_folder = volume_folder
        self._host = host
        self._clock = clock
        self._store: ChunkStore | None = None
        self._served: Serve | None = None
        self._sum: ChecksumFunction = function_of(ChecksumKind.XXH3_128)
        self._writer: Writer | None = None
        self._free = 0
        self._free_s = float("-inf")
        self._leases = threading.BoundedSemaphore(LEASES_MAX)
        self._is_stopped = threading.Event()
        self._looked_s = self._heard_s = clock()
        self._checkup = checkup = Checkup(volume_folder, self._being_served)
        self._handlers: dict[int, Callable[[Request], None]] = {
            Kind.HELLO: self._hello,
            Kind.SERVE: self._serve,
            Kind.PING: self._ping,
            Kind.STATS: self._stats,
            Kind.STOP: self._stop,
            Kind.SURVEY: self._survey,
            Kind.INSPECT: partial(checkup.submit, checkup.inspect),
            Kind.REBUILD: partial(checkup.submit, checkup.rebuild),
            Kind.PUT: self._put,
            Kind.GET: self._get,
            Kind.DELETE: self._delete,
            Kind.LIST: self._list,
            Kind.VERIFY: partial(checkup.submit, checkup.verify),
            Kind.MEND: self._mend,
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
            handler = self._handlers.get(request.header.kind)
            if handler is None:
                raise ProtocolError(f"unknown kind of request {request.header.kind}")
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
        if now - self._heard_s > MASTER_SILENCE_S and not self._is_stopped.is_set():
            _log.error("nothing heard from rank 0 for %.0f s: closing the store", MASTER_SILENCE_S)
            self.close()
        return self._is_stopped.is_set()

    def idle(self) -> None:
        """Called by the loop when there is nothing to do."""

    def close(self) -> None:
        """Commits what is queued and closes the store; waits at most LEASE_CLOSE_S twice."""
        store, self._store = self._store, None
        self._checkup.stop()
        if self._writer is not None:
            if store is not None:
                self._writer.stop(store.close)
            self._writer.join(2 * LEASE_CLOSE_S)
        self._is_stopped.set()

    def _open_store(self) -> ChunkStore:
        if self._store is None:
            raise FormatError("this worker serves no store yet")
        return self._store

    def _being_served(self) -> tuple[ChunkStore, ChecksumFunction] | None:
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
        if self._store is not None:
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
        self._writer = Writer(store, f"store-{serve.store}-writer")
        request.reply(args=encode_args(store.stats()), free=self._known_free())

    def _survey(self, request: Request) -> None:
        request.reply(args=encode_args(survey(self._volume_folder)))

    def _ping(self, request: Request) -> None:
        request.reply(free=self._known_free())

    def _stats(self, request: Request) -> None:
        stats = self._open_store().stats()
        self._free = stats.free
        request.reply(args=encode_args(stats), free=stats.free)

    def _stop(self, request: Request) -> None:
        store, self._store = self._store, None  # from here on nothing begins to read
        self._checkup.stop()

        def at_end() -> None:
            if store is not None:
                store.close()
            request.reply(on_sent=self._is_stopped.set)

        if self._writer is None:
            at_end()
        elif not self._writer.stop(at_end):
            raise InUseError("this worker is stopping already")

    def _put(self, request: Request) -> None:
        served = self._served
        body = request.body
        self._open_store()
        if served is None or body is None or not 0 < request.header.items <= BATCH_COUNT_MAX:
            raise ProtocolError("PUT without chunks, or with too many")
        try:
            cut = split_batch(body, request.header.items)
        except DamageError as error:
            raise PosixError(errno.EBADMSG, f"damaged on the way: {error}") from error
        images = []
        for header, image in cut:
            most = INDEX_COPY_PIECE_BYTES if header.inode == COPY_INODE else served.chunk_size
            if header.checksum_kind != served.checksum or header.length > most:
                raise ProtocolError(f"{header.key} does not fit this volume's geometry")
            if self._sum(image[IMAGE_HEADER_BYTES:]) != header.checksum:
                raise PosixError(errno.EBADMSG, f"{header.key} was damaged on the way")
            images.append(Image(header, image))
        if len(images) == 1:
            images = [_padded_in_place(images[0], request.buffer)]
        self._submit(request, Change(puts=images), len(body))

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

    def _get(self, request: Request) -> None:
        store = self._open_store()
        if len(request.args) != KEY_BYTES:
            raise ProtocolError("GET without one chunk key")
        lease = store.get(decode_key(request.args))
        if not self._leases.acquire(blocking=False):
            with lease:
                copy = bytes(lease.image)
            request.reply(body=copy, items=1, free=self._free)
            return
        give_back = self._give_back(lease)
        try:
            request.reply(body=lease.image, items=1, free=self._free, on_sent=give_back)
        except BaseException:
            give_back()
            raise

    def _give_back(self, lease: Lease) -> Callable[[], None]:
        once = [lease]

        def sent() -> None:
            if once:
                once.pop().close()
                self._leases.release()

        return sent

    def _list(self, request: Request) -> None:
        store = self._open_store()
        asked = decode_args(request.args, ListKeys)
        if len(asked.after) not in (0, KEY_BYTES) or asked.count < 1:
            raise ProtocolError("LIST with an impossible key or count")
        headers = store.headers(asked.after, min(asked.count, LIST_COUNT_MAX))
        request.reply(body=b"".join(headers), items=len(headers), free=self._free)


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


def _padded_in_place(image: Image, buffer: bytearray | None) -> Image:
    """The image with its padding zeros, if the buffer at whose start it stands has the room."""
    size = stored_bytes(image.header.length)
    end = len(image.data)
    if size == end or buffer is None or len(buffer) < size:
        return image
    view = memoryview(buffer)
    view[end:size] = bytes(size - end)
    return Image(image.header, view[:size])
