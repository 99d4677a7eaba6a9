"""Takes away what a job left that did not end by itself: dead mount, processes, shared memory,
session folder.  Only things that are recorded in the job's state or carry its mark.

Standard library only: the supervisor imports it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

from mpifs.fuse.kernel_mounts import is_dead
from mpifs.job import state as job_state
from mpifs.job.folder import VolumeFolder
from mpifs.job.mounts import mounts_of, unmount
from mpifs.job.processes import kill, marked_with, send, shared_memory_of, wait_gone
from mpifs.job.sessions import SCRATCH_PREFIX

LAUNCHER_GRACE_S = 2.0


def end_processes(state: job_state.State) -> list[str]:
    """Ends every process of the job but the caller; what could not be ended.

    Ranks first and at once, because the disk needs no farewell and a rank may hold the launcher
    stopped; then the launcher gets a chance to end its helpers on other hosts.
    """
    job = str(state.get("job", ""))
    if not job:
        return []
    launcher = job_state.process(state, "launcher")
    others = [p for p in marked_with(job) if p != launcher]
    recorded = job_state.process(state, "rank0")
    if recorded is not None and recorded not in others:
        others.append(recorded)
    kill(others)
    if launcher is not None:
        send(launcher, signal.SIGTERM)
        send(launcher, signal.SIGCONT)
        if wait_gone([launcher], LAUNCHER_GRACE_S):
            kill([launcher])
    left = kill(marked_with(job))
    return [f"process {process.pid} cannot be ended" for process in left]


def remember_shared_memory(folder: VolumeFolder, state: job_state.State) -> None:
    """Records which files in /dev/shm belong to the job, so that they can be removed later."""
    files = shared_memory_of(marked_with(str(state.get("job", ""))))
    job_state.update(
        folder,
        {"shm": [list(entry) for entry in files]},
        only_if=lambda present: present.get("job") == state.get("job"),
    )


def remove_files(state: job_state.State) -> None:
    """Removes the job's shared memory and session folder, if they are still those of the job."""
    for entry in state.get("shm") or []:
        with contextlib.suppress(OSError, TypeError, ValueError):
            path, number = entry
            if str(path).startswith("/dev/shm/") and os.stat(path).st_ino == number:
                os.unlink(path)
    scratch = str(state.get("scratch") or "")
    if os.path.basename(scratch).startswith(SCRATCH_PREFIX) and not os.path.islink(scratch):
        shutil.rmtree(scratch, ignore_errors=True)


def clear_mounts(folder: VolumeFolder, *, only_dead: bool) -> list[str]:
    """Lazily unmounts what is mounted of this volume; reasons for what could not be."""
    reasons = []
    for mount in mounts_of(folder.path):
        if only_dead and not is_dead(mount.mountpoint):
            continue
        reason = unmount(mount.mountpoint, lazy=True)
        if reason and any(m.mountpoint == mount.mountpoint for m in mounts_of(folder.path)):
            reasons.append(reason)
    return reasons


def clean(folder: VolumeFolder) -> list[str]:
    """Everything above, for the job in the volume's state; what could not be done.

    Requires: nobody serves the volume any more (its lock is held by the caller).
    """
    state = job_state.read(folder)
    # What a start that is cut off has mapped was not recorded yet.
    mapped = shared_memory_of(marked_with(str(state["job"]))) if state.get("job") else []
    state["shm"] = [*(state.get("shm") or []), *mapped]
    reasons = end_processes(state)
    reasons += clear_mounts(folder, only_dead=False)
    remove_files(state)
    with contextlib.suppress(OSError):
        os.unlink(folder.socket)
    return reasons
