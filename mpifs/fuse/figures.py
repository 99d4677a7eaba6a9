"""What the kernel has asked of this process: how often each kind of request, and how long it took.

Each loop thread counts in lists of its own, so nothing is locked and nothing waits; who reads adds
them up and may miss a request that is just being counted.  About 0.3 microseconds a request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from mpifs.core.limits import FIGURES_BUCKETS, FIGURES_SLOW_MAX, FIGURES_SLOW_PLACE
from mpifs.core.types import Caller
from mpifs.fuse.protocol import Opcode

KINDS = {int(opcode): opcode.name for opcode in Opcode}
"""Names of the kernel's requests, by opcode."""
_OTHER = 0
_BUCKETS_COUNTED = 40  # more than a time can have: 2**39 microseconds are six days.
_SECONDS, _ERRORS = _BUCKETS_COUNTED, _BUCKETS_COUNTED + 1
"""Places in a row, behind the buckets."""


def _name_of(opcode: int) -> str:
    return KINDS.get(opcode) or (f"REQUEST_{opcode}" if 0 < opcode <= max(KINDS) else "OTHER")


class Asked(Protocol):
    """What is looked at of a slow request."""

    @property
    def caller(self) -> Caller:
        """Who asked."""
        ...


class Slow(NamedTuple):
    """One request that took long."""

    kind: str
    seconds: float
    ended_s: float
    """Of the epoch."""
    pid: int
    """The process that asked; 0 is the kernel itself."""


class Counter:
    """One thread's counts; that thread alone writes.

    `count(opcode, since_s, request)` is called when a request has been served that came at
    `since_s` (time.monotonic).  A closure: a method takes half as much time again.
    """

    __slots__ = ("count", "refusals", "rows", "slow")

    def __init__(self) -> None:
        self.refusals: list[bool] = []
        """Not empty while a request is served that is answered with an error."""
        self.rows: list[list[Any]] = [
            [*[0] * _BUCKETS_COUNTED, 0.0, 0] for _ in range(max(KINDS) + 1)
        ]
        self.slow: deque[Slow] = deque(maxlen=FIGURES_SLOW_MAX)
        self.count: Callable[[int, float, Asked], None] = self._make_count()

    def _make_count(self) -> Callable[[int, float, Asked], None]:
        rows, refusals, note = self.rows, self.refusals, self._note
        monotonic, seconds_at = time.monotonic, _SECONDS

        def count(opcode: int, since_s: float, request: Asked) -> None:
            seconds = monotonic() - since_s
            try:
                row = rows[opcode]
            except IndexError:
                row = rows[_OTHER]
            place = int(seconds * 1e6).bit_length()
            row[place] += 1
            row[seconds_at] += seconds
            if place >= FIGURES_SLOW_PLACE or refusals:
                note(row, opcode, seconds, request)

        return count

    def _note(self, row: list[Any], opcode: int, seconds: float, request: Asked) -> None:
        """One that was refused, or was slow."""
        if self.refusals:
            self.refusals.clear()
            row[_ERRORS] += 1
        if int(seconds * 1e6).bit_length() >= FIGURES_SLOW_PLACE:
            kind = _name_of(opcode)
            self.slow.append(Slow(kind, seconds, time.time(), request.caller.pid))


class Figures:
    """The counters of all threads.  `_counters` only grows: loop threads live as long as a mount,
    of which a process has one."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._counters: list[Counter] = []

    def counter(self) -> Counter:
        """A new one, for the calling thread."""
        made = Counter()
        self._here.counter = made
        self._counters.append(made)
        return made

    def refused(self) -> None:
        """The request that this thread serves is answered with an error."""
        counter = getattr(self._here, "counter", None)
        if counter is not None:
            counter.refusals.append(True)

    def document(self) -> dict[str, Any]:
        """Everything since the mount.  `buckets[i]` counts requests that took less than 2**i
        microseconds, and not less than half of it."""
        kinds = []
        counters = list(self._counters)
        for opcode in range(max(KINDS) + 1):
            row = [sum(places) for places in zip(*(c.rows[opcode] for c in counters), strict=True)]
            counted = row[:_BUCKETS_COUNTED]
            if any(counted):
                last = FIGURES_BUCKETS - 1
                kinds.append(
                    {
                        "kind": _name_of(opcode),
                        "count": sum(counted),
                        "seconds": row[_SECONDS],
                        "errors": row[_ERRORS],
                        "buckets": [*counted[:last], sum(counted[last:])],
                    }
                )
        slow = sorted((s for c in counters for s in list(c.slow)), key=lambda one: one.ended_s)
        return {"kinds": kinds, "slow": [one._asdict() for one in slow[-FIGURES_SLOW_MAX:]]}


FIGURES = Figures()
"""Of this process."""
