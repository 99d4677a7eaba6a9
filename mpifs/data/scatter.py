"""Scatter: sums chunk payloads and sends them to their stores, all replicas at once.

One thread owns everything under way: it takes submitted chunks from a queue, packs small ones for
the same store into one PUT, starts the sends, and calls `done` of each chunk when all its
replicas are durable or one has failed.  Invariant: between `submit` and `done` the buffer of a
chunk must not change; the scatter thread alone writes its header room.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mpifs import faultpoint
from mpifs.core import image
from mpifs.core.buffers import BufferPool
from mpifs.core.checksum import function_of
from mpifs.core.errors import PosixError, was_garbled
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    BATCH_BYTES_MAX,
    BATCH_COUNT_MAX,
    BELL_TIMEOUT_S,
    GARBLED_TRIES,
    INFLIGHT_BYTES_MAX,
    INFLIGHT_COUNT_MAX,
    PACKED_BYTES_MAX,
    REQUEST_TIMEOUT_S,
)
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.transport.client import Client, Pending
from mpifs.transport.endpoint import Endpoint

log = logging.getLogger(__name__)

_ROOM = image.IMAGE_HEADER_BYTES


@dataclass(slots=True, eq=False)
class Outgoing:
    """A chunk on its way: payload at `buffer[64 : 64 + length]`, header room before it."""

    key: ChunkKey
    buffer: bytearray
    length: int
    stores: tuple[int, ...]
    done: Callable[[Outgoing, OSError | None], None]
    checksum: bytes = b""
    waiting: int = 0
    error: OSError | None = None
    failed: set[int] = field(default_factory=set)
    """Stores that did not take it, on this or an earlier try."""


@dataclass(slots=True, eq=False)
class _Batch:
    """Small chunks for one store that will be packed into one body of `size` bytes."""

    size: int = 0
    items: list[Outgoing] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Sent:
    """One PUT under way.  `owned`: the buffer of `body`, if it is one of a batch."""

    pending: Pending
    store: int
    body: memoryview
    items: list[Outgoing]
    owned: bytearray | None
    tries: int

    @property
    def size(self) -> int:
        """Bytes of its images."""
        return sum(_ROOM + item.length for item in self.items)


class Scatter:
    """Sends chunks.  `submit` may be called from any thread; `done` runs on the scatter thread.

    `on_free(store, bytes)` hears what a store said in its answer that it can still take.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        client: Client,
        rank_of: Callable[[int], int],
        kind: ChecksumKind,
        on_free: Callable[[int, int], None],
    ) -> None:
        self._on_free = on_free
        self._endpoint = endpoint
        self._client = client
        self._rank_of = rank_of
        self._kind = kind
        self._sum = function_of(kind)
        self._queue: deque[Outgoing] = deque()
        self._under_way: list[_Sent] = []
        self._bodies = BufferPool(0, BATCH_BYTES_MAX * 4)
        self._bytes = 0
        self._address = b""
        self._is_ready = threading.Event()
        self._is_closing = self._is_asleep = False
        self._thread = threading.Thread(target=self._run, name="scatter", daemon=True)
        self._thread.start()
        self._is_ready.wait(REQUEST_TIMEOUT_S)

    def submit(self, item: Outgoing) -> None:
        """Queues a chunk; its buffer is the scatter thread's until `done` was called."""
        faultpoint.reach("chunk.frozen")
        self._queue.append(item)
        self._wake()

    def submit_many(self, items: list[Outgoing]) -> None:
        """As `submit`, with one wake-up: small chunks of one call travel in few messages."""
        faultpoint.reach("chunk.frozen")
        self._queue.extend(items)
        self._wake()

    def _wake(self) -> None:
        if self._is_asleep:  # it looks at the queue once more after it has said so.
            self._endpoint.ring(self._endpoint.rank, self._address)

    def close(self) -> None:
        """Ends the thread once everything submitted is done."""
        self._is_closing = True
        self._endpoint.ring(self._endpoint.rank, self._address)
        self._thread.join(REQUEST_TIMEOUT_S)

    def _run(self) -> None:
        bell = self._endpoint.bell()
        self._address = bell.address
        self._is_ready.set()
        while True:
            moved = self._start_queued()
            moved = self._reap() or moved
            if moved:
                continue
            if not self._under_way and not self._queue and self._is_closing:
                return
            self._is_asleep = True
            if not self._queue or self._under_way:
                bell.wait(0.0005 if self._under_way else BELL_TIMEOUT_S * 10)
            self._is_asleep = False

    def _start_queued(self) -> bool:
        if not self._queue or not self._has_room():
            return False
        batches: dict[int, _Batch] = {}
        while self._queue and self._has_room():
            item = self._queue.popleft()
            item.checksum = self._sum(memoryview(item.buffer)[_ROOM : _ROOM + item.length])
            image.encode_header_into(
                item.buffer, 0, self._kind, item.key, item.length, item.checksum
            )
            item.waiting = len(item.stores)
            for store in item.stores:
                if item.length <= PACKED_BYTES_MAX:
                    self._pack(batches, store, item)
                else:
                    self._start_alone(store, item)
        for store, batch in batches.items():
            self._start_batch(store, batch)
        return True

    def _has_room(self) -> bool:
        return len(self._under_way) < INFLIGHT_COUNT_MAX and self._bytes < INFLIGHT_BYTES_MAX

    def _pack(self, batches: dict[int, _Batch], store: int, item: Outgoing) -> None:
        """Adds a chunk to its store's batch."""
        size = image.padded(_ROOM + item.length)
        batch = batches.setdefault(store, _Batch())
        if batch.size + size > BATCH_BYTES_MAX or len(batch.items) >= BATCH_COUNT_MAX:
            self._start_batch(store, batch)
            batch = batches[store] = _Batch()
        batch.size += size
        batch.items.append(item)

    def _start_batch(self, store: int, batch: _Batch) -> None:
        """Copies a batch into a body of its length.  (BATCH_BYTES_MAX for each store would
        be gigabytes of zeros in a volume of a thousand stores.)"""
        if len(batch.items) == 1:
            self._start_alone(store, batch.items[0])
            return
        try:
            owned = self._bodies.take(batch.size)
        except MemoryError:
            for item in batch.items:
                self._start_alone(store, item)
            return
        position, body = 0, memoryview(owned)[: batch.size]
        for item in batch.items:
            end = position + _ROOM + item.length
            body[position:end] = memoryview(item.buffer)[: _ROOM + item.length]
            position += image.padded(_ROOM + item.length)
            body[end:position] = bytes(position - end)
        self._start(store, body, batch.items, owned)

    def _start_alone(self, store: int, item: Outgoing) -> None:
        body = memoryview(item.buffer)[: _ROOM + item.length]
        self._start(store, body, [item], None)

    def _start(
        self,
        store: int,
        body: memoryview,
        items: list[Outgoing],
        owned: bytearray | None,
        tries: int = 1,
    ) -> None:
        try:
            pending = self._client.start(
                self._rank_of(store), Kind.PUT, body=body, items=len(items)
            )
        except (OSError, MemoryError) as error:
            failure = error if isinstance(error, OSError) else PosixError(errno.ENOMEM)
            self._finish(store, items, failure)
            return
        faultpoint.reach("chunk.sent")
        sent = _Sent(pending, store, body, items, owned, tries)
        self._under_way.append(sent)
        self._bytes += sent.size

    def _reap(self) -> bool:
        finished = [entry for entry in self._under_way if entry.pending.poll()]
        if not finished:
            return False
        self._under_way = [entry for entry in self._under_way if entry not in finished]
        faultpoint.reach("chunk.answered")
        for entry in finished:
            self._bytes -= entry.size
            error: OSError | None = None
            try:
                self._on_free(entry.store, entry.pending.wait().header.free)
            except OSError as failure:
                error = failure
            if error is not None and was_garbled(error) and entry.tries < GARBLED_TRIES:
                log.warning("chunks are sent to store %d again: %s", entry.store, error)
                self._start(entry.store, entry.body, entry.items, entry.owned, entry.tries + 1)
                continue
            if entry.owned is not None and error is None:  # else MPI may still read it
                self._bodies.give(entry.owned)
            self._finish(entry.store, entry.items, error)
        return True

    def _finish(self, store: int, items: list[Outgoing], error: OSError | None) -> None:
        for item in items:
            if error is not None:
                item.error = error
                item.failed.add(store)
                log.warning("chunk %s could not be stored on store %d: %s", item.key, store, error)
            item.waiting -= 1
            if item.waiting == 0:
                try:
                    item.done(item, item.error)
                except OSError as failure:
                    log.error("after storing chunk %s: %s", item.key, failure)
