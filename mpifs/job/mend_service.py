"""What readers find damaged is mended in the background, while the volume is in use.

`note` is called by whoever reads, for each store that answered and had not what the index says; a
thread takes what has gathered and has it mended, in turn with fsck and scrub.  Only a first aid:
what does not fit into the queue, or cannot be mended, is left to them.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterable
from itertools import islice
from typing import Protocol

from mpifs.core.limits import (
    FSCK_CANCEL_S,
    HEAL_COUNT_MAX,
    IDLE_LOOK_S,
    MEND_AGAIN_S,
    MEND_QUEUE_COUNT_MAX,
    MEND_TURN_S,
)
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.job.fsck_service import ChecksTurn
from mpifs.repair.findings import CancelledError
from mpifs.repair.mend_found import FoundDamage

log = logging.getLogger(__name__)


class MendWork(Protocol):
    """What mends; used by the thread alone."""

    def mend(self, found: Iterable[FoundDamage]) -> list[FoundDamage]:
        """Gives what could not be mended.  Raises MpifsError."""
        ...


class MendService:
    """The queue and its thread.  `_changed` guards the fields below it."""

    def __init__(self, turn: ChecksTurn) -> None:
        self._turn = turn
        self._work: MendWork | None = None
        self._changed = threading.Condition()
        self._queue: dict[FoundDamage, None] = {}
        self._failed: dict[FoundDamage, float] = {}  # until when nothing is tried again.
        self._quit = False
        self._thread = threading.Thread(target=self._loop, name="mender", daemon=True)

    def note(self, key: ChunkKey, ref: ChunkRef, store: int) -> None:
        """A store's image is damaged or missing; any thread, never waits for I/O."""
        one = FoundDamage(key, ref, store)
        with self._changed:
            if self._failed.get(one, 0.0) > time.monotonic():
                return
            if len(self._queue) < MEND_QUEUE_COUNT_MAX:
                self._queue[one] = None
                self._changed.notify_all()

    def start(self, work: MendWork) -> None:
        """Begins to mend what is noted, and what has been."""
        self._work = work
        self._thread.start()

    def close(self) -> None:
        """Ends the thread: what is queued stays as it is.  May be repeated."""
        with self._changed:
            self._quit = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(FSCK_CANCEL_S)

    def tick(self) -> None:
        """Mends what is queued, HEAL_COUNT_MAX images at most.  Requires: `start` was called."""
        assert self._work is not None
        with self._changed:
            found = list(islice(self._queue, HEAL_COUNT_MAX))
        try:
            with self._turn.take(MEND_TURN_S, self._check):
                left = self._work.mend(found)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return  # a check is under way: what is queued waits.
            log.warning("damaged chunks are not mended: %s", error)
            left = found
        until = time.monotonic() + MEND_AGAIN_S
        with self._changed:
            for one in found:
                self._queue.pop(one, None)
            if len(self._failed) > MEND_QUEUE_COUNT_MAX:
                self._failed.clear()
            self._failed.update(dict.fromkeys(left, until))

    def _check(self) -> None:
        if self._quit:
            raise CancelledError

    def _loop(self) -> None:
        while True:
            with self._changed:
                if not self._queue and not self._quit:
                    self._changed.wait(IDLE_LOOK_S)
                if self._quit:
                    return
                has_work = bool(self._queue)
            try:
                if has_work:
                    self.tick()
            except CancelledError:
                return
            except Exception:
                log.exception("mending failed")
                with self._changed:
                    self._queue.clear()
