"""Rank 0 of a job that checks a volume at rest (JobConfig.task FSCK).

It serves whatever the volume is like: only HELLO and the control socket must go well before it
says "ready"; all else is part of the run that the client then starts (fsck_rest.py), and a finding
where it fails.  Lives for one command: ends with it, or UNUSED_JOB_S after the last client.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from typing import Any, NoReturn

from mpifs.core.errors import PosixError
from mpifs.core.limits import FSCK_CANCEL_S, STOP_TIMEOUT_S, UNUSED_JOB_S
from mpifs.job import processes
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.control import ControlServer
from mpifs.job.fsck_crew import FsckCrew
from mpifs.job.fsck_rest import RestChecks
from mpifs.job.fsck_service import ChecksTurn, FsckService
from mpifs.job.recovery import restarter_of
from mpifs.transport.client import Client
from mpifs.transport.endpoint import Endpoint

log = logging.getLogger(__name__)


class FsckMaster:
    """See the module.  `_stop` is set by any thread; all else is the main thread's."""

    def __init__(self, config: JobConfig, endpoint: Endpoint) -> None:
        self.config = config
        self.client = Client(endpoint)
        self.crew = FsckCrew(self.client, config.workers, restarter_of(config, self.client))
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
                for w in self.crew.workers
            ]
            job_state.change(folder, job, job_state.READY, rank0=mine, workers=roster)
            log.info("checking %s", folder.path)
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
        self.crew.enlist(self.crew.greet())
        self.crew.start_heartbeat()
        checks = RestChecks(self.config.folder, self.client, self.crew)
        control = ControlServer(self.config.folder.socket)
        service = FsckService(checks.check, ChecksTurn())
        service.register(control)
        control.register("stop", self._on_stop)
        control.register("status", self._on_status)
        control.start()
        self._undo.callback(control.close)
        self._undo.callback(service.close)
        return control

    def _await_end(self, control: ControlServer) -> None:
        seen = time.monotonic()
        while not self._stop.wait(1.0):
            if control.client_count:
                seen = time.monotonic()
            elif time.monotonic() - seen > UNUSED_JOB_S:
                log.warning("no command has been here for %.0f s: ending", UNUSED_JOB_S)
                return

    def _on_stop(self, args: dict[str, Any]) -> dict[str, Any]:
        self._stop.set()
        return {}

    def _on_status(self, args: dict[str, Any]) -> NoReturn:
        raise PosixError(
            errno.EBUSY, f"{self.config.volume} is being checked by mpifs fsck; ask again later"
        )

    def _give_up(self) -> NoReturn:
        log.error("the stop takes too long; ending without it")
        os._exit(1)

    def _dismiss(self) -> None:
        for reason in self.crew.dismiss():
            log.warning("at the end: %s", reason)
