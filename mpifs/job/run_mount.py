"""What `mpifs run` does by a job of its own: mount, run the command, unmount, give its exit code.

The volume lives as long as this process, which the supervisor watches (run_guard.py), and the
command lives as long as the volume.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from mpifs.core.errors import MpifsError
from mpifs.job import launch, processes, run_scratch, stop
from mpifs.job import state as job_state
from mpifs.job.assemble_mount import MountRequest, config_of
from mpifs.job.config import JobConfig
from mpifs.job.make import check_workers, worker_count
from mpifs.job.mounts import check_mountpoint
from mpifs.job.options import parse_options, split_words
from mpifs.job.processes import Process
from mpifs.job.run_command import NOT_FOUND, RunCommand, is_missing
from mpifs.job.run_volume import volume_for


def run(request: MountRequest, words: Sequence[str], *, scratch: bool) -> int:
    """Runs the command in a volume of its own; the exit code: the command's, 1 when the volume
    could not be served or was lost.  Raises OSError with the reason why nothing was run."""
    parse_options(split_words(request.options), request.store)
    check_mountpoint(os.path.abspath(request.mountpoint))
    if is_missing(words[0]):
        return say_missing(words[0])
    with volume_for(request.store, request.geometry, scratch=scratch) as (folder, removal):
        count = worker_count(folder)
        check_workers(folder, request.geometry.workers, count)
        owner = list(processes.this_process())
        config = replace(config_of(request, folder, count), owner=owner, removal=removal)
        last_state = os.memfd_create("mpifs-last-state")
        try:
            supervisor = launch.start(config, last_state)
        except launch.InterruptedStartError:
            raise KeyboardInterrupt from None
    return _Served(
        config, Process(supervisor.pid, processes.start_of(supervisor.pid)), last_state
    ).run(words)


def say_missing(word: str) -> int:
    """Says that a command is not there; a shell's exit code for that."""
    print(f"mpifs: {word}: command not found", file=sys.stderr)
    return NOT_FOUND


class _Served:
    """The volume while it is served, and how it ends."""

    def __init__(self, config: JobConfig, supervisor: Process, last_state: int) -> None:
        self._config = config
        self._folder = config.folder
        self._supervisor = supervisor
        self._last_state = last_state
        self._was_lost = False

    def run(self, words: Sequence[str]) -> int:
        """Runs the command, then ends the job; the exit code."""
        job = str(job_state.read(self._folder).get("job", ""))
        command = RunCommand(words, job, surroundings(self._config))
        try:
            code = command.start() or command.wait(self._is_lost)
        finally:
            left = command.close()
            reason = self._end()
            run_scratch.remove(self._config)
        say_left(left)
        if reason:
            print(f"mpifs: {reason}", file=sys.stderr)
        return 1 if self._was_lost or (reason and not code) else code

    def _is_lost(self) -> bool:
        self._was_lost = self._was_lost or not self._supervisor.is_alive
        return self._was_lost

    def _end(self) -> str:
        """Ends the job if it has not ended; why it did not end well, or ""."""
        last = os.pread(self._last_state, 1 << 20, 0)
        if last:
            state = json.loads(last)
            if state.get("state") == job_state.STOPPED:
                return "the volume was unmounted while the command ran" if self._was_lost else ""
            return str(state.get("reason") or "the volume was lost while the command ran")
        try:
            stop.end(self._folder, although_busy=True)
        except MpifsError as error:
            return str(error)
        return "the job's supervisor was killed; all of the job was ended" if self._was_lost else ""


def surroundings(config: JobConfig) -> dict[str, str]:
    """Variables that tell the command where its volume is."""
    return {"MPIFS_MOUNT": config.mountpoint, "MPIFS_STORE": config.volume}


def say_left(left: list[str]) -> None:
    """Tells which processes had to be ended."""
    if left:
        names = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
        print(f"mpifs: ended what the command had left running: {names}", file=sys.stderr)
