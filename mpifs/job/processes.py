"""Processes of a job: told apart for certain, looked for by the job's mark, ended.

A pid is used again by the kernel, so a process is (pid, start time in ticks since boot) on a
given boot.  Every process of a job carries MPIFS_JOB=<job id> in its environment.  Standard
library only: the supervisor imports it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

JOB_VARIABLE = "MPIFS_JOB"
RUN_VARIABLE = "MPIFS_RUN"  # marks the processes of the command that `mpifs run` runs.


class Process(NamedTuple):
    """A process for certain, as long as the machine is not booted again."""

    pid: int
    start: int

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return start_of(self.pid) == self.start


def boot_id() -> str:
    """Names this boot of this machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def start_of(pid: int) -> int:
    """Start time of a living process in ticks since boot; 0 when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
    except OSError:
        return 0
    return 0 if len(fields) < 20 or fields[0] in (b"Z", b"X") else int(fields[19])


def this_process() -> Process:
    """The calling process."""
    return Process(os.getpid(), start_of(os.getpid()))


def from_json(value: Any) -> Process | None:
    """Reads [pid, start] of a state file; None for anything else."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) for n in value):
        return Process(value[0], value[1])
    return None


def marked_with(
    job: str, *, everywhere: bool = False, variable: str = JOB_VARIABLE
) -> list[Process]:
    """All processes of the job that this user may see, the caller left out.

    Those of another host of the job are seen when it is a container of this machine; they are
    their launcher's to end, as on any other host, and given only when `everywhere`.
    """
    mark = f"{variable}={job}".encode()
    here = _host_of("self")
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                is_marked = mark in file.read().split(b"\0")
        except OSError:
            continue
        start = start_of(int(entry)) if is_marked else 0
        if start and (everywhere or _host_of(entry) == here):
            found.append(Process(int(entry), start))
    return found


def _host_of(process: str) -> str:
    """Names the network namespace of a process: for MPI that is a host.  "" when it ends."""
    try:
        return os.readlink(f"/proc/{process}/ns/net")
    except OSError:
        return ""


def send(process: Process, number: int) -> bool:
    """Signals exactly that process; False when it has gone."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if start_of(process.pid) != process.start:
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def wait_gone(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Waits until all are gone; those that are not at the deadline."""
    deadline = time.monotonic() + timeout_s
    left = [process for process in processes if process.is_alive]
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        left = [process for process in left if process.is_alive]
    return left


def kill(processes: Iterable[Process], timeout_s: float = 5.0) -> list[Process]:
    """SIGKILLs all and waits; those that live on (stuck in the kernel)."""
    doomed = list(processes)
    for process in doomed:
        send(process, signal.SIGKILL)
    return wait_gone(doomed, timeout_s)


def shared_memory_of(processes: Iterable[Process]) -> list[tuple[str, int]]:
    """(path, inode number) of each file in /dev/shm that one of them has mapped."""
    found: set[tuple[str, int]] = set()
    for process in processes:
        try:
            with open(f"/proc/{process.pid}/maps", encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            fields = line.split(None, 5)
            path = fields[5] if len(fields) == 6 else ""
            if path.startswith("/dev/shm/") and not path.endswith(" (deleted)"):
                found.add((path, int(fields[4])))
    return sorted(found)
