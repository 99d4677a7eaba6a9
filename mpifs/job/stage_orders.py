"""Orders on their way to workers: parts are gathered per store, sent, and sent again after a death.

One thread owns an Orders: the one that stages.  Parts for one store travel hundreds in one order;
STAGE_ORDERS_MAX orders are under way per store, more wait here, and above STAGE_QUEUED_MAX `add`
waits.  An order may be repeated: what is stored under a key already is stored once more or refused.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mpifs.core.errors import MpifsError, ProtocolError, SilentError, was_garbled
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    GARBLED_TRIES,
    PARKED_LOOK_S,
    RECOVERY_S,
    STAGE_BYTES_MAX,
    STAGE_COUNT_MAX,
    STAGE_ORDER_BYTES_MAX,
    STAGE_ORDERS_MAX,
    STAGE_QUEUED_MAX,
    STAGE_TIMEOUT_S,
)
from mpifs.core.stage_messages import StageDone, StageReply, decode_body
from mpifs.data.stores import Stores
from mpifs.transport.client import Client, Pending, wait_any

log = logging.getLogger(__name__)


class Part(Protocol):
    """One row of an order.  Called by the thread that owns the Orders."""

    @property
    def folder(self) -> bytes:
        """The folder of the file, as the worker is to open it."""

    @property
    def size(self) -> int:
        """Bytes that are read or written for it."""

    def answered(self, store: int, done: StageDone) -> None:
        """A worker has answered, well or not."""

    def failed(self, store: int, error: OSError) -> None:
        """No worker has answered, and none will."""


Encode = Callable[["list[bytes]", "list[tuple[int, Part]]"], bytes]
"""(folders, rows of folder number and part) → the body of an order."""


@dataclass(slots=True, eq=False)
class _Order:
    """Parts for one store.  `garbled` and `parked_s` (since when it waits to be sent again) are of
    an order that has failed."""

    store: int
    folders: dict[bytes, int] = field(default_factory=dict)
    rows: list[tuple[int, Part]] = field(default_factory=list)
    size: int = 0
    body: bytes = b""
    pending: Pending | None = None
    garbled: int = 0
    parked_s: float = 0.0

    def add(self, part: Part) -> bool:
        """Takes a part in; True when it is full."""
        number = self.folders.setdefault(part.folder, len(self.folders))
        self.rows.append((number, part))
        self.size += part.size
        return len(self.rows) >= STAGE_COUNT_MAX or self.size >= STAGE_BYTES_MAX


class Orders:
    """`check` may end a wait by raising.  `on_free(store, bytes)` hears what a store can take."""

    def __init__(
        self,
        client: Client,
        stores: Stores,
        kind: Kind,
        encode: Encode,
        check: Callable[[], None],
        on_free: Callable[[int, int], None] = lambda store, free: None,
    ) -> None:
        self._on_free = on_free
        self._client = client
        self._stores = stores
        self._kind = kind
        self._encode = encode
        self._check = check
        self._open: dict[int, _Order] = {}
        self._queues: dict[int, deque[_Order]] = {}
        self._under_way: list[_Order] = []
        self._parked: list[_Order] = []
        self._queued = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, is under way or open."""
        return not (self._open or self._queued or self._under_way or self._parked)

    def add(self, store: int, part: Part) -> None:
        """Queues a part; waits while too much is queued.  Raises what `check` raises."""
        order = self._open.get(store)
        if order is None:
            order = self._open[store] = _Order(store)
        if order.add(part):
            self._close(store)
            self.pump(0.0)
            while self._queued + len(self._parked) >= STAGE_QUEUED_MAX:
                self._check()
                self.pump(PARKED_LOOK_S)

    def flush(self) -> None:
        """Sends what is gathered, however little."""
        for store in list(self._open):
            self._close(store)

    def drop_unsent(self, error: OSError) -> None:
        """Fails everything that is not under way."""
        self.flush()
        dropped = [order for queue in self._queues.values() for order in queue] + self._parked
        self._queues.clear()
        self._parked = []
        self._queued = 0
        for order in dropped:
            self._fail(order, error)

    def drop_all(self, error: OSError) -> None:
        """Fails what is under way, too; its answers will be ignored."""
        self.drop_unsent(error)
        orders, self._under_way = self._under_way, []
        for order in orders:
            self._fail(order, error)

    def pump(self, timeout_s: float) -> None:
        """Sends what may be sent and takes answers; waits for one at most `timeout_s`."""
        self._unpark()
        self._send()
        if not self._under_way:
            if timeout_s and self._parked:
                time.sleep(min(timeout_s, PARKED_LOOK_S))
            return
        pendings = {id(order.pending): order for order in self._under_way}
        if timeout_s:
            waited = [order.pending for order in self._under_way if order.pending is not None]
            over = wait_any(waited, timeout_s)
        else:
            over = [o.pending for o in self._under_way if o.pending and o.pending.poll()]
        if not over:
            return
        finished = [pendings[id(pending)] for pending in over]
        self._under_way = [order for order in self._under_way if order not in finished]
        self._send()  # the workers go on while the answers are taken
        for order in finished:
            self._take(order)

    def _close(self, store: int) -> None:
        order = self._open.pop(store)
        order.body = self._encode(list(order.folders), order.rows)
        self._queues.setdefault(store, deque()).append(order)
        self._queued += 1

    def _send(self) -> None:
        if not self._queued:
            return
        counts: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for order in self._under_way:
            counts[order.store] = counts.get(order.store, 0) + 1
            sizes[order.store] = sizes.get(order.store, 0) + order.size
        for store, waiting in self._queues.items():
            while (
                waiting
                and counts.get(store, 0) < STAGE_ORDERS_MAX
                and (
                    not counts.get(store) or sizes[store] + waiting[0].size <= STAGE_ORDER_BYTES_MAX
                )
            ):
                order = waiting.popleft()
                self._queued -= 1
                counts[store] = counts.get(store, 0) + 1
                sizes[store] = sizes.get(store, 0) + order.size
                self._start(order)

    def _start(self, order: _Order) -> None:
        try:
            order.pending = self._client.start(
                self._stores.rank_of(order.store),
                self._kind,
                body=order.body,
                items=len(order.rows),
                timeout_s=STAGE_TIMEOUT_S,
            )
        except MpifsError as error:
            self._again(order, error)
        else:
            self._under_way.append(order)

    def _take(self, order: _Order) -> None:
        assert order.pending is not None
        try:
            reply = order.pending.wait()
            items = decode_body(reply.body, StageReply).items
            if len(items) != len(order.rows):
                raise ProtocolError("an order was answered with another number of parts")
        except MpifsError as error:
            self._again(order, error)
            return
        if reply.header.free:
            self._on_free(order.store, reply.header.free)
        for (_, part), done in zip(order.rows, items, strict=True):
            part.answered(order.store, done)

    def _again(self, order: _Order, error: MpifsError) -> None:
        """An order that got no answer is sent again, if that may help."""
        now = time.monotonic()
        is_busy = error.errno == errno.EAGAIN and not isinstance(error, SilentError)
        if was_garbled(error):
            order.garbled += 1
            is_hopeless = order.garbled >= GARBLED_TRIES
        else:
            is_hopeless = not (isinstance(error, SilentError) or is_busy)
        if order.parked_s and now - order.parked_s > RECOVERY_S:
            is_hopeless = True
        if is_hopeless:
            self._fail(order, error)
            return
        log.info("an order of %d parts is sent again: %s", len(order.rows), error)
        order.parked_s = order.parked_s or now
        order.pending = None
        self._parked.append(order)
        if isinstance(error, SilentError):
            self._stores.await_serving([order.store], now)

    def _unpark(self) -> None:
        if not self._parked:
            return
        parked, self._parked = self._parked, []
        for order in parked:
            if self._stores.is_serving(order.store):
                self._queues.setdefault(order.store, deque()).appendleft(order)
                self._queued += 1
            elif time.monotonic() - order.parked_s > RECOVERY_S or not self._stores.may_return(
                [order.store]
            ):
                sentence = f"worker {order.store} is gone"
                self._fail(order, SilentError(order.store, sentence))
            else:
                self._parked.append(order)

    def _fail(self, order: _Order, error: OSError) -> None:
        for _, part in order.rows:
            part.failed(order.store, error)
