"""run/state.json: what a volume's job is doing, for those who wait for it or clean up after it.

Several processes write it, each its own fields: the launcher makes it, the supervisor adds the
processes and the end, rank 0 adds what it serves.  Every change is read-change-rename under a
lock, so that a reader never sees half of it.  Standard library only.

    starting ──rank 0: serving──▶ ready ──rank 0: asked to stop──▶ stopping ──▶ stopped
        └──────▶ failed             └──────supervisor: rank 0 is gone──────▶ crashed
                                    │                          restarts used up ▲
                                    └───── -o restart=N ─────▶ restarting ──────┘──▶ ready
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable
from typing import Any

from mpifs.job.folder import VolumeFolder
from mpifs.job.processes import Process, boot_id, from_json
from mpifs.notefile import write_note

STARTING = "starting"
RESTARTING = "restarting"
READY = "ready"
STOPPING = "stopping"
STOPPED = "stopped"
FAILED = "failed"
CRASHED = "crashed"
ENDED = (STOPPED, FAILED, CRASHED)
BEGINNING = (STARTING, RESTARTING)
LIVE = (STARTING, RESTARTING, READY, STOPPING)

State = dict[str, Any]
"""Keys: job, state, reason, since, boot, volume, mountpoint, scratch (the job's TMPDIR),
restarts (how often it was restarted) and crash (the last reason for it), fault (why rank 0 ended
itself, written by it), supervisor, launcher, master (rank 0 from its first moment) and rank0 (the
same once it has served; each [pid, start]), shm ([[path, inode]]), workers ([{id, rank, host,
pid}])."""


def read(folder: VolumeFolder) -> State:
    """The state as last written; {} when there is none or it cannot be read."""
    try:
        with open(folder.state, encoding="utf-8", errors="surrogateescape") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def update(
    folder: VolumeFolder, fields: State, *, only_if: Callable[[State], bool] | None = None
) -> bool:
    """Sets some fields at once, unless `only_if` of the present state is false."""
    lock = os.open(folder.state + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        present = read(folder)
        if only_if is not None and not only_if(present):
            return False
        write_note(folder.state, {**present, **fields}, is_durable=False)
        return True
    finally:
        os.close(lock)


def begin(folder: VolumeFolder, job: str, mountpoint: str, scratch: str) -> None:
    """A new job: everything known of the last one is dropped."""
    write_note(
        folder.state,
        {
            "job": job,
            "state": STARTING,
            "reason": "",
            "since": time.time(),
            "boot": boot_id(),
            "volume": folder.path,
            "mountpoint": mountpoint,
            "scratch": scratch,
        },
        is_durable=False,
    )


def change(folder: VolumeFolder, job: str, name: str, reason: str = "", **more: Any) -> bool:
    """Goes to the state `name`, if this is still that job and it has not ended before."""
    return update(
        folder,
        {"state": name, "reason": reason, "since": time.time(), **more},
        only_if=lambda state: state.get("job") == job and state.get("state") not in ENDED,
    )


def restart(folder: VolumeFolder, reason: str, restarts: int, scratch: str) -> None:
    """The job begins anew after it has been cleared away, whatever its state was.

    Requires: the caller is its supervisor.
    """
    update(
        folder,
        {
            "state": RESTARTING,
            "reason": reason,
            "since": time.time(),
            "restarts": restarts,
            "crash": reason,
            "scratch": scratch,
            "rank0": None,
            "master": None,
            "launcher": None,
            "shm": [],
            "fault": "",
        },
    )


def process(state: State, role: str) -> Process | None:
    """The living process of a role (supervisor, launcher, rank0), or None."""
    if state.get("boot") != boot_id():
        return None
    found = from_json(state.get(role))
    return found if found is not None and found.is_alive else None


def is_served(state: State) -> bool:
    """Whether the job's supervisor or rank 0 lives."""
    return any(process(state, role) is not None for role in ("supervisor", "rank0"))


def has_ended(folder: VolumeFolder) -> bool:
    """Whether the state says so, or nobody is left who could say it."""
    state = read(folder)
    return state.get("state") in ENDED or not is_served(state)


def lock_volume(folder: VolumeFolder) -> int | None:
    """Takes the volume for a job: a descriptor that holds it, or None when it is held."""
    os.makedirs(folder.run, mode=0o700, exist_ok=True)
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def log_line(folder: VolumeFolder, text: str) -> None:
    """One line in the volume's log, best effort."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError), open(folder.log, "a", encoding="utf-8") as file:
        file.write(f"{stamp} launcher: {text}\n")
