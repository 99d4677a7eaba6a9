"""The asking side: starts requests, gives each its slot, lets threads wait for the replies.

Any thread starts requests and waits for its own: it tests for SPIN_S, then sleeps on its bell.
Letting only one thread spin gains nothing: 4 threads, 4 KiB, two ranks on two shared processors
10-15,000/s against 21-23,000/s (two runs each); with five ranks no difference beyond noise.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError
from mpifs.core.kinds import Kind, tag_of
from mpifs.core.limits import (
    ARGS_BYTES_MAX,
    BELL_TIMEOUT_S,
    BODY_BYTES_MAX,
    INLINE_BYTES_MAX,
    NO_BELL_SLEEP_S,
    REQUEST_TIMEOUT_S,
    SEND_PROGRESS_S,
    SLOT_COUNT_MAX,
    SPIN_S,
)
from mpifs.core.messages import TAG_DATA_BASE, Header, encode_message
from mpifs.transport.endpoint import PROBE_COUNT, Endpoint
from mpifs.transport.pending import Pending as _Pending
from mpifs.transport.pending import Reply, Slot
from mpifs.transport.traffic import Traffic

__all__ = ["Client", "Pending", "Reply", "wait_any"]

_SWEEP_COUNT = 8
"""Retired slots looked at when a request starts: bounded work in the way of a live request."""

_FOREIGN_SLEEP_S = 0.001
"""A thread that waits for a request of another thread hears no bell: it looks this often."""


class Pending(_Pending):
    """A request under way.  Started by one thread, then used by one at a time."""

    __slots__ = ("client", "sent_bytes", "started_s")

    client: Client
    sent_bytes: int
    started_s: float

    def wait(self) -> Reply:
        """Waits for the reply.  Raises as `result` says; never later than the deadline."""
        until = time.monotonic() + SPIN_S
        while not self.poll():
            if time.monotonic() > until:
                wait_any((self,), is_spun=True)
                break
            os.sched_yield()
        return self.result()


class Client:
    """Requests of one rank to the others.  Every method may be called from any thread.

    `_free` and `_retired` are used through atomic calls only; `_sweeping` lets one thread sweep.
    """

    def __init__(self, endpoint: Endpoint, epoch: int = 0) -> None:
        self.endpoint = endpoint
        self.epoch = epoch
        self.traffic = Traffic()
        self._numbers = itertools.count(1)
        self._indexes = itertools.count()
        self._free: list[Slot] = []
        self._retired: deque[tuple[_Pending, Slot]] = deque()
        self._sweeping = threading.Lock()

    def start(
        self,
        rank: int,
        kind: Kind,
        *,
        args: Buffer = b"",
        body: Buffer | None = None,
        items: int = 0,
        into: bytearray | memoryview | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Pending:
        """Sends a request and returns at once; a dead peer shows in `wait`.

        `body` must not change, nor `into` be used, until the request `is_settled`: at the reply,
        and nearly always at an error.  Without `into` a long reply body gets memory of its own.
        Raises MpifsError if SLOT_COUNT_MAX requests are under way already.

        Requires: body and into are contiguous bytes; args and body within their limits.
        """
        assert len(args) <= ARGS_BYTES_MAX
        size = 0 if body is None else len(body)
        assert size <= BODY_BYTES_MAX
        if body is None:
            self.endpoint.ring(rank, b"")  # it is awake by the time the message is there.
        if self._retired:
            self._sweep()
        slot = self._take_slot()
        number = next(self._numbers)
        bell = self.endpoint.bell()
        now = time.monotonic()
        pending = Pending(self, rank, slot, number, bell, into, now + timeout_s)
        pending.client = self
        pending.started_s = now
        pending.sent_bytes = len(args) + size
        header = Header(
            kind, 0, self.epoch, slot.index, number, len(args), size, items, bell.address, 0
        )
        is_inline = size <= INLINE_BYTES_MAX
        message = encode_message(header, args, body if body and is_inline else b"")
        try:
            pending.listen()
            pending.track(self.endpoint.isend(rank, tag_of(kind), message))
            if body is not None and not is_inline:
                pending.track(self.endpoint.isend(rank, TAG_DATA_BASE + slot.index, body))
            self.endpoint.ring(rank, b"")  # before the tests, which may take as long as a message.
            pending.drop_sent()
        except MpifsError as error:
            pending.fail(error)
        return pending

    def call(
        self,
        rank: int,
        kind: Kind,
        *,
        args: Buffer = b"",
        body: Buffer | None = None,
        items: int = 0,
        into: bytearray | memoryview | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Reply:
        """`start`, then `wait`."""
        return self.start(
            rank, kind, args=args, body=body, items=items, into=into, timeout_s=timeout_s
        ).wait()

    def release(self, pending: _Pending, slot: Slot, is_empty: bool) -> None:
        """Called by a request at its end: its slot is free, or must be swept first."""
        if is_empty and isinstance(pending, Pending):
            seconds = time.monotonic() - pending.started_s
            received = pending.received_bytes
            self.traffic.count(pending.rank, seconds, pending.sent_bytes, received)
        if is_empty or pending.sweep():
            if not pending.is_spoilt:
                self._free.append(slot)
        else:
            self._retired.append((pending, slot))

    def retire(self, pending: _Pending, slot: Slot) -> None:
        """Called by a request that nobody waits for any more."""
        self._retired.append((pending, slot))

    @property
    def retired_count(self) -> int:
        """Requests given up whose slots wait for a late reply or for the peer's death."""
        return len(self._retired)

    def _take_slot(self) -> Slot:
        try:
            return self._free.pop()
        except IndexError:
            index = next(self._indexes)
        if index >= SLOT_COUNT_MAX:
            raise MpifsError(f"more than {SLOT_COUNT_MAX} requests under way")
        return Slot(index)

    def _sweep(self) -> None:
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            for _ in range(min(_SWEEP_COUNT, len(self._retired))):
                pending, slot = self._retired.popleft()
                self.release(pending, slot, is_empty=False)
        finally:
            self._sweeping.release()


def wait_any(
    pendings: Sequence[Pending], timeout_s: float | None = None, *, is_spun: bool = False
) -> list[Pending]:
    """Waits until at least one request is over; returns those that are, [] at the time limit.

    Without a time limit the requests' own deadlines end it.  `is_spun`: the caller has spun.

    Requires: at least one pending, all of one client.
    """
    client = pendings[0].client
    limit = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    bell = client.endpoint.bell()
    if not is_spun and (done := _spin(pendings)):
        return done
    while True:
        for _ in range(PROBE_COUNT):
            if done := [pending for pending in pendings if pending.poll()]:
                return done
        left_s = limit - time.monotonic()
        if left_s <= 0:
            return []
        nap_s = min(left_s, *(_nap_s(client, pending, bell) for pending in pendings))
        if bell.wait(nap_s) and (done := _spin(pendings)):
            return done


def _spin(pendings: Sequence[Pending]) -> list[Pending]:
    """Tests for SPIN_S."""
    until = time.monotonic() + SPIN_S
    while time.monotonic() < until:
        if done := [pending for pending in pendings if pending.poll()]:
            return done
        os.sched_yield()
    return []


def _nap_s(client: Client, pending: Pending, bell: object) -> float:
    """How long its waiter may sleep at most."""
    if pending.is_moving:
        return SEND_PROGRESS_S
    if not client.endpoint.is_near(pending.rank):
        return NO_BELL_SLEEP_S
    return BELL_TIMEOUT_S if pending.bell is bell else _FOREIGN_SLEEP_S
