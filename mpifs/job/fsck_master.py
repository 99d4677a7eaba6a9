"""Rank 0 of a job that checks a volume at rest (JobConfig.task FSCK).

It serves whatever the volume is like: only HELLO and the control socket must go well before it
says "ready"; all else is part of the run that the client then starts (fsck_rest.py), and a finding
where it fails.  Lives for one command: ends with it, or UNUSED_JOB_S after the last client.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Any, NoReturn

from mpifs.core.errors import PosixError
from mpifs.core.limits import UNUSED_JOB_S
from mpifs.job.command_master import CommandMaster
from mpifs.job.config import JobConfig
from mpifs.job.control import ControlServer
from mpifs.job.fsck_crew import FsckCrew
from mpifs.job.fsck_rest import RestChecks
from mpifs.job.fsck_service import ChecksTurn, FsckService
from mpifs.job.recovery import restarter_of
from mpifs.transport.client import Client
from mpifs.transport.endpoint import Endpoint

log = logging.getLogger(__name__)


class FsckMaster(CommandMaster):
    """See the module."""

    def __init__(self, config: JobConfig, endpoint: Endpoint) -> None:
        self.client = Client(endpoint)
        self.crew = FsckCrew(self.client, config.workers, restarter_of(config, self.client))
        super().__init__(config, self.crew, f"checking {config.folder.path}")

    def _enlist(self) -> None:
        self.crew.enlist(self.crew.greet())

    def _open(self, control: ControlServer) -> Callable[[], object]:
        checks = RestChecks(self.config.folder, self.client, self.crew)
        service = FsckService(checks.check, ChecksTurn())
        service.register(control)
        control.register("status", self._on_status)
        return service.close

    def _await_end(self, control: ControlServer) -> None:
        seen = time.monotonic()
        while not self._stop.wait(1.0):
            if control.client_count:
                seen = time.monotonic()
            elif time.monotonic() - seen > UNUSED_JOB_S:
                log.warning("no command has been here for %.0f s: ending", UNUSED_JOB_S)
                return

    def _on_status(self, args: dict[str, Any]) -> NoReturn:
        raise PosixError(
            errno.EBUSY, f"{self.config.volume} is being checked by mpifs fsck; ask again later"
        )
