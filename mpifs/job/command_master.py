"""Rank 0 of a job that serves no mount but one command: fsck at rest, transfers.

    start: HELLO → control socket → "ready";  stop: checks or transfers ended → STOP → "stopped"

What such a job does is its subclass's: `_open` makes the services, `_await_end` says how long the
job lives.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from mpifs.core.limits import FSCK_CANCEL_S, STOP_TIMEOUT_S
from mpifs.job import processes
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.control import ControlServer
from mpifs.job.crew import Crew

log = logging.getLogger(__name__)


class CommandMaster:
    """See the module.  `_stop` is set by any thread; all else is the main thread's."""

    def __init__(self, config: JobConfig, crew: Crew, doing: str) -> None:
        """`doing` is for the log."""
        self.config = config
        self._crew = crew
        self._doing = doing
        self._stop = threading.Event()
        self._undo = contextlib.ExitStack()

    def ask_to_stop(self) -> None:
        """Starts the stop; any thread, may be repeated."""
        self._stop.set()

    def run(self) -> None:
        """Start, service and stop.  Raises OSError when the ranks or the socket fail."""
        folder, job = self.config.folder, self.config.job
        try:
            control = self._start()
            mine = list(processes.this_process())
            roster = [
                {"id": w.store, "rank": w.rank, "host": w.host, "pid": w.pid}
                for w in self._crew.workers
            ]
            job_state.change(folder, job, job_state.READY, rank0=mine, workers=roster)
            log.info("%s", self._doing)
            self._await_end(control)
            job_state.change(folder, job, job_state.STOPPING)
        finally:
            watchdog = threading.Timer(FSCK_CANCEL_S + 2 * STOP_TIMEOUT_S, self._give_up)
            watchdog.daemon = True
            watchdog.start()
            self._undo.close()
            watchdog.cancel()
        job_state.change(folder, job, job_state.STOPPED)
        log.info("stopped")

    def _start(self) -> ControlServer:
        self._undo.callback(self._dismiss)
        self._enlist()
        self._crew.start_heartbeat()
        control = ControlServer(self.config.folder.socket)
        close = self._open(control)
        control.register("stop", self._on_stop)
        control.start()
        self._undo.callback(control.close)
        self._undo.callback(close)
        return control

    def _enlist(self) -> None:
        """Greets the workers."""
        raise NotImplementedError

    def _open(self, control: ControlServer) -> Callable[[], object]:
        """Registers the calls; gives what ends their work."""
        raise NotImplementedError

    def _await_end(self, control: ControlServer) -> None:
        """Returns when the command has gone."""
        raise NotImplementedError

    def _on_stop(self, args: dict[str, Any]) -> dict[str, Any]:
        self._stop.set()
        return {}

    def _give_up(self) -> NoReturn:
        log.error("the stop takes too long; ending without it")
        os._exit(1)

    def _dismiss(self) -> None:
        """Sends all workers home."""
        for reason in self._crew.dismiss():
            log.warning("at the end: %s", reason)
