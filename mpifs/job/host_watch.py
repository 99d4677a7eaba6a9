"""Notices what ends a job without MPI saying so: a host is gone, or MPI itself hangs in rank 0.

Where a host has vanished its workers fall silent, and mpiexec no longer starts or ends ranks.  A
call of MPI that does not return takes every other one with it, and after MASTER_SILENCE_S the
workers have ended themselves.  Nothing of such a job can go on.  So rank 0 says why and ends itself
hard; its supervisor clears away what is left on this host, and with -o restart=N brings the volume
back on the hosts that remain.  The ranks elsewhere end with mpiexec's daemons, or by themselves
after MASTER_SILENCE_S.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable

from mpifs.core.limits import HEARTBEAT_S, HOST_SILENCE_S, MPI_STALL_S
from mpifs.job.crew import Crew
from mpifs.job.roster import SERVING, SILENT, Worker
from mpifs.transport.endpoint import Endpoint

log = logging.getLogger(__name__)


def silent_host(
    ranks: Iterable[Worker], host_of: Callable[[int], str], own_host: str, now: float
) -> str:
    """A host other than rank 0's, none of whose ranks has answered for HOST_SILENCE_S; or "".

    Ranks that are known to be dead do not count: somebody there has told of it.
    """
    answered: dict[str, float] = {}
    for worker in ranks:
        if worker.rank and worker.state in (SERVING, SILENT):
            host = host_of(worker.rank)
            if host != own_host:
                answered[host] = max(answered.get(host, 0.0), worker.answered_s)
    return next((host for host, last in answered.items() if now - last > HOST_SILENCE_S), "")


class HostWatch:
    """A thread of rank 0; `tell(reason)` is called once, then the process ends."""

    def __init__(
        self,
        crew: Crew,
        endpoint: Endpoint,
        stop: threading.Event,
        tell: Callable[[str], None],
    ) -> None:
        self._crew = crew
        self._endpoint = endpoint
        self._stop = stop
        self._tell = tell

    def start(self) -> None:
        """Begins to watch, until `stop` is set: an end that was asked for has its own deadline."""
        threading.Thread(target=self._run, name="host-watch", daemon=True).start()

    def _run(self) -> None:
        own_host = self._endpoint.host(self._endpoint.rank)
        seen = time.monotonic()
        while not self._stop.wait(HEARTBEAT_S):
            now = time.monotonic()
            if now - seen > 2 * HEARTBEAT_S:  # this process itself stood still: answers may wait.
                self._stop.wait(HOST_SILENCE_S)
                now = time.monotonic()
            seen = now
            reason = self._reason(own_host, now)
            if reason and not self._stop.is_set():
                log.error("%s; ending, because MPI cannot go on", reason)
                self._tell(f"{reason}; what was closed before it is safe")
                os._exit(1)

    def _reason(self, own_host: str, now: float) -> str:
        """Why the job must end; or ""."""
        if now - self._crew.ticked_s > MPI_STALL_S:
            return f"a call of the MPI library has not returned for {MPI_STALL_S:g} s"
        host = silent_host(self._crew.everyone(), self._endpoint.host, own_host, now)
        return f"host {host} has been silent for {HOST_SILENCE_S:g} s" if host else ""
