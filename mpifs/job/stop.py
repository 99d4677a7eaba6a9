"""Ends a volume's job: flush, unmount, end of all ranks; returns when all of it has gone."""

from __future__ import annotations

import errno
import os
import signal
import time

from mpifs.core.errors import MpifsError, PosixError, StartError
from mpifs.fuse.kernel_mounts import is_dead
from mpifs.job import leftovers, supervise
from mpifs.job import state as job_state
from mpifs.job.control import ControlClient
from mpifs.job.folder import VolumeFolder
from mpifs.job.mounts import clear_dead, mount_at, mounts_of, users_of
from mpifs.job.processes import Process, marked_with, send, wait_gone
from mpifs.job.sessions import restarting_at

GONE_TIMEOUT_S = supervise.STOP_DEADLINE_S + supervise.EXIT_GRACE_S
_BUSY = (errno.EBUSY, errno.EAGAIN)


def unmount(mountpoint: str) -> str:
    """`mpifs umount`: ends the job behind a mount point; returns a sentence of what was done.

    Raises PosixError(EBUSY) naming the processes that use the mount, nothing is changed then;
    PosixError(EINVAL) when nothing of mpifs is mounted there.
    """
    mount = mount_at(mountpoint)
    if mount is None or not mount.is_ours:
        returning = restarting_at(os.path.realpath(mountpoint))
        if not returning:
            raise PosixError(errno.EINVAL, f"{mountpoint} is not a mount of mpifs")
        end(VolumeFolder(returning))
        return f"{mountpoint} was dead and about to come back; the restart was ended"
    folder = VolumeFolder(mount.source)
    if is_dead(mount.mountpoint):
        clear_dead(mount.mountpoint)
        end(folder)
        return f"{mountpoint} was a dead mount; it was cleared"
    try:
        end(folder)
    except PosixError as error:
        if error.errno not in _BUSY:
            raise
        raise PosixError(errno.EBUSY, _busy(mountpoint, users_of(mount.mountpoint))) from None
    return f"{mountpoint} was unmounted"


def _busy(mountpoint: str, pids: list[int]) -> str:
    if not pids:
        return f"{mountpoint} is in use; close what uses it and try again"
    names = ", ".join(f"{pid} ({_name_of(pid)})" for pid in pids[:8])
    more = f" and {len(pids) - 8} more" if len(pids) > 8 else ""
    return f"{mountpoint} is in use by process {names}{more}; end them and try again"


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
            return file.read().strip()
    except OSError:
        return "ended"


def end(folder: VolumeFolder, *, although_busy: bool = False) -> None:
    """Asks rank 0 to unmount and stop, and waits until every process of the job has gone.

    A job whose rank 0 is dead already is cleared away, and not restarted.  `although_busy`: a mount
    that is in use is taken away from its users after a moment.
    Raises PosixError(EBUSY) when the mount is in use (nothing has changed then), StartError when
    the job did not end in time or did not end well.  Requires: the job is not starting.
    """
    state = job_state.read(folder)
    everyone = _processes_of(state)
    rank0 = job_state.process(state, "rank0")
    if rank0 is not None:
        try:
            with ControlClient(folder.socket, supervise.STOP_DEADLINE_S) as client:
                client.call("stop")
        except PosixError as error:
            if error.errno in _BUSY and not although_busy:
                raise
            send(rank0, signal.SIGTERM)  # rank 0 does the same on a signal.
        except MpifsError:
            send(rank0, signal.SIGTERM)
    else:
        supervisor = job_state.process(state, "supervisor")
        if supervisor is not None and supervisor.pid != os.getpid():
            send(supervisor, signal.SIGTERM)
    left = _wait(folder, everyone)
    if left or mounts_of(folder.path):
        raise StartError(
            f"the job of {folder.path} did not end within {GONE_TIMEOUT_S:g} s "
            f"(processes {', '.join(str(p.pid) for p in left)}); its log: {folder.log}"
        )
    _sweep(folder)
    after = job_state.read(folder)
    was_serving = rank0 is not None
    if (
        was_serving
        and after.get("state") != job_state.STOPPED
        and after.get("job") == state.get("job")
    ):
        raise StartError(f"{after.get('reason') or 'the job ended badly'} (log: {folder.log})")


def _processes_of(state: job_state.State) -> list[Process]:
    found = marked_with(str(state.get("job", "-")))
    for role in ("supervisor", "launcher", "rank0"):
        process = job_state.process(state, role)
        if process is not None and process.pid != os.getpid():
            found.append(process)
    return list(dict.fromkeys(found))


def _wait(folder: VolumeFolder, everyone: list[Process]) -> list[Process]:
    deadline = time.monotonic() + GONE_TIMEOUT_S
    left = everyone
    while left and time.monotonic() < deadline:
        left = wait_gone(left, 1.0)
        state = job_state.read(folder)
        is_over = job_state.process(state, "rank0") is None
        if left and is_over and job_state.process(state, "supervisor") is None:
            _sweep(folder)  # nobody else is left who could end them.
    return left


def _sweep(folder: VolumeFolder) -> None:
    """Clears what a job left whose supervisor is dead; does nothing while one lives."""
    if not os.path.isdir(folder.run):
        return  # the volume has gone with its job.
    lock = job_state.lock_volume(folder)
    if lock is None:
        return
    try:
        state = job_state.read(folder)
        if state.get("job") and job_state.process(state, "rank0") is None:
            leftovers.clean(folder)
            if state.get("state") in job_state.LIVE:
                reason = "the job ended without a word; cleared by mpifs umount"
                job_state.change(folder, state["job"], job_state.CRASHED, reason)
    finally:
        os.close(lock)
