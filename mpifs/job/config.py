"""What a job is asked to do: made by `mpifs mount`, read by the supervisor and by rank 0.

Stored as run/config.json.  Workers need nothing of it: they learn all from rank 0, because on
another host the file is not there.  Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from mpifs.core.errors import StartError
from mpifs.job.folder import VolumeFolder
from mpifs.notefile import write_note

SERVE = "serve"
FSCK = "fsck"
TRANSFER = "transfer"


@dataclass(frozen=True, slots=True)
class JobConfig:
    """One job.  Paths are absolute; bytes that are no UTF-8 stand as surrogates."""

    job: str
    volume: str
    mountpoint: str
    """"" = no mount (`put`, `ls` and the like on an unmounted volume)."""
    workers: int
    options: list[str] = field(default_factory=list)
    """What -o gave, cut at the commas."""
    hosts: list[str] = field(default_factory=list)
    """Host of each worker; empty = all on this one."""
    launch_agent: str = ""
    mpi: str = ""
    scratch: str = ""
    """TMPDIR of the job, made for it and removed with it."""
    restarts: int = 0
    """How often the supervisor brings the volume back after a crash."""
    task: str = SERVE
    """What rank 0 does: SERVE the volume, FSCK it (which starts whatever is missing), or TRANSFER
    files between the ranks' local disks, without a volume."""
    local: str = ""
    """--local DIR: below it each rank of a host has a folder `rank-K`; "" = no transfers."""
    owner: list[int] = field(default_factory=list)
    """`mpifs run`: [pid, start] of the process without which the job ends; else empty."""
    removal: str = ""
    """`mpifs run --scratch`: what goes with the job, run_scratch.ALL or CONTENTS; "" = nothing."""

    @property
    def folder(self) -> VolumeFolder:
        """The volume's folder."""
        return VolumeFolder(self.volume)


def write(config: JobConfig) -> None:
    """Stores it in the volume's run folder."""
    write_note(config.folder.config, asdict(config), is_durable=False)


def read(folder: VolumeFolder) -> JobConfig:
    """Raises StartError when it is missing or no configuration of this mpifs."""
    try:
        with open(folder.config, encoding="utf-8") as file:
            return JobConfig(**json.load(file))
    except (OSError, ValueError, TypeError) as error:
        raise StartError(f"{folder.config} cannot be read ({error}); mount again") from None
