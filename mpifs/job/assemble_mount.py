"""What `mpifs mount` does: checks, the volume on first use, a job of our own or a given one."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from mpifs.core.errors import FormatError
from mpifs.job import hosts as job_hosts
from mpifs.job import launch
from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder, is_volume, volume_of
from mpifs.job.make import Geometry, check_workers, made_on_first_use, worker_count
from mpifs.job.mounts import check_mountpoint
from mpifs.job.options import parse_options, split_words

if TYPE_CHECKING:
    from mpifs.job.run_escort import Escort
    from mpifs.job.signals import SignalGate


@dataclass(frozen=True, slots=True)
class MountRequest:
    """The command line of mount."""

    store: str
    mountpoint: str
    options: list[str]
    hosts: list[str]
    launch_agent: str
    mpi: str
    geometry: Geometry
    local: str = ""
    """Of --local: the hosts' folder for the ranks' own files."""


def default_workers(store: str, slots: int) -> int | None:
    """Workers of a volume that is made on hosts: one per slot; None when the volume is there."""
    return None if is_volume(store) else slots


def config_of(request: MountRequest, folder: VolumeFolder, workers: int) -> JobConfig:
    """The job of a mount.  Raises OSError with what is wrong about the mount point."""
    words = split_words(request.options)
    return JobConfig(
        job="",
        volume=folder.path,
        mountpoint=check_mountpoint(os.path.abspath(request.mountpoint)),
        workers=workers,
        options=words,
        hosts=job_hosts.spread(request.hosts, workers) if request.hosts else [],
        launch_agent=request.launch_agent,
        mpi="" if request.mpi == "auto" else request.mpi,
        restarts=parse_options(words, folder.path).restarts,
        local=_local(request),
    )


def _local(request: MountRequest) -> str:
    """The hosts' folder for the ranks' files.  Raises FormatError for one inside the mount, which
    would wait for itself."""
    if not request.local:
        return ""
    path, mountpoint = os.path.realpath(request.local), os.path.realpath(request.mountpoint)
    if os.path.commonpath([path, mountpoint]) == mountpoint:
        raise FormatError(f"--local {request.local} lies in the mount; give a local disk's folder")
    return os.path.abspath(request.local)


def mount(request: MountRequest, *, foreground: bool) -> int:
    """Mounts by a job of our own; the exit code.  Raises OSError with what is wrong."""
    parse_options(split_words(request.options), request.store)
    check_mountpoint(os.path.abspath(request.mountpoint))
    with made_on_first_use(request.store, request.geometry) as folder:
        count = worker_count(folder)
        check_workers(folder, request.geometry.workers, count)
        config = config_of(request, folder, count)
        if foreground:
            return launch.run_foreground(config)
        launch.start(config)
    return 0


def in_given_world(
    request: MountRequest,
    gate: SignalGate,
    escort: Escort | None = None,
    *,
    scratch: bool = False,
) -> NoReturn:
    """Mounts by the ranks that the user's launcher started: rank 0 comes here, and so do the
    workers.  `escort` and `scratch` are those of `mpifs run`.  Ends the process."""
    from mpifs.job import rank
    from mpifs.job.run_volume import volume_for

    volume = os.path.realpath(request.store)
    with contextlib.ExitStack() as held:

        def configure(workers: int) -> JobConfig:
            if parse_options(split_words(request.options), request.store).restarts:
                raise FormatError(
                    "mount option 'restart': these ranks were started by a launcher of your own, "
                    "which mpifs cannot start again; leave it out"
                )
            check_mountpoint(os.path.abspath(request.mountpoint))
            geometry = request.geometry
            # A scratch volume that is there was forgotten by another run and is made anew.
            if geometry.workers is None and (scratch or not is_volume(volume)):
                geometry = replace(geometry, workers=workers)
            made = volume_for(volume, geometry, scratch=scratch)
            folder, removal = held.enter_context(made)
            count = worker_count(folder)
            check_workers(folder, workers, count)
            held.enter_context(launch.hold(folder))
            config = config_of(request, folder, count)
            if escort is not None:
                config = replace(config, owner=escort.owner, removal=removal)
            return launch.prepare(config, is_own=False)

        rank.run_rank(volume, gate, configure, is_own=False, escort=escort)


def config_at_rest(place: str) -> JobConfig:
    """The job that serves a volume without a mount, for commands on files; see launch.serving."""
    folder = volume_of(place)
    return JobConfig(job="", volume=folder.path, mountpoint="", workers=worker_count(folder))
