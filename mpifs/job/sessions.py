"""Session folders, and which volume comes back at a mount point that is empty at the moment.

While a crashed volume is restarted the kernel's table does not name it.  So the job's session
folder, `mpifs-…` of the user's own below /tmp, says so in `restart.json`.  Standard library only:
the supervisor imports it.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator

from mpifs.job import processes

SCRATCH_PREFIX = "mpifs-"
_TRANSFER_PREFIX = "mpifs-transfer-"
_OWNER = "owner"
_NAME = "restart.json"


def make_scratch() -> str:
    """A TMPDIR for one job's MPI session files.  Short and on /tmp: sockets are made in it."""
    return tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=_parent())


def _parent() -> str:
    return "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()


@contextlib.contextmanager
def transfer_folder() -> Iterator[str]:
    """The folder of a job that moves files for the calling command and has no volume; it goes with
    the block, or with the job's supervisor if this process is killed (remove_ownerless)."""
    path = tempfile.mkdtemp(prefix=_TRANSFER_PREFIX, dir=_parent())
    owner = os.open(os.path.join(path, _OWNER), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(owner, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(owner)


def remove_ownerless(path: str) -> bool:
    """Removes the folder of a transfer whose command has gone; whether it was one.

    Requires: its job has ended.
    """
    if not os.path.basename(path).startswith(_TRANSFER_PREFIX) or os.path.islink(path):
        return False
    try:
        owner = os.open(os.path.join(path, _OWNER), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(owner)
    shutil.rmtree(path, ignore_errors=True)
    return True


def transfer_folders() -> list[str]:
    """All such folders of this user."""
    found = []
    for path in glob.glob(os.path.join(_parent(), f"{_TRANSFER_PREFIX}*", _OWNER)):
        with contextlib.suppress(OSError):
            if os.lstat(os.path.dirname(path)).st_uid == os.geteuid():
                found.append(os.path.dirname(path))
    return found


def note_restart(scratch: str, volume: str, mountpoint: str) -> None:
    """Says in a session folder that the calling supervisor brings a volume back."""
    document = {
        "volume": volume,
        "mountpoint": mountpoint,
        "supervisor": list(processes.this_process()),
    }
    with open(os.path.join(scratch, _NAME), "w", encoding="utf-8") as file:
        json.dump(document, file)


def restarting_at(mountpoint: str) -> str:
    """Folder of the volume that is being restarted at `mountpoint` (a true path), or ""."""
    for path in glob.glob(os.path.join(_parent(), f"{SCRATCH_PREFIX}*", _NAME)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if os.lstat(os.path.dirname(path)).st_uid != os.geteuid():
                continue
            with open(path, encoding="utf-8") as file:
                document = json.load(file)
            supervisor = processes.from_json(document["supervisor"])
            is_alive = supervisor is not None and supervisor.is_alive
            if is_alive and document["mountpoint"] == mountpoint:
                return str(document["volume"])
    return ""
