"""What keeps a job of `mpifs run` from outliving the command: whoever is left ends it.

    mpifs run ──watches──▶ supervisor ──watches──▶ mpifs run (its owner)
                             rank 0 ──watches──▶ both: it stops when neither lives

Nothing here does anything in a job without an owner.  Standard library only: the supervisor
imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable

from mpifs.core.limits import RUN_LEFT_GRACE_S, RUN_LOOK_S
from mpifs.job import processes, run_scratch
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.processes import Process


class Guard:
    """The supervisor's look at the process for which its job runs.  One thread."""

    def __init__(self, config: JobConfig, last_state: int) -> None:
        self._config = config
        self._last_state = last_state
        self._owner = processes.from_json(config.owner)
        self._descriptor = -1
        self._has_ended = False
        if self._owner is not None:
            with contextlib.suppress(OSError):
                self._descriptor = os.pidfd_open(self._owner.pid)

    def descriptors(self) -> list[int]:
        """What becomes readable when the owner ends."""
        return [self._descriptor] if self._descriptor >= 0 and not self._has_ended else []

    def sees_end(self, readable: list[int]) -> bool:
        """True once, when the owner has died; its command has been ended then."""
        if self._owner is None or self._has_ended or self._owner.is_alive:
            return False
        self._has_ended = True
        job_state.log_line(self._config.folder, "mpifs run has died: its command and the job end")
        end_command(self._config.job)
        return True

    def finish(self) -> None:
        """The last thing of a supervisor: hands over the last state, removes a scratch volume."""
        if self._last_state >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(
                    self._last_state, json.dumps(job_state.read(self._config.folder)).encode(), 0
                )
        state = job_state.read(self._config.folder)
        # A start that failed is the owner's to clear away: it reads the log and the state.
        if self._owner is not None and ("rank0" in state or not self._owner.is_alive):
            run_scratch.remove(self._config)


def end_command(job: str, besides: Callable[[], list[Process]] = list) -> list[str]:
    """Ends what is left of the command of a run: SIGTERM, and SIGKILL after a moment.

    Processes are known by RUN_VARIABLE in their environment; `besides` gives more.  What belongs
    to a volume (this one's job, or one that the command mounted) is let alone.  Gives what there
    was, as "pid (name)".
    """

    def there() -> list[Process]:
        found = processes.marked_with(job, variable=processes.RUN_VARIABLE)
        return [p for p in dict.fromkeys([*found, *besides()]) if not _is_of_a_volume(p)]

    left = there()
    names = [f"{process.pid} ({_name_of(process)})" for process in left]
    for process in left:
        processes.send(process, signal.SIGTERM)
        processes.send(process, signal.SIGCONT)  # a stopped one hears it only then.
    if left:
        processes.wait_gone(left, RUN_LEFT_GRACE_S)
    for _ in range(3):  # what forks just now is found at the second look.
        left = there()
        if not left:
            break
        processes.kill(left, RUN_LEFT_GRACE_S)
    return names


def _name_of(process: Process) -> str:
    try:
        with open(f"/proc/{process.pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
            return file.read().strip()
    except OSError:
        return "ended"


def _is_of_a_volume(process: Process) -> bool:
    try:
        with open(f"/proc/{process.pid}/environ", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    return any(word.startswith(processes.JOB_VARIABLE.encode() + b"=") for word in words)


def finish_alone(config: JobConfig) -> None:
    """The last thing of rank 0: removes a scratch volume if nobody else is left to do so."""
    owner = processes.from_json(config.owner)
    if config.removal and owner is not None and not owner.is_alive:
        state = job_state.read(config.folder)
        if "supervisor" in state and job_state.process(state, "supervisor") is None:
            run_scratch.remove(config)


def stop_when_alone(
    config: JobConfig, has_ended: threading.Event, stop: Callable[[], None]
) -> None:
    """In rank 0: from now on `stop` is called when neither owner nor supervisor lives."""
    owner = processes.from_json(config.owner)
    if owner is None:
        return

    def watch() -> None:
        while not has_ended.wait(RUN_LOOK_S):
            supervisor = job_state.process(job_state.read(config.folder), "supervisor")
            if supervisor is None and not owner.is_alive:
                end_command(config.job)
                stop()
                return

    threading.Thread(target=watch, name="owner", daemon=True).start()
