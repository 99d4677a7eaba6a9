"""The workers as rank 0 sees them: greeted, given their stores, pinged, replaced, sent home.

The states of a worker are drawn in recovery.py.  The heartbeat's thread notes who answers; each
dead worker gets a thread of its own that brings it back.  Who meets a dead worker says so
(`await_serving`), and the heartbeat looks at once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from msgspec import structs

from mpifs import faultpoint
from mpifs.core.errors import MpifsError, SilentError, StartError, StoreGoneError
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    HEARTBEAT_S,
    HELLO_TIMEOUT_S,
    PING_LOOK_S,
    PINGS_MAX,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    WORKER_HUNG_S,
    WORKER_SILENT_S,
)
from mpifs.core.messages import HelloReply, Serve, StoreStats, decode_args, encode_args
from mpifs.core.superblock import Superblock
from mpifs.core.types import StoreEntry, StoreState
from mpifs.job.assign import assign_stores
from mpifs.job.recovery import Restarter
from mpifs.job.roster import DEAD, LOST, SERVING, SILENT, Roster, Worker
from mpifs.job.store_figures import stats_of, store_figures
from mpifs.transport.client import Client, Pending, wait_any

log = logging.getLogger(__name__)


class Crew(Roster):
    """All workers of a job, looked after; without a `restarter` the dead stay dead.

    Ranks above `count` are keepers: they serve nothing and are only kept alive (hosts.keepers).
    """

    def __init__(self, client: Client, count: int, restarter: Restarter | None = None) -> None:
        super().__init__()
        self._client = client
        self._ranks = range(1, 1 + count)
        self._keepers = [Worker(r, 0, "", 0) for r in range(1 + count, client.endpoint.size)]
        self._restarter = restarter
        self._serves: dict[int, Serve] = {}
        self._pings: dict[int, Pending] = {}
        self._spares: dict[int, Pending] = {}
        self._spared_s = 0.0
        self.ticked_s = time.monotonic()
        """When the heartbeat came round last: it does so each HEARTBEAT_S, unless MPI hangs."""
        self.on_free: Callable[[int, int], None] = lambda store, free: None
        """Hears with each answer to a ping what the store can take: its disk may have been cleared
        by others, while nothing is written because it was full."""
        self._heartbeat = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    # The start.

    def greet(self) -> dict[int, HelloReply]:
        """HELLO to all.  Raises StartError when none answers; who does not is left out."""
        pending = {
            rank: self._client.start(rank, Kind.HELLO, timeout_s=HELLO_TIMEOUT_S)
            for rank in self._ranks
        }
        hellos = {}
        reason = "the job has no workers"
        for rank, answer in pending.items():
            try:
                hellos[rank] = decode_args(answer.wait().args, HelloReply)
            except MpifsError as error:
                reason = f"rank {rank} does not answer: {error}"
                log.error("%s", reason)
        if not hellos:
            raise StartError(reason)
        return hellos

    def serve(
        self,
        geometry: Superblock,
        stores: list[StoreEntry],
        hellos: dict[int, HelloReply],
        *,
        relaxed: bool,
    ) -> None:
        """Assigns the stores and has them opened; those that cannot be are `lost`.

        Raises StartError, FormatError with the first store's reason when none can be served.
        """
        places, reasons = assign_stores(geometry.volume_uuid, stores, hellos)
        self.set_draining(e.store for e in stores if e.state is StoreState.DRAINING)
        for entry in stores:
            self._serves[entry.store] = _serve(geometry, entry, relaxed)
        pending = {
            store: self._client.start(
                place.rank,
                Kind.SERVE,
                args=encode_args(self._serves[store]),
                timeout_s=START_TIMEOUT_S,
            )
            for store, place in places.items()
        }
        for store, answer in pending.items():
            try:
                self._opened(store, places[store].rank, stats_of(answer))
            except MpifsError as error:
                reasons[store] = str(error)
        if not self._places:
            raise StartError(next(iter(reasons.values()), "the volume has no stores"))
        for entry in stores:
            place = places.get(entry.store)
            hello = hellos[place.rank] if place else None
            worker = Worker(0, entry.store, "", 0)
            if place and hello:
                worker = Worker(place.rank, entry.store, hello.host, hello.pid)
            if entry.store in reasons:
                worker.state, worker.reason = LOST, reasons[entry.store]
                log.error("worker %d is lost: %s", entry.store, worker.reason)
            self.workers.append(worker)

    def remember(self, serve: Serve) -> None:
        """A store was opened by another way: that is what a replacement opens, too."""
        self._serves[serve.store] = serve

    def _opened(self, store: int, rank: int, stats: StoreStats) -> None:
        self.free[store] = stats.free
        self.disk_of[store] = stats.disk
        self._places[store] = rank
        serve = self._serves[store]
        if serve.create:  # from now on the store must be there.
            self._serves[store] = structs.replace(serve, create=False)

    # The heartbeat.

    def start_heartbeat(self) -> None:
        """Pings every worker from now on: a worker that hears nothing ends itself."""
        self._heartbeat.start()

    def _run(self) -> None:
        while not self._quit.is_set():
            self.ticked_s = time.monotonic()
            faultpoint.reach("heartbeat")
            is_asked = self._look.is_set()
            self._look.clear()
            self.tick(at_once=is_asked)
            self._look.wait(PING_LOOK_S if self._pings else HEARTBEAT_S)

    def tick(self, *, at_once: bool = True) -> None:
        """One look: pings to all whose last one was HEARTBEAT_S ago (`at_once`: or less), and what
        has become of them after PING_LOOK_S at most."""
        start = time.monotonic()
        dead = self._client.endpoint.dead()
        self._keep_alive(start, dead)
        for worker in self._pinged():
            if worker.rank in dead:
                self._bury(worker, "its process has died")
            elif worker.rank not in self._pings and (
                at_once or start - worker.pinged_s >= HEARTBEAT_S
            ):
                self._ping(worker, start)
        while True:
            answered = [w for w in self._pinged() if self._has_answered(w)]
            left_s = start + PING_LOOK_S - time.monotonic()
            if not self._pings or left_s <= 0:
                break
            if not answered:
                wait_any(list(self._pings.values())[:PINGS_MAX], left_s)
        for worker in self._pinged():
            if worker.rank in self._pings:
                self._note_silence(worker)

    def _keep_alive(self, now: float, dead: frozenset[int]) -> None:
        """Ranks without a store, or whose store is lost, hear from rank 0, too: who hears nothing
        ends itself, and then a stop waits for it, or (MPICH) the whole job ends with it."""
        if now - self._spared_s < HEARTBEAT_S:
            return
        self._spared_s = now
        busy = {w.rank for w in self.workers if w.state != LOST} | dead
        busy |= {keeper.rank for keeper in self._keepers}
        for rank in range(1, self._client.endpoint.size):
            last = self._spares.get(rank)
            if rank not in busy and (last is None or last.poll()):
                with contextlib.suppress(MpifsError):
                    self._spares[rank] = self._client.start(
                        rank, Kind.PING, timeout_s=WORKER_HUNG_S
                    )

    def _ping(self, worker: Worker, now: float) -> None:
        worker.pinged_s = now
        try:
            ping = self._client.start(worker.rank, Kind.PING, timeout_s=WORKER_HUNG_S)
            self._pings[worker.rank] = ping
        except MpifsError as error:
            self._note_failure(worker, error)

    def _has_answered(self, worker: Worker) -> bool:
        """Whether a ping to the worker has ended just now, well or not."""
        answer = self._pings.get(worker.rank)
        if answer is None or not answer.poll():
            return False
        del self._pings[worker.rank]
        try:
            free = answer.result().header.free
        except MpifsError as error:
            self._note_failure(worker, error)
        else:
            if worker.store:
                self.on_free(worker.store, free)
            worker.answered_s = time.monotonic()
            if worker.state == SILENT:
                self._set(worker, SERVING, "")
        return True

    def everyone(self) -> list[Worker]:
        """The workers and the keepers."""
        return [*self.workers, *self._keepers]

    def _pinged(self) -> list[Worker]:
        return [w for w in self.everyone() if w.rank and w.state in (SERVING, SILENT)]

    def _note_silence(self, worker: Worker) -> None:
        if worker.state == SERVING and time.monotonic() - worker.answered_s > WORKER_SILENT_S:
            self._set(worker, SILENT, f"no answer for {WORKER_SILENT_S:g} s")

    def _note_failure(self, worker: Worker, error: MpifsError) -> None:
        """A ping failed: the process is dead, or it hangs and counts as dead."""
        if isinstance(error, StoreGoneError):
            self.lose(worker.store, str(error))
        elif isinstance(error, SilentError):
            self._bury(worker, str(error))
        else:
            log.warning("worker %d: %s", worker.store, error)

    # Replacement.

    def _bury(self, worker: Worker, why: str) -> None:
        """Takes a worker as dead: cuts it off and has it brought back."""
        self._pings.pop(worker.rank, None)
        had_place = self._places.pop(worker.store, None) is not None  # back once it has its store.
        self._client.endpoint.cut(worker.rank)
        if self._restarter is None or not self._restarter.can_restart:
            self._give_up(worker, f"{why}; it cannot be started again here: mount again")
            return
        self._set(worker, DEAD, why)
        work = threading.Thread(target=self._bring_back, args=(worker, had_place), daemon=True)
        work.start()

    def _bring_back(self, worker: Worker, had_place: bool = True) -> None:
        assert self._restarter is not None
        start = time.monotonic()
        serve = self._serves.get(worker.store)
        try:
            hello = self._restarter.run(worker.rank, worker.pid, serve)
            stats = None if serve is None else self._restarter.open_store(worker.rank, serve)
        except MpifsError as error:
            self._give_up(worker, str(error))
            return
        if self._quit.is_set():
            return
        worker.host, worker.pid = hello.host, hello.pid
        worker.restarts += 1
        worker.answered_s = time.monotonic()
        if stats is not None:
            self._opened(worker.store, worker.rank, stats)
        elif had_place:  # a check had not yet come to have it opened.
            self._places[worker.store] = worker.rank
        self._set(worker, SERVING, f"again after {worker.answered_s - start:.1f} s")

    def lose(self, store: int, reason: str) -> None:
        """Gives a store up for this job; any thread."""
        self._give_up(self.worker_of(store), reason)

    def _give_up(self, worker: Worker, reason: str) -> None:
        self._places.pop(worker.store, None)
        self._set(worker, LOST, reason)

    def forget(self, store: int) -> None:
        """The store has left the volume; its rank, if there is one, stays without a store."""
        gone = [worker for worker in self.workers if worker.store == store]
        self.workers = [worker for worker in self.workers if worker.store != store]
        self._serves.pop(store, None)
        self._places.pop(store, None)
        for worker in gone:
            self.on_change(worker)

    def revive(self, entry: StoreEntry) -> None:
        """Has a store served again that is lost, or whose identity is another one now: by its
        rank if that lives, else by a new one.  A FRESH store is made.

        Raises StartError with the reason; the store is lost then.  Any thread.
        """
        worker = self.worker_of(entry.store)
        self._serves[entry.store] = self._serve_of(entry)
        self._start_again(worker)

    def add(self, entry: StoreEntry, host: str = "") -> Worker:
        """A new rank that makes and serves a new store, here or on a host of the launcher's.

        Raises StartError; the store is not added then.  One thread at a time.
        """
        rank = self._client.endpoint.size
        worker = Worker(rank, entry.store, host, 0, LOST, "not yet started")
        self._serves[entry.store] = self._serve_of(entry)
        self.workers.append(worker)
        if self._restarter is not None and host:
            self._restarter.hosts[rank] = host
        try:
            self._start_again(worker)
        except StartError:
            self.workers.remove(worker)
            raise
        return worker

    def _start_again(self, worker: Worker) -> None:
        """Raises StartError."""
        if self._restarter is None:
            raise StartError("this job cannot start ranks")
        serve, endpoint = self._serves[worker.store], self._client.endpoint
        if worker.rank and worker.rank < endpoint.size and worker.rank not in endpoint.dead():
            try:
                stats = self._restarter.open_store(worker.rank, serve)
                self._opened(worker.store, worker.rank, stats)
                worker.answered_s = time.monotonic()
                self._set(worker, SERVING, "")
                return
            except MpifsError as error:
                log.warning("worker %d: %s: it gets a new process", worker.store, error)
        self._restarter.forgive(worker.rank)
        worker.rank = worker.rank or endpoint.size
        self._set(worker, DEAD, "being started")
        self._bring_back(worker)
        if worker.state != SERVING:
            raise StartError(worker.reason)

    def _serve_of(self, entry: StoreEntry) -> Serve:
        """What a worker is told to open a store of this volume, made if it is FRESH."""
        known = next(iter(self._serves.values()))
        is_new = entry.state is StoreState.FRESH
        return structs.replace(known, store=entry.store, store_uuid=entry.uuid, create=is_new)

    # Figures, and the end.

    def stats(self) -> dict[int, StoreStats]:
        """Figures of each store that answers."""
        return store_figures(self._client, [w for w in self.workers if w.state == SERVING])

    def dismiss(self) -> list[str]:
        """STOP to all; sentences for those that did not close their store well."""
        self._quit.set()
        self._look.set()
        with self._changed:
            self._changed.notify_all()
        if self._heartbeat.is_alive():
            self._heartbeat.join(WORKER_SILENT_S)
        reasons, pending = [], []
        lost = {worker.rank for worker in self.workers if worker.state in (DEAD, LOST)}
        for rank in range(1, self._client.endpoint.size):
            if rank in self._client.endpoint.dead() and rank in lost:
                continue  # said long ago.
            try:
                pending.append(self._client.start(rank, Kind.STOP, timeout_s=STOP_TIMEOUT_S))
            except MpifsError as error:
                reasons.append(str(error))
        for answer in pending:
            try:
                answer.wait()
            except MpifsError as error:
                reasons.append(str(error))
        return reasons


def _serve(geometry: Superblock, entry: StoreEntry, relaxed: bool) -> Serve:
    return Serve(
        store=entry.store,
        volume_uuid=geometry.volume_uuid,
        store_uuid=entry.uuid,
        chunk_size=geometry.chunk_size,
        checksum=int(geometry.checksum),
        create=entry.state is StoreState.FRESH,
        relaxed=relaxed,
        capacity=geometry.capacity_bytes,
    )
