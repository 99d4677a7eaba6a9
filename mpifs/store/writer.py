"""The one thread that writes a chunk store: takes what is queued, commits it as a group, answers.

    submit → queue → [thread: take a group → apply → durable] → done(None)
                                     └ failed → each change singly → done(None) or done(error)

While a group is being committed the next one gathers, so the groups grow with the load.  Company is
waited for only in a stream of large chunks, which the group before has shown: a commit costs nearly
as much processor time as storing 1 MiB, whatever it holds.  Nothing is answered before it is
durable.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mpifs import faultpoint
from mpifs.core.errors import DamageError, MpifsError, PosixError
from mpifs.core.limits import (
    COMMIT_BYTES_MAX,
    COMMIT_OPERATIONS_MAX,
    IDLE_LOOK_S,
    STREAM_BYTES_MIN,
    STREAM_GROUP_BYTES,
    STREAM_WAIT_S,
    WRITE_QUEUE_BYTES_MAX,
    WRITE_QUEUE_COUNT_MAX,
)
from mpifs.core.types import ChunkKey
from mpifs.store.chunks import Change

_log = logging.getLogger(__name__)


class Writable(Protocol):
    """What the writer needs of a ChunkStore."""

    def apply(self, changes: Sequence[Change]) -> None: ...

    def delete_many(self, keys: Sequence[ChunkKey]) -> None: ...


class Job(NamedTuple):
    """A change, how many bytes it holds in memory, and whom to tell (in the writer's thread).

    `action`, if there is one, is done instead of the change: alone, with transactions of its own.
    """

    change: Change
    size: int
    done: Callable[[MpifsError | None], None]
    action: Callable[[], None] | None = None


class Writer:
    """The thread and its bounded queue.  `submit` and `stop` may be called by any thread.

    `after_commit` is called in the thread after each transaction, before anybody is told of it.
    """

    def __init__(
        self,
        store: Writable,
        name: str = "store-writer",
        after_commit: Callable[[], object] = lambda: None,
    ) -> None:
        self._store = store
        self._after_commit = after_commit
        self._wake = threading.Condition()
        # Below is guarded by _wake.
        self._queue: deque[Job] = deque()
        self._queued_bytes = 0
        self._wanted_bytes = 0  # The thread wants to be woken when so many are queued.
        self._is_stream = False
        self._at_end: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Queues a job; False if the queue is full or the writer stops: nothing will be done."""
        with self._wake:
            if (
                self._at_end is not None
                or len(self._queue) >= WRITE_QUEUE_COUNT_MAX
                or (self._queue and self._queued_bytes + job.size > WRITE_QUEUE_BYTES_MAX)
            ):
                return False
            self._queue.append(job)
            self._queued_bytes += job.size
            if self._queued_bytes >= self._wanted_bytes:
                self._wake.notify()
        return True

    def stop(self, at_end: Callable[[], None]) -> bool:
        """Lets the thread finish what is queued, call `at_end`, and end.  False if it does so
        already; then the new `at_end` is not called."""
        with self._wake:
            if self._at_end is not None:
                return False
            self._at_end = at_end
            self._wake.notify()
        return True

    def join(self, timeout_s: float) -> bool:
        """Waits for the thread's end; False if it goes on."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and self._at_end is None:
                    self._wake.wait(IDLE_LOOK_S)
                if self._is_stream:
                    self._gather()
                group = self._take()
                at_end = self._at_end
            if group:
                faultpoint.reach("store.writer")
                self._commit(group)
            elif at_end is not None:
                at_end()
                return

    def _gather(self) -> None:
        """Waits a moment for more of a stream.  Requires: _wake is held."""
        deadline = time.monotonic() + STREAM_WAIT_S
        self._wanted_bytes = STREAM_GROUP_BYTES
        while self._queued_bytes < STREAM_GROUP_BYTES and self._at_end is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            self._wake.wait(left_s)
        self._wanted_bytes = 0

    def _take(self) -> list[Job]:
        """The oldest jobs, as many as one transaction should hold.  Requires: _wake is held."""
        group: list[Job] = []
        size = 0
        while self._queue and len(group) < COMMIT_OPERATIONS_MAX:
            size += self._queue[0].size
            is_alone = self._queue[0].action is not None or bool(group and group[0].action)
            if group and (is_alone or size > COMMIT_BYTES_MAX):
                break
            group.append(self._queue.popleft())
            self._queued_bytes -= group[-1].size
        self._is_stream = len(group) > 1 and size >= STREAM_BYTES_MIN
        return group

    def _commit(self, group: list[Job]) -> None:
        action = group[0].action
        if action is not None:
            self._tell(group[0], self._attempt(action))
            return
        failure = self._apply([job.change for job in group])
        faultpoint.reach("store.committed")
        self._after_commit()
        for job in group:
            result = failure
            if failure is not None and (len(group) > 1 or job.change.deletes):
                result = self._apply_single(job.change)
                self._after_commit()
            self._tell(job, result)
        faultpoint.reach("store.answered")

    def _apply(self, changes: list[Change]) -> MpifsError | None:
        return self._attempt(lambda: self._store.apply(changes))

    def _attempt(self, action: Callable[[], None]) -> MpifsError | None:
        try:
            action()
        except MpifsError as error:
            return error
        except MemoryError:
            return PosixError(errno.ENOMEM, "a worker is out of memory (a limit of its process)")
        except Exception as error:  # noqa: BLE001 - a dead writer would hang every request
            _log.exception("store writer failed")
            return DamageError(f"store writer failed: {error!r}")
        return None

    def _apply_single(self, change: Change) -> MpifsError | None:
        """Repeats one change of a group that failed; deletes in ever smaller transactions."""
        if change.puts or not change.deletes:
            return self._apply([change])
        try:
            self._store.delete_many(change.deletes)
        except MpifsError as error:
            return error
        return None

    def _tell(self, job: Job, result: MpifsError | None) -> None:
        try:
            job.done(result)
        except Exception:  # noqa: BLE001 - a broken answer must not stop the answers to others
            _log.exception("answer of a store failed")
