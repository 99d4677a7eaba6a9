"""The workers as a check asks them: for their folders and files, and (at rest) to rebuild and open.

Nothing is required of them.  A worker that dies or is silent for REQUEST_TIMEOUT_S is given up
where it is asked; the others go on.  Used by the thread of a run; the heartbeat says who lives.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mpifs.core.errors import MpifsError, SilentError
from mpifs.core.kinds import Kind
from mpifs.core.limits import RECOVERY_S, REQUEST_TIMEOUT_S
from mpifs.core.messages import (
    FolderReport,
    HelloReply,
    Inspect,
    InspectReply,
    Rebuild,
    RebuildReply,
    Serve,
    StoreStats,
    SurveyReply,
    decode_args,
    encode_args,
)
from mpifs.core.superblock import Superblock
from mpifs.core.types import StoreEntry
from mpifs.job.assign import assign_found
from mpifs.job.crew import Crew
from mpifs.job.roster import Worker
from mpifs.repair.findings import DAMAGE, Finding, Progress
from mpifs.transport.client import Client, Pending, wait_any

_LONG_S = 7 * 86_400.0  # reading a whole disk takes its time; pings tell whether the worker lives.
_LOOK_S = 0.25  # how soon a cancelled run stops waiting for a long answer.


class HostFolders(NamedTuple):
    """What one host has at the volume's path, or why that cannot be told."""

    host: str
    ranks: list[int]
    folders: list[FolderReport]
    trouble: str = ""


class Questions:
    """Questions to the workers of a crew that take long; see the module."""

    def __init__(self, client: Client, crew: Crew) -> None:
        self._client = client
        self._crew = crew
        self.hosts: list[HostFolders] = []
        """As the last survey told."""

    def survey(self, progress: Progress) -> list[HostFolders]:
        """The folders of every host, told by the first of its ranks that answers."""
        by_host: dict[str, list[Worker]] = {}
        for worker in filter(lambda one: one.rank, self._crew.workers):
            by_host.setdefault(worker.host, []).append(worker)
        self.hosts = [
            self._survey_host(host, workers, progress) for host, workers in by_host.items()
        ]
        return self.hosts

    def _survey_host(self, host: str, workers: list[Worker], progress: Progress) -> HostFolders:
        trouble = ""
        ranks = [worker.rank for worker in workers]
        for worker in workers:
            try:
                reply = self._ask(worker.rank, Kind.SURVEY, b"", progress)
                return HostFolders(host, ranks, decode_args(reply, SurveyReply).folders)
            except MpifsError as error:
                trouble = str(error)
        return HostFolders(host, ranks, [], trouble)

    def inspect(
        self, stores: Iterable[int], progress: Progress
    ) -> dict[int, InspectReply | MpifsError]:
        """The files of these stores as files, all at once."""
        pending: dict[int, Pending] = {}
        replies: dict[int, InspectReply | MpifsError] = {}
        for store in stores:
            args = encode_args(Inspect(store))
            try:
                pending[store] = self._start(self._crew.rank_of(store), Kind.INSPECT, args)
            except MpifsError as error:
                replies[store] = error
        for store, answer in pending.items():
            try:
                replies[store] = decode_args(self._await(answer, progress), InspectReply)
            except MpifsError as error:
                replies[store] = error
        silent = [s for s, reply in replies.items() if isinstance(reply, SilentError)]
        deadline = time.monotonic() + RECOVERY_S
        again = [s for s in silent if self._crew.await_serving([s], deadline)]
        return replies | (self.inspect(again, progress) if again else {})

    def rebuild(self, geometry: Superblock, entry: StoreEntry, progress: Progress) -> RebuildReply:
        """Has damaged files of a store made anew.  Raises MpifsError."""
        request = Rebuild(
            entry.store,
            geometry.volume_uuid,
            entry.uuid,
            geometry.chunk_size,
            int(geometry.checksum),
        )
        rank = self._crew.rank_of(entry.store)
        reply = self._ask(rank, Kind.REBUILD, encode_args(request), progress)
        return decode_args(reply, RebuildReply)

    def open_store(self, geometry: Superblock, entry: StoreEntry, progress: Progress) -> StoreStats:
        """Has a store opened that is there; never makes one.  Raises MpifsError."""
        serve = Serve(
            store=entry.store,
            volume_uuid=geometry.volume_uuid,
            store_uuid=entry.uuid,
            chunk_size=geometry.chunk_size,
            checksum=int(geometry.checksum),
            create=False,
            capacity=geometry.capacity_bytes,
        )
        deadline = time.monotonic() + RECOVERY_S
        while True:
            try:
                rank = self._crew.rank_of(entry.store)
                reply = self._ask(rank, Kind.SERVE, encode_args(serve), progress)
            except SilentError:
                if not self._crew.await_serving([entry.store], deadline):
                    raise
            else:
                self._crew.remember(serve)
                return decode_args(reply, StoreStats)

    def _start(self, rank: int, kind: Kind, args: bytes) -> Pending:
        return self._client.start(rank, kind, args=args, timeout_s=_LONG_S)

    def _ask(self, rank: int, kind: Kind, args: bytes, progress: Progress) -> bytes:
        return self._await(self._start(rank, kind, args), progress)

    def _await(self, answer: Pending, progress: Progress) -> bytes:
        """The arguments of a reply that may take as long as its worker answers pings.

        Raises CancelledError, MpifsError.
        """
        worker = next(one for one in self._crew.workers if one.rank == answer.rank)
        heard_s = time.monotonic()
        while not wait_any((answer,), _LOOK_S):
            progress.check()
            now = time.monotonic()
            if worker.state == "serving":
                heard_s = now
            elif now - heard_s > REQUEST_TIMEOUT_S:
                raise SilentError(worker.rank, f"silent for {REQUEST_TIMEOUT_S:.0f} s")
        return bytes(answer.wait().args)


class FsckCrew(Crew):
    """The crew of a job that checks a volume at rest: ranks are given what there is of stores."""

    @property
    def placed(self) -> list[int]:
        """The stores of which something was found."""
        return sorted(self._places)

    def enlist(self, hellos: dict[int, HelloReply]) -> None:
        """All who answered HELLO; from start_heartbeat() on they are pinged."""
        self.workers = [
            Worker(rank, rank, hello.host, hello.pid) for rank, hello in sorted(hellos.items())
        ]

    def place(
        self, volume_uuid: bytes, stores: Sequence[StoreEntry], hosts: Sequence[HostFolders]
    ) -> None:
        """Gives each store that is found a rank of its host.  Requires: none is being served."""
        folders = {rank: host.folders for host in hosts for rank in host.ranks}
        self._places = assign_found(volume_uuid, stores, folders)
        store_of = {rank: store for store, rank in self._places.items()}
        for worker in self.workers:
            worker.store = store_of.get(worker.rank, worker.store)


def host_finding(host: HostFolders) -> Finding:
    """A host of which nothing is known."""
    return Finding(
        "check_host_answers",
        DAMAGE,
        f"no worker on {host.host} answers ({host.trouble}): what is there could not be checked",
    )
