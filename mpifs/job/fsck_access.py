"""How `mpifs fsck` gets at a volume, whatever state that is in: inside its mount's job, or by ranks
of its own that start even when index or stores are missing or damaged.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from mpifs.core import records
from mpifs.core.errors import FormatError, MpifsError, StartError
from mpifs.core.limits import STORES_MAX
from mpifs.job import config as job_config
from mpifs.job import hosts as job_hosts
from mpifs.job import launch
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.control import ControlClient
from mpifs.job.folder import VolumeFolder, has_stores, volume_of
from mpifs.pagefile import PageFile

_WORKER = re.compile(r"worker-([1-9][0-9]{0,4})(\.moving)?\Z")


@dataclass(frozen=True, slots=True)
class WhereRanksRun:
    """What the command line says of the ranks; empty = as for the last job of the volume."""

    hosts: list[str] = field(default_factory=list)
    launch_agent: str = ""
    mpi: str = ""


def volume_to_check(place: str) -> VolumeFolder:
    """As folder.volume_of, but a folder with anything left of a volume is one.

    Raises FormatError with a sentence when there is nothing to check.
    """
    try:
        return volume_of(place)
    except FormatError:
        folder = VolumeFolder(os.path.realpath(place))
        if not (has_stores(folder.path) or os.path.isdir(folder.index) or _last(folder)):
            raise
        return folder


@contextlib.contextmanager
def serving(folder: VolumeFolder, where: WhereRanksRun) -> Iterator[ControlClient]:
    """A connection to the rank 0 that can check; ranks started for it end with the block.

    Raises InUseError when another command uses the unmounted volume, StartError, FormatError.
    """
    with contextlib.ExitStack() as held:
        if not is_mounted(folder):
            if not job_state.has_ended(folder):
                raise launch.in_use(folder, job_state.read(folder))
            held.enter_context(launch.serving(folder, config_to_check(folder, where)))
        yield held.enter_context(ControlClient(folder.socket))


def is_mounted(folder: VolumeFolder) -> bool:
    """Whether a living job serves the volume at a mount point."""
    state = job_state.read(folder)
    return (
        state.get("state") == job_state.READY
        and bool(state.get("mountpoint"))
        and job_state.process(state, "rank0") is not None
    )


def config_to_check(folder: VolumeFolder, where: WhereRanksRun) -> JobConfig:
    """The job that checks a volume at rest, on the hosts of the last job unless others are said."""
    last, folders = _last(folder), _store_numbers(folder)
    workers = _workers_of_index(folder) or (last.workers if last else 0)
    workers = max(workers or _highest(folders), len(folders))  # the index may have forgotten one
    if not workers:
        raise FormatError(
            f"how many workers {folder.path} has cannot be told: neither its index nor a store is "
            "here; run mpifs fsck with --host naming the host of each worker"
        )
    hosts, agent, mpi = where.hosts, where.launch_agent, where.mpi
    if last is not None:
        if not hosts and len(last.hosts) == workers:
            hosts, agent = last.hosts, agent or last.launch_agent
        mpi = mpi or last.mpi
    return JobConfig(
        job="",
        volume=folder.path,
        mountpoint="",
        workers=workers,
        hosts=job_hosts.spread(hosts, workers) if hosts else [],
        launch_agent=agent,
        mpi=mpi,
        task=job_config.FSCK,
    )


def _last(folder: VolumeFolder) -> JobConfig | None:
    try:
        return job_config.read(folder)
    except StartError:
        return None


def _workers_of_index(folder: VolumeFolder) -> int:
    """From the table of stores, read without LMDB: a damaged tree could end the process."""
    try:
        file = PageFile(os.path.join(folder.index, "data.mdb"))
    except (MpifsError, OSError):
        return 0
    with contextlib.closing(file):
        for key, value in file.rows(records.META):
            if key == records.KEY_STORES:
                with contextlib.suppress(MpifsError):
                    return len(records.decode_stores(bytes(value)))
    return 0


def _store_numbers(folder: VolumeFolder) -> list[int]:
    """Of the folders of stores on this host, whatever is in them."""
    try:
        found = [_WORKER.match(name) for name in os.listdir(folder.path)]
    except OSError:
        return []
    return [int(match[1]) for match in found if match]


def _highest(numbers: list[int]) -> int:
    return min(max(numbers, default=0), STORES_MAX)
