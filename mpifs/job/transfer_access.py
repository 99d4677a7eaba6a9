"""How a transfer command gets at the ranks: those of a mounted job, or ranks of its own, which end
with it and leave nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from mpifs.core.errors import PosixError, StartError
from mpifs.core.limits import STORES_MAX
from mpifs.job import config as job_config
from mpifs.job import hosts as job_hosts
from mpifs.job import launch, leftovers, sessions
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.control import ControlClient
from mpifs.job.folder import VolumeFolder, volume_of

_LOG = re.compile(r" \(log: [^)]*\)")


@dataclass(frozen=True, slots=True)
class WhichRanks:
    """What the command line says of the ranks: a mount, or how many to start and where."""

    mount: str = ""
    workers: int = 0
    local: str = ""
    hosts: list[str] = field(default_factory=list)
    launch_agent: str = ""
    mpi: str = ""

    @property
    def are_own(self) -> bool:
        """Whether the command starts them."""
        return not self.mount


@contextlib.contextmanager
def reaching(ranks: WhichRanks) -> Iterator[ControlClient]:
    """A connection to the rank 0 that moves files.  Raises OSError with what to do."""
    if not ranks.are_own:
        with ControlClient(_mounted(ranks.mount).socket) as client:
            yield client
        return
    _sweep()
    with sessions.transfer_folder() as path, contextlib.ExitStack() as held:
        folder = VolumeFolder(path)
        try:
            held.enter_context(launch.serving(folder, _config(ranks, folder)))
            client = held.enter_context(ControlClient(folder.socket))
        except launch.InterruptedStartError:
            raise
        except StartError as error:  # its log goes with it
            raise StartError(_LOG.sub("", str(error))) from None
        yield client


def _mounted(mount: str) -> VolumeFolder:
    folder = volume_of(mount)
    state = job_state.read(folder)
    if state.get("state") != job_state.READY or job_state.process(state, "rank0") is None:
        raise PosixError(errno.ENOTCONN, f"{mount} is not mounted; mpifs mount … --local DIR")
    if not job_config.read(folder).local:
        raise PosixError(
            errno.ENXIO,
            f"{mount} was mounted without --local DIR: its ranks have no folders of their own; "
            "unmount it and mount it again with --local DIR",
        )
    return folder


def _config(ranks: WhichRanks, folder: VolumeFolder) -> JobConfig:
    if not 1 <= ranks.workers <= STORES_MAX:
        raise PosixError(errno.EINVAL, f"-w {ranks.workers}: give 1 to {STORES_MAX} workers")
    return JobConfig(
        job="",
        volume=folder.path,
        mountpoint="",
        workers=ranks.workers,
        hosts=job_hosts.spread(ranks.hosts, ranks.workers) if ranks.hosts else [],
        launch_agent=ranks.launch_agent,
        mpi=ranks.mpi,
        task=job_config.TRANSFER,
        local=os.path.abspath(ranks.local),
    )


def _sweep() -> None:
    """Clears what a former command left whose processes were all killed."""
    for path in sessions.transfer_folders():
        folder = VolumeFolder(path)
        if job_state.has_ended(folder) and job_state.read(folder).get("job"):
            lock = job_state.lock_volume(folder)
            if lock is not None:
                with contextlib.suppress(OSError):
                    leftovers.clean(folder)
                sessions.remove_ownerless(path)
                os.close(lock)
