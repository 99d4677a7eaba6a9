"""`mpifs run` as a rank of a launcher's world, and the runner beside rank 0 (run_escort.py).

Run by rank 0 as: python -m mpifs.job.run_world DESCRIPTOR VOLUME COMMAND…
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from mpifs.job import leftovers, run_scratch
from mpifs.job import state as job_state
from mpifs.job.assemble_mount import MountRequest, in_given_world
from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder
from mpifs.job.run_command import RunCommand, is_missing
from mpifs.job.run_escort import Escort, Orders
from mpifs.job.run_mount import say_left, say_missing, surroundings
from mpifs.job.run_volume import clear_unserved
from mpifs.job.supervise import EXIT_GRACE_S, STOP_DEADLINE_S


def run(request: MountRequest, words: Sequence[str], *, scratch: bool) -> NoReturn:
    """Serves as this rank of the world; rank 0 ends with the command's exit code."""
    from mpifs.job.signals import SignalGate

    gate = SignalGate()
    escort = Escort(os.path.realpath(request.store), words, scratch=scratch)
    in_given_world(request, gate, escort, scratch=scratch)


def main() -> int:
    """The runner: one order, one command; afterwards it sees to it that nothing stays."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # rank 0 has blocked some.
    orders = Orders(int(sys.argv[1]))
    folder, words = VolumeFolder(sys.argv[2]), sys.argv[3:]
    order = orders.take()
    if order is None:
        if orders.is_of_rank0:
            _let_go()
            orders.await_end(EXIT_GRACE_S)
            clear_unserved(folder, orders.rank0)
        return 0
    config = JobConfig(
        order["job"], order["volume"], order["mountpoint"], 0, removal=order["removal"]
    )
    if is_missing(words[0]):
        code, left = say_missing(words[0]), []
    else:
        command = RunCommand(words, config.job, surroundings(config), is_in_world=True)
        try:
            code = command.start() or command.wait(orders.are_over)
        finally:
            left = command.close()
    say_left(left)
    _let_go()
    orders.report(code)
    orders.await_end(STOP_DEADLINE_S + EXIT_GRACE_S)
    _clear(config)
    return code


def _let_go() -> None:
    """Of the standard streams: a launcher waits for their end."""
    sys.stderr.flush()
    silent = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silent, number)


def _clear(config: JobConfig) -> None:
    """What rank 0 has left when it was killed."""
    folder = VolumeFolder(config.volume)
    if not os.path.isdir(folder.run):
        return
    lock = job_state.lock_volume(folder)
    if lock is None:
        return  # somebody has it already.
    try:
        state = job_state.read(folder)
        if state.get("job") == config.job and state.get("state") not in job_state.ENDED:
            _hurry_workers(state)
            leftovers.clean(folder)
            job_state.change(folder, config.job, job_state.CRASHED, "rank 0 ended without a word")
        if state.get("job") == config.job:
            run_scratch.remove(config)
    finally:
        os.close(lock)


def _hurry_workers(state: job_state.State) -> None:
    """A launcher with fault tolerance lets the workers wait for the rank 0 that has died; a signal
    shortens that (worker.py).  Those on this host; it ends the others' when they have waited."""
    for worker in state.get("workers") or []:
        with contextlib.suppress(OSError, KeyError, TypeError):
            pid = int(worker["pid"])
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if worker["host"] == os.uname().nodename and b"run" in words:
                os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
