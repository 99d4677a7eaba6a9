"""What lies where in a volume's folder, and which volume a user means by STORE or MNT.

Standard library only: the supervisor imports it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from mpifs.core.errors import FormatError
from mpifs.job.mounts import mount_at
from mpifs.job.sessions import restarting_at

_WORKER = re.compile(r"worker-[1-9][0-9]*\Z")


@dataclass(frozen=True, slots=True)
class VolumeFolder:
    """Paths inside STORE; `path` is absolute.  Nothing here touches the disk."""

    path: str

    @property
    def index(self) -> str:
        """Rank 0's metadata index."""
        return os.path.join(self.path, "index")

    @property
    def run(self) -> str:
        """What belongs to a job and not to the volume: log, socket, state."""
        return os.path.join(self.path, "run")

    @property
    def log(self) -> str:
        """Output of all ranks and of the supervisor."""
        return os.path.join(self.run, "mpifs.log")

    @property
    def socket(self) -> str:
        """Rank 0's control socket."""
        return os.path.join(self.run, "control.sock")

    @property
    def state(self) -> str:
        """What the job is doing; see state.py."""
        return os.path.join(self.run, "state.json")

    @property
    def config(self) -> str:
        """What the job was asked to do; see config.py."""
        return os.path.join(self.run, "config.json")

    @property
    def lock(self) -> str:
        """Held (flock) by the launcher and then the supervisor as long as the job lives."""
        return os.path.join(self.run, "lock")

    def store(self, number: int) -> str:
        """Folder of one chunk store."""
        return os.path.join(self.path, f"worker-{number}")


def is_volume(path: str) -> bool:
    """Whether the folder holds a volume's index."""
    return os.path.exists(os.path.join(path, "index", "superblock"))


def has_stores(path: str) -> bool:
    """Whether the folder holds chunk stores."""
    try:
        return any(_WORKER.match(name) for name in os.listdir(path))
    except OSError:
        return False


def volume_of(place: str) -> VolumeFolder:
    """The volume that `place` names: its folder, or a mount point of it (also a dead one, and one
    where it is just being restarted).

    Raises FormatError with a sentence when it is neither.
    """
    path = os.path.abspath(place)
    mount = mount_at(path)
    if mount is not None and mount.is_ours:
        return VolumeFolder(mount.source)
    returning = restarting_at(os.path.realpath(path))
    if returning:
        return VolumeFolder(returning)
    if is_volume(path):
        return VolumeFolder(os.path.realpath(path))
    if mount is not None:
        raise FormatError(f"{place} is a mount of type {mount.kind}, not of mpifs")
    if not os.path.exists(path):
        raise FormatError(f"{place} does not exist; make a volume with: mpifs mkfs {place}")
    if has_stores(path):
        raise FormatError(f"{place} holds chunk stores without an index; run: mpifs fsck {place}")
    raise FormatError(f"{place} is neither a volume nor the mount point of one")
