"""Rank 0 of a job that moves files between ranks and serves no volume (JobConfig.task TRANSFER).

Started by a transfer command for itself; its folder is a session folder, which goes with it.  It
ends as soon as that command does, however that ends.
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
from mpifs.core.messages import HelloReply
from mpifs.job import processes
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.control import ControlServer
from mpifs.job.crew import Crew
from mpifs.job.recovery import restarter_of
from mpifs.job.roster import Worker
from mpifs.job.transfer_service import TransferService
from mpifs.transport.client import Client
from mpifs.transport.endpoint import Endpoint

log = logging.getLogger(__name__)
_LOOK_S = 0.2  # how soon it is seen that the command has gone.


class TransferCrew(Crew):
    """Workers without stores."""

    def enlist(self, hellos: dict[int, HelloReply]) -> None:
        """All who answered HELLO; from start_heartbeat() on they are pinged."""
        self.workers = [
            Worker(rank, rank, hello.host, hello.pid) for rank, hello in sorted(hellos.items())
        ]


class TransferMaster:
    """See the module.  `_stop` is set by any thread; `_dismissed` is guarded by `_lock`; all else
    is the main thread's."""

    def __init__(self, config: JobConfig, endpoint: Endpoint) -> None:
        self.config = config
        self.client = Client(endpoint)
        self.crew = TransferCrew(self.client, config.workers, restarter_of(config, self.client))
        self._stop = threading.Event()
        self._undo = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._dismissed: list[str] | None = None

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
            log.info("moving files below %s", self.config.local)
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
        control = ControlServer(self.config.folder.socket)
        service = TransferService(self.client, self.crew, self.config.local)
        service.register(control)
        control.register("stop", self._on_stop)
        control.register("transfer.dismiss", self._on_dismiss)
        control.start()
        self._undo.callback(control.close)
        self._undo.callback(service.close)
        return control

    def _await_end(self, control: ControlServer) -> None:
        """The job lives for one command: it ends when that has come and gone."""
        has_come, begun = False, time.monotonic()
        while not self._stop.wait(_LOOK_S):
            if control.client_count:
                has_come = True
            elif has_come or time.monotonic() - begun > UNUSED_JOB_S:
                log.info("the command has gone: ending")
                return

    def _on_stop(self, args: dict[str, Any]) -> dict[str, Any]:
        self._stop.set()
        return {}

    def _on_dismiss(self, args: dict[str, Any]) -> dict[str, Any]:
        """Sends the termination message to every worker and says what each answered."""
        workers = [worker.rank for worker in self.crew.workers]
        reasons = self._dismiss()
        if reasons is None:
            raise PosixError(errno.EALREADY, "the workers have been sent home already")
        lines = []
        for rank in workers:
            why = [reason for reason in reasons if reason.startswith(f"worker {rank}:")]
            lines.append(why[0] if why else f"worker {rank}: got the termination message, ended")
        return {"lines": lines}

    def _give_up(self) -> NoReturn:
        log.error("the stop takes too long; ending without it")
        os._exit(1)

    def _dismiss(self) -> list[str] | None:
        """Sends all workers home, once; what could not be done.  None: it was done before."""
        with self._lock:
            if self._dismissed is not None:
                return None
            self._dismissed = self.crew.dismiss()
        for reason in self._dismissed:
            log.warning("at the end: %s", reason)
        return self._dismissed
