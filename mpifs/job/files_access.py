"""How commands get at a volume's files: through its mount if it has one, else by starting ranks.

A mounted volume is reached through its mount point, so that the kernel's caches stay right; an
unmounted one through a job without a mount, which ends with the command.  Two commands on one
unmounted volume take turns: the second waits for the first one's job to end.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from mpifs.core.errors import InUseError, PosixError, StartError
from mpifs.core.limits import (
    COMMAND_POLL_S,
    COMMAND_TURN_S,
)
from mpifs.fuse.kernel_mounts import is_dead
from mpifs.job import assemble_mount, launch
from mpifs.job import config as job_config
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.control import ControlClient
from mpifs.job.files_local import MountedFiles
from mpifs.job.files_protocol import Files
from mpifs.job.files_remote import RemoteFiles
from mpifs.job.folder import VolumeFolder
from mpifs.job.mounts import mounts_of
from mpifs.job.signals import term_as_interrupt


class Volumes:
    """Opens volumes on first use and ends what it started with the block.

    Leaving the block raises when a job that was started could not save everything.
    """

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self._files: dict[str, Files] = {}

    def __enter__(self) -> Volumes:
        self._held.__enter__()
        self._held.enter_context(_end_as_interrupt())
        return self

    def __exit__(self, *what: object) -> None:
        self._held.__exit__(*what)  # type: ignore[arg-type]  # the three of the protocol.

    def files_of(self, folder: VolumeFolder) -> Files:
        """The files of one volume; the same object each time."""
        files = self._files.get(folder.path)
        if files is None:
            files = self._files[folder.path] = self._held.enter_context(open_files(folder))
        return files


@contextlib.contextmanager
def open_files(folder: VolumeFolder) -> Iterator[Files]:
    """The files of one volume.

    Raises InUseError when another command keeps an unmounted volume for too long, StartError when
    the ranks do not start.
    """
    with contextlib.ExitStack() as held:
        yield _enter(folder, held)


def _enter(folder: VolumeFolder, held: contextlib.ExitStack) -> Files:
    deadline_s = time.monotonic() + COMMAND_TURN_S
    while True:
        mounted = _mounted(folder, held)
        if mounted is not None:
            return mounted
        try:
            if not job_state.has_ended(folder):
                raise launch.in_use(folder, job_state.read(folder))
            held.enter_context(launch.serving(folder, config_at_rest(folder)))
        except InUseError:
            if job_state.read(folder).get("mountpoint") or time.monotonic() > deadline_s:
                raise
            time.sleep(COMMAND_POLL_S)
            continue
        return RemoteFiles(held.enter_context(ControlClient(folder.socket)))


def _mounted(folder: VolumeFolder, held: contextlib.ExitStack) -> Files | None:
    """The files through a mount that this process sees and that answers."""
    for mount in reversed(mounts_of(folder.path)):
        if is_dead(mount.mountpoint):
            continue
        root = mount.mountpoint.rstrip("/").encode("utf-8", "surrogateescape")
        client = None
        try:
            client = held.enter_context(ControlClient(folder.socket))
        except PosixError as error:
            # Another user's mount with allow_other: its folder is closed to us, the mount is not.
            if error.errno not in (errno.EACCES, errno.ECONNREFUSED):
                raise
        return MountedFiles(root, client)
    return None


def config_at_rest(folder: VolumeFolder) -> JobConfig:
    """As for the last mount where its stores are on other hosts: only there are they found."""
    config = assemble_mount.config_at_rest(folder.path)
    try:
        last = job_config.read(folder)
    except StartError:
        return config
    if not last.hosts or len(last.hosts) != config.workers:
        return replace(config, mpi=last.mpi)
    return replace(config, mpi=last.mpi, hosts=last.hosts, launch_agent=last.launch_agent)


@contextlib.contextmanager
def _end_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, so that its job ends with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with term_as_interrupt((signal.SIGTERM, signal.SIGHUP)):
        yield
