"""The pace of work that restores or moves copies while a volume is used.

Its share of time: all of it while nobody uses the volume, a third while somebody does.  So the
users keep two thirds of the time for themselves, and what they get in the other third, whatever
the bottleneck is: disks, network or this machine's processors.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mpifs.core.limits import HEAL_REST, HEAL_REST_MAX_S

_RATE_S = 5.0  # the rate shown is that of about so many seconds.


class HealPace:
    """Called after each step.  `activity` gives a number that changes when the volume is used;
    `rest` sleeps and may raise CancelledError.  `rate` may be read by any thread."""

    def __init__(
        self,
        activity: Callable[[], int],
        rest: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._activity = activity
        self._rest = rest
        self._clock = clock
        self._seen = activity()
        self._step_s = self._told_s = clock()
        self.rate = 0.0
        """Bytes a second."""
        self.bytes = 0

    def begin(self) -> None:
        """Work starts, or goes on after something else was done."""
        self._seen = self._activity()
        self._step_s = self._told_s = self._clock()

    def __call__(self, count: int) -> None:
        """A step has stored `count` bytes: rests as long as the users need."""
        took_s = self._clock() - self._step_s
        if self._activity() != self._seen:
            self._rest(min(HEAL_REST_MAX_S, took_s * HEAL_REST))
        self._seen = self._activity()
        self._step_s = self._clock()
        self._note(count)

    def _note(self, count: int) -> None:
        self.bytes += count
        now = self._clock()
        passed_s, self._told_s = max(1e-6, now - self._told_s), now
        share = min(1.0, passed_s / _RATE_S)
        self.rate += share * (count / passed_s - self.rate) if self.rate else count / passed_s
