"""Brings a worker back whose process died or hangs: a new process, the same store.

    serving ──no answer for WORKER_SILENT_S──▶ silent ──WORKER_HUNG_S──▶ dead
    serving, silent ──its process died──▶ dead ──replaced, store opened──▶ serving
    dead ──RESTARTS_MAX failures within RESTARTS_S, or its store cannot be used──▶ lost
    lost ──revive()──▶ serving

The old process is cut off first: nothing it still sends is heard.  It may only hang, and then it
still holds its store; so the new process, which runs on the same host, kills it before it opens
the store.  Where MPI cannot start ranks (MPICH) a dead worker is lost at once.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import threading
import time

from mpifs.core.errors import InUseError, MpifsError, RemoteError, StartError, UnusableStoreError
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    JOIN_TIMEOUT_S,
    RESTART_BACKOFF_S,
    RESTARTS_MAX,
    RESTARTS_S,
    START_TIMEOUT_S,
)
from mpifs.core.messages import HelloReply, Serve, StoreStats, decode_args, encode_args
from mpifs.job import processes
from mpifs.job.config import JobConfig
from mpifs.job.hosts import keepers
from mpifs.transport.client import Client

log = logging.getLogger(__name__)

RANK_MODULE = "mpifs.job.rank"


class Restarter:
    """Starts replacements for the ranks of one volume.  `run` may be called by several threads,
    one per worker at a time.

    `hosts` has, by rank, the name under which the launcher knows its host; none = this one.
    """

    def __init__(self, client: Client, volume: str, hosts: dict[int, str]) -> None:
        self._client = client
        self._volume = volume
        self.hosts = hosts
        self._failures: dict[int, list[float]] = {}
        self._lock = threading.Lock()

    @property
    def can_restart(self) -> bool:
        """Whether this job can get new ranks at all."""
        return self._client.endpoint.can_replace

    def forgive(self, rank: int) -> None:
        """Forgets the failures of a rank: its restarts are asked for by the user now."""
        with self._lock:
            self._failures.pop(rank, None)

    def run(self, rank: int, old_pid: int, serve: Serve | None) -> HelloReply:
        """A new process for `rank` that serves what `serve` says; tries again after failures.

        `old_pid` (0 = none) is the rank's former process, which is killed if it still lives.

        Raises StartError with a sentence when it is given up.
        """
        while True:
            try:
                return self._try(rank, old_pid, serve)
            except UnusableStoreError as error:
                raise StartError(f"its store cannot be used: {error}") from None
            except MpifsError as error:
                count = self._count_failure(rank)
                log.warning("worker of rank %d does not start again: %s", rank, error)
                if count >= RESTARTS_MAX or not self.can_restart:
                    raise StartError(f"given up after {count} failed restarts: {error}") from None
                time.sleep(RESTART_BACKOFF_S * 2 ** (count - 1))

    def _count_failure(self, rank: int) -> int:
        now = time.monotonic()
        with self._lock:
            recent = [t for t in self._failures.get(rank, []) if now - t < RESTARTS_S]
            self._failures[rank] = [*recent, now]
            return len(recent) + 1

    def _try(self, rank: int, old_pid: int, serve: Serve | None) -> HelloReply:
        if not self.can_restart:
            raise StartError("this MPI cannot start a new rank; unmount, and mount again")
        endpoint = self._client.endpoint
        size = max(endpoint.size, rank + 1)
        program = [sys.executable, "-m", RANK_MODULE, self._volume]
        with tempfile.NamedTemporaryFile(prefix="mpifs-rank-") as note:
            program += ["--replace", str(rank), str(size), str(old_pid), note.name]
            endpoint.replace(rank, program, self.hosts.get(rank, ""), _Doom(note.name))
        answer = self._client.call(rank, Kind.HELLO, timeout_s=JOIN_TIMEOUT_S)
        hello = decode_args(bytes(answer.args), HelloReply)
        if serve is not None:
            self.open_store(rank, serve)
        return hello

    def open_store(self, rank: int, serve: Serve) -> StoreStats:
        """Has the rank serve a store.  Raises SilentError, UnusableStoreError, and RemoteError
        (EBUSY) while another process holds the store."""
        try:
            answer = self._client.call(
                rank, Kind.SERVE, args=encode_args(serve), timeout_s=START_TIMEOUT_S
            )
        except RemoteError as error:
            if error.errno == InUseError.code:
                raise
            raise UnusableStoreError(str(error)) from None
        return decode_args(bytes(answer.args), StoreStats)


class _Doom:
    """Whether a rank that is starting here has died: it writes its process into a file first thing.
    Of a rank on another host nothing is known; a time limit ends the wait for it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._process: processes.Process | None = None

    def __call__(self) -> bool:
        if self._process is None:
            with (
                contextlib.suppress(OSError, ValueError),
                open(self._path, encoding="ascii") as note,
            ):
                pid, start = map(int, note.read().split())
                self._process = processes.Process(pid, start)
        return self._process is not None and not self._process.is_alive


def restarter_of(config: JobConfig, client: Client) -> Restarter:
    """For the ranks of a job: its workers, and then one keeper on each host with one worker."""
    every = [*config.hosts, *keepers(config.hosts)]
    return Restarter(client, config.volume, dict(enumerate(every, 1)))
