"""Session folders, and which volume comes back at a mount point that is empty at the moment.

While a crashed volume is restarted the kernel's table does not name it.  So the job's session
folder, `mpifs-…` of the user's own below /tmp, says so in `restart.json`.  Standard library only:
the supervisor imports it.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tempfile

from mpifs.job import processes

SCRATCH_PREFIX = "mpifs-"
_NAME = "restart.json"


def make_scratch() -> str:
    """A TMPDIR for one job's MPI session files.  Short and on /tmp: sockets are made in it."""
    return tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=_parent())


def _parent() -> str:
    return "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()


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
