"""What a supervisor needs to bring a crashed volume back (-o restart=N): how often, how soon, on
which hosts, and why it was necessary.  Standard library only: the supervisor imports it.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from mpifs.core.limits import (
    HOST_PROBE_S,
    JOB_RESTART_SETTLED_S,
    JOB_RESTART_WAIT_MAX_S,
    JOB_RESTART_WAIT_S,
    START_TIMEOUT_S,
)
from mpifs.job.folder import VolumeFolder
from mpifs.job.processes import JOB_VARIABLE

_LOST_HOST = (  # what Open MPI's launcher says of it.
    b"lost communication with a remote daemon",
    b"A daemon failed to report back",
)
_END_RANKS = ["-m", "mpifs.job.end_ranks"]
_SSH = ["ssh", "-x", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={HOST_PROBE_S:.0f}"]


class Restarts:
    """Counts restarts and says how long to wait before each; `clock` counts seconds."""

    def __init__(self, allowed: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._allowed = allowed
        self._clock = clock
        self._in_a_row = 0
        self._begun_s = clock()

    def begin(self) -> None:
        """The job starts now."""
        self._begun_s = self._clock()

    def is_late(self) -> bool:
        """Whether the start takes longer than START_TIMEOUT_S."""
        return self._clock() - self._begun_s > START_TIMEOUT_S

    def take(self, has_served: bool) -> bool:
        """Takes one restart, after a job that served or did not; False if none is left."""
        if self.count >= self._allowed:
            return False
        if has_served and self._clock() - self._begun_s > JOB_RESTART_SETTLED_S:
            self._in_a_row = 0
        self.count += 1
        self._in_a_row += 1
        return True

    def wait_s(self) -> float:
        """Seconds to wait before the restart that was taken last."""
        if self._in_a_row <= 1:
            return 0.0
        return min(JOB_RESTART_WAIT_MAX_S, JOB_RESTART_WAIT_S * 2.0 ** min(self._in_a_row - 2, 16))

    def sum_up(self, reason: str) -> str:
        """The reason for the end, with what was tried."""
        if not self.count:
            return reason
        return f"{reason} (restarted {self.count} of {self._allowed} times)"


def cause_of_end(
    folder: VolumeFolder, log_start: int, mpi: str, code: int | None, is_rank0_gone: bool
) -> str:
    """Why a job that served has ended without having been asked to.

    `log_start` is where its lines begin in the log, `code` mpiexec's exit code (None: it runs).
    """
    safe = "what was closed before it is safe"
    if _says_lost_host(folder, log_start):
        return f"a host was lost, and Open MPI ends the job then; {safe}"
    if code is not None and code < 0:
        return f"mpiexec was killed by signal {-code}; {safe}"
    if code is None or (is_rank0_gone and mpi != "mpich"):
        return f"rank 0 ended without a word; {safe}"
    if mpi == "mpich":
        return f"a rank died or mpiexec was ended, and MPICH ends the whole job then; {safe}"
    return f"mpiexec ended before the volume was unmounted (exit code {code}); {safe}"


def _says_lost_host(folder: VolumeFolder, log_start: int) -> bool:
    try:
        with open(folder.log, "rb") as file:
            file.seek(log_start)
            text = b" ".join(file.read(1 << 22).split())
    except OSError:
        return False
    return any(words in text for words in _LOST_HOST)


def answering(
    hosts: Sequence[str], agent: str, job: str, more: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """(hosts that answer, hosts that do not), each as in `hosts`, which may repeat one.

    Those that answer have ended what the job's former start left there (end_ranks.py).  All are
    asked at once and have HOST_PROBE_S; this host is not asked.  `more` are further words for
    end_ranks.
    """
    path = os.environ.get("PYTHONPATH")
    words = [*(["env", f"PYTHONPATH={path}"] if path else []), sys.executable, *_END_RANKS, job]
    words += more
    command = " ".join(map(shlex.quote, words))
    environment = {k: v for k, v in os.environ.items() if k != JOB_VARIABLE}
    probes: dict[str, subprocess.Popen[bytes]] = {}
    for host in dict.fromkeys(hosts):
        if not _is_here(host):
            probes[host] = subprocess.Popen(
                [*([agent] if agent else _SSH), host, command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
    deadline = time.monotonic() + HOST_PROBE_S
    good = {host for host in hosts if host not in probes}
    for host, probe in probes.items():
        try:
            if probe.wait(max(0.0, deadline - time.monotonic())) == 0:
                good.add(host)
        except subprocess.TimeoutExpired:
            probe.kill()
            probe.wait()
    return [h for h in hosts if h in good], [h for h in hosts if h not in good]


def _is_here(host: str) -> bool:
    own = {os.uname().nodename, os.uname().nodename.partition(".")[0], socket.getfqdn()}
    return host in own or host == "localhost" or host.startswith("127.")
