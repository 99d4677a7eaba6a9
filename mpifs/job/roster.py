"""Which worker serves which store at the moment, for everybody in rank 0 who asks.

The states of a worker are drawn in recovery.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mpifs.core.errors import LostStoreError
from mpifs.core.limits import HEARTBEAT_S

log = logging.getLogger(__name__)

SERVING = "serving"
SILENT = "silent"
DEAD = "dead"
LOST = "lost"


@dataclass(slots=True)
class Worker:
    """One worker.  `state`, `reason` and `pid` change under the crew's condition."""

    rank: int
    """0: no rank of this job serves the store."""
    store: int
    """0: a rank that serves none."""
    host: str
    pid: int
    state: str = SERVING
    reason: str = ""
    """Why it is not serving."""
    restarts: int = 0
    answered_s: float = field(default_factory=time.monotonic)
    pinged_s: float = 0.0


class Roster:
    """The workers of a job; see data.stores.Stores.  `free` and `disk_of` hold what each store told
    at SERVE.

    `on_change(worker)` is called, without a lock, after a worker began or ceased to serve, or its
    store left the volume.
    """

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.free: dict[int, int] = {}
        self.disk_of: dict[int, str] = {}
        self.on_change: Callable[[Worker], None] = lambda worker: None
        self._places: dict[int, int] = {}
        self._draining: set[int] = set()
        self._changed = threading.Condition()
        self._quit = threading.Event()
        self._look = threading.Event()
        """Set by who wants the workers looked at now."""

    def worker_of(self, store: int) -> Worker:
        """The worker of a store.  Raises LostStoreError for a store that is not of this volume."""
        for worker in self.workers:
            if worker.store == store:
                return worker
        raise LostStoreError(store, "the volume has no such store")

    def rank_of(self, store: int) -> int:
        """The rank that serves a store.

        Raises LostStoreError when nobody does, for now (`may_return`) or in this job.
        """
        try:
            return self._places[store]
        except KeyError:
            worker = self.worker_of(store)
            raise LostStoreError(store, f"{worker.state}, {worker.reason}") from None

    def is_serving(self, store: int) -> bool:
        """Whether a store answers at the moment."""
        return any(worker.store == store and worker.state == SERVING for worker in self.workers)

    def live_stores(self) -> list[int]:
        """The stores that answer, in the order of placement."""
        return [worker.store for worker in self.workers if worker.state == SERVING]

    def placement_stores(self) -> list[int]:
        """The stores that get new chunks, in the order of placement: the live ones but those that
        are being drained; when none lives, all that may come back."""
        live = [store for store in self.live_stores() if store not in self._draining]
        return live or [w.store for w in self.workers if w.store not in self._draining]

    def expected_count(self) -> int:
        """How many stores get new chunks once all that may return are back."""
        return sum(w.state != LOST and w.store not in self._draining for w in self.workers)

    def set_draining(self, stores: Iterable[int]) -> None:
        """Which stores get no new chunks from now on."""
        self._draining = set(stores)

    def may_return(self, stores: Iterable[int]) -> bool:
        """Whether one of the stores serves, or is waited for."""
        wanted = set(stores)
        return any(w.store in wanted and w.state != LOST for w in self.workers)

    def await_all(self, timeout_s: float) -> None:
        """Waits until every worker serves or is given up, or for the time limit."""
        deadline = time.monotonic() + timeout_s
        for worker in list(self.workers):
            while worker.state not in (SERVING, LOST) and time.monotonic() < deadline:
                self.await_serving([worker.store], min(deadline, time.monotonic() + HEARTBEAT_S))

    def await_serving(self, stores: Iterable[int], deadline: float) -> bool:
        """Waits until one of the stores serves; False when none may come back any more, or at the
        deadline (time.monotonic).  Called by whom a worker has given no answer."""
        wanted = set(stores)
        self._look.set()
        with self._changed:
            while not self._quit.is_set():
                if not self.may_return(wanted):
                    return False
                self._changed.wait(min(HEARTBEAT_S, max(0.0, deadline - time.monotonic())))
                if any(map(self.is_serving, wanted)):
                    return True
                if time.monotonic() >= deadline:
                    return False
        return False

    def _set(self, worker: Worker, state: str, why: str) -> None:
        with self._changed:
            if worker.state == state:
                return
            worker.state, worker.reason = state, why if state != SERVING else ""
            self._changed.notify_all()
        name = f"worker {worker.store} on {worker.host}" if worker.store else f"rank {worker.rank}"
        log.warning("%s is %s %s", name, state, why)
        if not self._quit.is_set():
            self.on_change(worker)
