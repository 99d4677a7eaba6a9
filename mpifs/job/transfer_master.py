"""Rank 0 of a job that moves files between ranks and serves no volume (JobConfig.task TRANSFER).

Started by a transfer command for itself; its folder is a session folder, which goes with it.  It
ends as soon as that command does, however that ends.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from mpifs.core.errors import PosixError
from mpifs.core.limits import UNUSED_JOB_S
from mpifs.core.messages import HelloReply
from mpifs.job.command_master import CommandMaster
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


class TransferMaster(CommandMaster):
    """See the module.  `_reasons` is guarded by `_lock`."""

    def __init__(self, config: JobConfig, endpoint: Endpoint) -> None:
        self.client = Client(endpoint)
        self.crew = TransferCrew(self.client, config.workers, restarter_of(config, self.client))
        super().__init__(config, self.crew, f"moving files below {config.local}")
        self._lock = threading.Lock()
        self._reasons: list[str] | None = None

    def _enlist(self) -> None:
        self.crew.enlist(self.crew.greet())

    def _open(self, control: ControlServer) -> Callable[[], object]:
        service = TransferService(self.client, self.crew, self.config.local)
        service.register(control)
        control.register("transfer.dismiss", self._on_dismiss)
        return service.close

    def _await_end(self, control: ControlServer) -> None:
        """The job lives for one command: it ends when that has come and gone."""
        has_come, begun = False, time.monotonic()
        while not self._stop.wait(_LOOK_S):
            if control.client_count:
                has_come = True
            elif has_come or time.monotonic() - begun > UNUSED_JOB_S:
                log.info("the command has gone: ending")
                return

    def _on_dismiss(self, args: dict[str, Any]) -> dict[str, Any]:
        """Sends the termination message to every worker and says what each answered."""
        workers = [worker.rank for worker in self.crew.workers]
        reasons = self._dismiss_once()
        if reasons is None:
            raise PosixError(errno.EALREADY, "the workers have been sent home already")
        lines = []
        for rank in workers:
            why = [reason for reason in reasons if reason.startswith(f"worker {rank}:")]
            lines.append(why[0] if why else f"worker {rank}: got the termination message, ended")
        return {"lines": lines}

    def _dismiss(self) -> None:
        self._dismiss_once()

    def _dismiss_once(self) -> list[str] | None:
        """Sends all workers home, once; what could not be done.  None: it was done before."""
        with self._lock:
            if self._reasons is not None:
                return None
            self._reasons = self.crew.dismiss()
        for reason in self._reasons:
            log.warning("at the end: %s", reason)
        return self._reasons
