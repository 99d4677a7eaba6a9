"""One run of stage-in or stage-out: what it has done so far, and what its client is told.

Fields are written by the run's own thread, but for those that say otherwise; a poll may see counts
that are a moment old.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, NamedTuple

import xxhash

from mpifs.core.errors import MpifsError
from mpifs.core.limits import STAGE_FAILURES_MAX

WORKING, DONE, CANCELLED, FAILED = "working", "done", "cancelled", "failed"
_PAGE = 512  # failures told in one answer.


class CancelledError(MpifsError):
    """The run's client has gone away, or wants no more."""


class Pair(NamedTuple):
    """A source and what it is to become; both absolute."""

    source: bytes
    target: bytes


class StageRun:
    def __init__(self, *, is_dry: bool = False, device: int = 0) -> None:
        self.is_dry = is_dry
        self.device = device
        """st_dev of the volume's own mount, on this host; 0: none.  Never staged from or to."""
        self.files = self.folders = self.bytes = self.skipped = self.failed = 0
        self.skipped_bytes = 0
        """Bytes of parts that an earlier run had stored or written already."""
        self.helped = 0
        """Parts that rank 0 read or wrote itself, because a worker does not see the place."""
        self.walked = 0
        self.pairs: list[Pair] = []
        self._cancelled = threading.Event()
        self._reason = ""
        self._changed = threading.Condition()
        # Guarded by _changed.
        self._failures: deque[tuple[bytes, str]] = deque()
        self._kept = 0
        self._state, self._sentence = WORKING, ""
        self._start_s = time.monotonic()
        self._end_s = 0.0

    def check(self) -> None:
        """Raises CancelledError if the run is to end."""
        if self._cancelled.is_set():
            raise CancelledError(self._reason)

    def cancel(self, reason: str) -> None:
        """Ends the run at its next step; any thread, may be repeated."""
        self._reason = self._reason or reason
        self._cancelled.set()

    def fail(self, path: bytes, error: OSError) -> None:
        """One file or folder could not be staged."""
        sentence = str(error) if isinstance(error, MpifsError) else str(error.strerror or error)
        self.fail_with(path, sentence)

    def fail_with(self, path: bytes, sentence: str) -> None:
        """One file or folder could not be staged, for this reason."""
        self.failed += 1
        with self._changed:
            if self._kept < STAGE_FAILURES_MAX:
                self._kept += 1
                self._failures.append((path, sentence))

    def end(self, state: str, sentence: str = "") -> None:
        """The run is over."""
        with self._changed:
            self._state, self._sentence = state, sentence
            self._end_s = time.monotonic()
            self._changed.notify_all()

    @property
    def is_over(self) -> bool:
        """Whether `end` was called; any thread."""
        return self._state != WORKING

    def poll(self, timeout_s: float) -> dict[str, Any]:
        """News for the client; waits for them at most so long.  Any thread.

        state (working, done, cancelled, failed), sentence, files, folders, bytes, skipped,
        skipped_bytes, failed, helped, walked, seconds, failures [[path, sentence]].
        When `state` is not working and no more
        failures come, it was the last.
        """
        with self._changed:
            if self._state == WORKING:
                self._changed.wait(timeout_s)
            failures = [self._failures.popleft() for _ in range(min(_PAGE, len(self._failures)))]
            state = WORKING if self._failures else self._state
            seconds = (self._end_s or time.monotonic()) - self._start_s
            return {
                "state": state,
                "sentence": self._sentence,
                "files": self.files,
                "folders": self.folders,
                "bytes": self.bytes,
                "skipped": self.skipped,
                "skipped_bytes": self.skipped_bytes,
                "failed": self.failed,
                "helped": self.helped,
                "walked": self.walked,
                "seconds": seconds,
                "failures": failures,
            }


def part_name(name: bytes) -> bytes:
    """The name of a file beside `name` until it is whole: the same in each run, so that the next
    one finds it."""
    return b".mpifs-" + xxhash.xxh3_64_hexdigest(name).encode() + b".part"
