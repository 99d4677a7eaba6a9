"""What the kernel has asked of this process: how often each kind of request, and how long it took.

Each loop thread counts in lists of its own, so nothing is locked and nothing waits; who reads adds
them up and may miss a request that is just being counted.  About 0.2 microseconds a request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, NamedTuple, Protocol

from mpifs.core.limits import (
    FIGURES_BUCKETS,
    FIGURES_PERIOD,
    FIGURES_QUICK_S,
    FIGURES_SLOW_MAX,
    FIGURES_SLOW_PLACE,
)
from mpifs.core.types import Caller
from mpifs.fuse.protocol import Opcode

KINDS = {int(opcode): opcode.name for opcode in Opcode}
"""Names of the kernel's requests, by opcode."""
_OTHER = 0
_OPCODES_MAX = 4097  # CUSE_INIT, the largest of the protocol, is 4096.
_BUCKETS_COUNTED = 40  # more than a time can have: 2**39 microseconds are six days.
_SECONDS, _ERRORS, _PERIOD = range(_BUCKETS_COUNTED, _BUCKETS_COUNTED + 3)
"""Places in a row, behind the buckets.  One in _PERIOD requests is timed and stands for the
others."""


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

    When a request has been served, its thread takes one from `left[opcode]`, or calls `timed` if
    that is 0 already: so all are counted, and of a kind whose last one took less than
    FIGURES_QUICK_S one in FIGURES_PERIOD is timed.  Timing each made a stat(2) 4 % slower, a call
    for each 3 %.
    """

    __slots__ = ("left", "rows", "slow")

    def __init__(self) -> None:
        self.left = [0] * _OPCODES_MAX
        self.rows: list[list[Any]] = [
            [*[0] * _BUCKETS_COUNTED, 0.0, 0, 1] for _ in range(max(KINDS) + 1)
        ]
        self.slow: deque[Slow] = deque(maxlen=FIGURES_SLOW_MAX)

    def timed(self, opcode: int, since_s: float, request: Asked) -> None:
        """Takes the time of a request that came at `since_s` (time.monotonic) and has just been
        served; it stands for those before it too."""
        seconds = time.monotonic() - since_s
        is_known = opcode < len(self.rows)
        row = self.rows[opcode if is_known else _OTHER]
        stands_for = row[_PERIOD]
        place = int(seconds * 1e6).bit_length()
        row[place] += stands_for
        row[_SECONDS] += seconds * stands_for
        if is_known:
            row[_PERIOD] = FIGURES_PERIOD if seconds < FIGURES_QUICK_S else 1
            self.left[opcode] = row[_PERIOD] - 1
        if place >= FIGURES_SLOW_PLACE:
            self.slow.append(Slow(_name_of(opcode), seconds, time.time(), request.caller.pid))

    def row(self, opcode: int) -> list[Any]:
        """What there is of a kind, and behind it how many have not been timed yet; any thread."""
        found = list(self.rows[opcode])
        return [*found, found[_PERIOD] - 1 - self.left[opcode]]

    def refused(self, opcode: int) -> None:
        """A request was answered with an error."""
        if opcode < len(self.rows):
            self.rows[opcode][_ERRORS] += 1


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

    def refused(self, opcode: int) -> None:
        """This thread has answered a request with an error."""
        counter = getattr(self._here, "counter", None)
        if counter is not None:
            counter.refused(opcode)

    def document(self) -> dict[str, Any]:
        """Everything since the mount.  `buckets[i]` counts requests that took less than 2**i
        microseconds, and not less than half of it; those that were not timed are counted where
        the next one that was lies, so the buckets may be a few behind `count`."""
        kinds = []
        counters = list(self._counters)
        for opcode in range(max(KINDS) + 1):
            rows = [counter.row(opcode) for counter in counters]
            row = [sum(places) for places in zip(*rows, strict=True)]
            counted = row[:_BUCKETS_COUNTED]
            if any(counted):
                last = FIGURES_BUCKETS - 1
                kinds.append(
                    {
                        "kind": _name_of(opcode),
                        "count": sum(counted) + row[-1],
                        "seconds": row[_SECONDS],
                        "errors": row[_ERRORS],
                        "buckets": [*counted[:last], sum(counted[last:])],
                    }
                )
        slow = sorted((s for c in counters for s in list(c.slow)), key=lambda one: one.ended_s)
        return {"kinds": kinds, "slow": [one._asdict() for one in slow[-FIGURES_SLOW_MAX:]]}


FIGURES = Figures()
"""Of this process."""
