"""One run of verify or repair, between the thread that checks and the client that reads along.

    running ──end("done")──▶ done          all was checked
       ├─────end("failed")─▶ failed        it could not run, or not to its end; `reason` says why
       └─────cancel()──────▶ cancelled     what was found and repaired until then stands

The findings are a stream, never a list: when FSCK_QUEUE_COUNT_MAX of them wait to be read, the
checks wait too.  A client that does not read for FSCK_SILENCE_S ends its run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from mpifs.core.limits import (
    FSCK_PAGE_COUNT,
    FSCK_QUEUE_COUNT_MAX,
    FSCK_SILENCE_S,
)
from mpifs.repair.findings import Finding, Progress

RUNNING = "running"
DONE = "done"
FAILED = "failed"
CANCELLED = "cancelled"


class FsckRun:
    """Written by one thread (the checks), read by another (its client's); see the module.

    `_queue`, `_notes`, `state` and `reason` are guarded by `_changed`.
    """

    def __init__(self, *, repair: bool, data: bool) -> None:
        self.repair = repair
        self.data = data
        self.progress = Progress()
        self.state = RUNNING
        self.reason = ""
        self.found = 0
        self.repaired = 0
        self._changed = threading.Condition()
        self._queue: deque[dict[str, Any]] = deque()
        self._notes: deque[str] = deque()
        self._started_s = time.monotonic()
        self._ended_s = 0.0
        self._is_told = False

    def report(self, finding: Finding) -> None:
        """Passes a finding on; waits while too many are unread.  Raises CancelledError."""
        document = finding.document()
        with self._changed:
            deadline_s = time.monotonic() + FSCK_SILENCE_S
            while len(self._queue) >= FSCK_QUEUE_COUNT_MAX and not self.progress.is_cancelled:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    self._cancel("nobody reads what was found")
                    break
                self._changed.wait(left_s)
            self.progress.check()
            self.found += 1
            self.repaired += finding.repaired
            self._queue.append(document)
            self._changed.notify_all()

    def note(self, sentence: str) -> None:
        """Passes on a sentence that is no finding: what was done, what could not be looked at."""
        with self._changed:
            if len(self._notes) < FSCK_QUEUE_COUNT_MAX:
                self._notes.append(sentence)
            self._changed.notify_all()

    def cancel(self, reason: str) -> None:
        """Asks the checks to stop at their next step; any thread, may be repeated."""
        with self._changed:
            self._cancel(reason)

    def _cancel(self, reason: str) -> None:
        if self.state == RUNNING and not self.progress.is_cancelled:
            self.reason = reason
            self.progress.is_cancelled = True
        self._changed.notify_all()

    def end(self, state: str, reason: str = "") -> None:
        """The checks have ended; called once by their thread."""
        with self._changed:
            self.state = state
            self.reason = reason or self.reason
            self._ended_s = time.monotonic()
            self._changed.notify_all()

    def await_end(self, timeout_s: float, *, is_read: bool = False) -> bool:
        """Waits until it has ended (`is_read`: and its client knows); False at the limit."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._is_told if is_read else self.state != RUNNING, timeout_s
            )

    def poll(self, wait_s: float) -> dict[str, Any]:
        """What is new, after at most `wait_s`: findings (at most a page), notes, progress, state.

        `state` is only told as ended once everything found has been told.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self.state != RUNNING, wait_s)
            page = [self._queue.popleft() for _ in range(min(len(self._queue), FSCK_PAGE_COUNT))]
            notes = list(self._notes)
            self._notes.clear()
            has_ended = self.state != RUNNING and not self._queue
            self._is_told |= has_ended
            self._changed.notify_all()
            return {
                "findings": page,
                "notes": notes,
                "state": self.state if has_ended else RUNNING,
                "reason": self.reason if has_ended else "",
                "progress": self.figures(),
            }

    def figures(self) -> dict[str, Any]:
        """Progress as the control socket tells it; any thread."""
        progress = self.progress
        return {
            "phase": progress.phase,
            "inodes": progress.inodes,
            "chunks": progress.chunks,
            "bytes": progress.bytes,
            "total_bytes": progress.total_bytes,
            "found": self.found,
            "repaired": self.repaired,
            "seconds": (self._ended_s or time.monotonic()) - self._started_s,
        }


__all__ = ["CANCELLED", "DONE", "FAILED", "RUNNING", "FsckRun"]
