"""The workers as rank 0 sees them: greeted, given their stores, pinged, asked, sent home."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from mpifs.core.errors import MpifsError, PeerDeadError, StartError
from mpifs.core.limits import HEARTBEAT_S, START_TIMEOUT_S, STOP_TIMEOUT_S
from mpifs.core.messages import HelloReply, Kind, Serve, StoreStats, decode_args, encode_args
from mpifs.core.superblock import Superblock
from mpifs.core.types import StoreEntry
from mpifs.job.assign import Assignment, assign_stores
from mpifs.transport.client import Client

log = logging.getLogger(__name__)
_HELLO_TIMEOUT_S = START_TIMEOUT_S / 2
_PING_TIMEOUT_S = 5.0  # no progress for so long is called silence.
_STATS_TIMEOUT_S = 2.0


@dataclass(slots=True)
class Worker:
    """One worker; `state` is serving, silent or dead, written by the heartbeat alone."""

    rank: int
    store: int
    host: str
    pid: int
    state: str = "serving"


class Crew:
    """All workers of a job.  `free` and `disk_of` hold what each store told at SERVE."""

    def __init__(self, client: Client, ranks: int) -> None:
        self._client = client
        self._ranks = range(1, ranks)
        self.workers: list[Worker] = []
        self.free: dict[int, int] = {}
        self.disk_of: dict[int, str] = {}
        self._places: dict[int, int] = {}
        self._quit = threading.Event()
        self._heartbeat = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def rank_of(self, store: int) -> int:
        """The rank that serves a store."""
        return self._places[store]

    def live_stores(self) -> list[int]:
        """The stores that answer, in the order of placement; all if none does."""
        live = [worker.store for worker in self.workers if worker.state == "serving"]
        return live or [worker.store for worker in self.workers]

    def greet(self) -> dict[int, HelloReply]:
        """HELLO to all.  Raises StartError when one does not answer."""
        pending = {
            rank: self._client.start(rank, Kind.HELLO, timeout_s=_HELLO_TIMEOUT_S)
            for rank in self._ranks
        }
        hellos = {}
        for rank, answer in pending.items():
            try:
                hellos[rank] = decode_args(answer.wait().args, HelloReply)
            except MpifsError as error:
                raise StartError(f"rank {rank} does not answer: {error}") from None
        return hellos

    def serve(
        self,
        geometry: Superblock,
        stores: list[StoreEntry],
        hellos: dict[int, HelloReply],
        *,
        relaxed: bool,
    ) -> None:
        """Assigns the stores and has them opened.  Raises StartError, FormatError."""
        places = assign_stores(geometry.volume_uuid, stores, hellos)
        uuids = {entry.store: entry.uuid for entry in stores}
        pending = {
            store: self._client.start(
                place.rank,
                Kind.SERVE,
                args=encode_args(_serve(geometry, store, uuids[store], place, relaxed)),
                timeout_s=START_TIMEOUT_S,
            )
            for store, place in places.items()
        }
        for store, answer in pending.items():
            try:
                stats = decode_args(answer.wait().args, StoreStats)
            except MpifsError as error:
                raise StartError(str(error)) from None
            self.free[store] = stats.free
            self.disk_of[store] = stats.disk
        self._places = {store: place.rank for store, place in places.items()}
        self.workers = [
            Worker(place.rank, store, hellos[place.rank].host, hellos[place.rank].pid)
            for store, place in sorted(places.items())
        ]

    def start_heartbeat(self) -> None:
        """Pings every worker from now on: a worker that hears nothing ends itself."""
        self._heartbeat.start()

    def _run(self) -> None:
        while not self._quit.wait(HEARTBEAT_S):
            self.tick()

    def tick(self) -> None:
        """One round of pings."""
        pending = []
        for worker in self.workers:
            try:
                ping = self._client.start(worker.rank, Kind.PING, timeout_s=_PING_TIMEOUT_S)
            except MpifsError as error:
                self._note(worker, error)
            else:
                pending.append((worker, ping))
        for worker, ping in pending:
            try:
                ping.wait()
            except MpifsError as error:
                self._note(worker, error)
            else:
                self._set(worker, "serving", "")

    def _note(self, worker: Worker, error: MpifsError) -> None:
        self._set(worker, "dead" if isinstance(error, PeerDeadError) else "silent", str(error))

    def _set(self, worker: Worker, state: str, why: str) -> None:
        if worker.state != state:
            worker.state = state
            log.warning("worker %d on %s is %s %s", worker.store, worker.host, state, why)

    def stats(self) -> dict[int, StoreStats]:
        """Figures of each store that answers."""
        pending = {}
        for worker in self.workers:
            if worker.state == "serving":
                pending[worker.store] = self._client.start(
                    worker.rank, Kind.STATS, timeout_s=_STATS_TIMEOUT_S
                )
        found = {}
        for store, answer in pending.items():
            try:
                found[store] = decode_args(answer.wait().args, StoreStats)
            except MpifsError as error:
                log.warning("store %d gives no figures: %s", store, error)
        return found

    def dismiss(self) -> list[str]:
        """STOP to all; sentences for those that did not close their store well."""
        self._quit.set()
        if self._heartbeat.is_alive():
            self._heartbeat.join(_PING_TIMEOUT_S + 1)
        reasons, pending = [], []
        for rank in self._ranks:
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


def _serve(
    geometry: Superblock, store: int, uuid: bytes, place: Assignment, relaxed: bool
) -> Serve:
    return Serve(
        store=store,
        volume_uuid=geometry.volume_uuid,
        store_uuid=uuid,
        chunk_size=geometry.chunk_size,
        checksum=int(geometry.checksum),
        create=place.create,
        relaxed=relaxed,
    )
