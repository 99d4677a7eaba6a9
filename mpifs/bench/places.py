"""Where workloads run: the volume or folder to be measured, the null file system, the plain disk.

Each place has one folder that the run makes and removes; nothing else is written there.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from mpifs.bench.cold import drop_file
from mpifs.core.errors import FormatError, MpifsError, PosixError
from mpifs.core.limits import STATUS_TIMEOUT_S
from mpifs.datafile import DATA_NAME
from mpifs.fuse.kernel_mounts import mounts
from mpifs.job.control import ControlClient
from mpifs.job.folder import VolumeFolder

FOLDER_PREFIX = ".mpifs-bench-"
NAMES_EXPIRE_S = 1.1
"""By then the kernel asks a mount with FUSE's usual time-outs again (1 s)."""

SETTLE_S = 5.0
_SETTLE_LOOK_S = 0.1
_CALM_SHARE = 0.15  # of a core, over all ranks: one tick of the clock is a tenth.


@dataclass(slots=True)
class Place:
    """A folder to work in.  What the workloads have left in it is noted here, so that each phase
    finds, or makes, what it needs."""

    name: str
    folder: str
    keeps_data: bool = True
    """The null file system does not: its bytes are not checked."""
    volume: VolumeFolder | None = None
    master: int = 0
    """Process that serves it: rank 0, or the null file system; 0 = unknown."""
    workers: list[int] = field(default_factory=list)
    """Processes of the workers on this host."""
    seeds: dict[str, int] = field(default_factory=dict)
    """Seed of what each large file holds."""
    small_count: int = 0
    extras: dict[str, float] = field(default_factory=dict)
    """Figures that a phase has found on the way to its own."""
    touched_s: float = 0.0

    def path(self, name: str) -> str:
        """A file of the place."""
        return os.path.join(self.folder, name)

    def touch(self) -> None:
        """Names of the place have just been used: the kernel knows them for a while."""
        self.touched_s = time.monotonic()

    def forget_names(self) -> None:
        """Waits until the kernel would ask the file system for names and attributes again."""
        time.sleep(max(0.0, self.touched_s + NAMES_EXPIRE_S - time.monotonic()))

    def drop_own_caches(self) -> None:
        """What the file system itself keeps, as far as mpifs knows how; the kernel's pages of the
        place's own files are dropped by the workload `drop`."""
        self.drop_chunks()
        if self.volume is None:
            return
        for data in glob.glob(f"{glob.escape(self.volume.path)}/worker-*/*/{DATA_NAME}"):
            drop_file(data, self.workers)

    def drop_chunks(self) -> None:
        """The chunks that rank 0 keeps; not what the kernel has of the stores' files."""
        if self.volume is not None:
            with ControlClient(self.volume.socket) as client:
                client.call("drop_caches")

    def settle(self) -> None:
        """Waits until what the volume does behind its users' backs (deleting what was removed) is
        done, which shows in its processor time; but not for ever."""
        deadline = time.monotonic() + SETTLE_S
        while self.volume is not None and time.monotonic() < deadline:
            before = self.processor_s()
            time.sleep(_SETTLE_LOOK_S)
            after = self.processor_s()
            if before is None or after is None or after - before < _CALM_SHARE * _SETTLE_LOOK_S:
                return

    def processor_s(self) -> float | None:
        """Processor time that the file system's processes have used; None if they are unknown, or
        one of them has ended."""
        if not self.master:
            return None
        ticks = 0
        try:
            for pid in (self.master, *self.workers):
                fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except OSError:
            return None
        return ticks / os.sysconf("SC_CLK_TCK")

    def stored_bytes(self) -> int | None:
        """Bytes that the file system's processes have written to disk files so far."""
        if self.volume is None or not self.master:
            return None
        try:
            return sum(
                int(_text(f"/proc/{pid}/io").split("\nwrite_bytes:")[1].split()[0])
                for pid in (self.master, *self.workers)
            )
        except (OSError, IndexError):
            return None

    def memory_mib(self) -> tuple[float | None, float | None]:
        """Most resident MiB of the master so far; the largest worker without pages of its store."""
        if not self.master:
            return None, None
        try:
            held = [_kib(pid, "RssAnon") + _kib(pid, "RssShmem") for pid in self.workers]
            return _kib(self.master, "VmHWM") / 1024, max(held) / 1024 if held else None
        except (OSError, IndexError):
            return None, None


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _kib(pid: int, field_name: str) -> int:
    return int(_text(f"/proc/{pid}/status").split(f"{field_name}:")[1].split()[0])


@contextlib.contextmanager
def folder_in(where: str) -> Iterator[str]:
    """A new folder, removed with all its content at the end.  Raises OSError.

    While something is mounted below it nothing is removed: what lies there is somebody's data.
    """
    path = os.path.realpath(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=where))
    try:
        yield path
    finally:
        if not any(mount.mountpoint.startswith(path + "/") for mount in mounts()):
            shutil.rmtree(path, ignore_errors=True)


def volume_around(path: str) -> VolumeFolder | None:
    """The mounted volume in which a folder lies, or None."""
    real = os.path.realpath(path)
    best = None
    for mount in mounts():
        if real == mount.mountpoint or real.startswith(mount.mountpoint.rstrip("/") + "/"):
            best = mount
    return VolumeFolder(best.source) if best is not None and best.is_ours else None


def know_processes(place: Place) -> dict[str, object]:
    """Asks a volume's rank 0 who serves it, and fills that in; gives the `volume` of its status."""
    assert place.volume is not None
    with ControlClient(place.volume.socket, STATUS_TIMEOUT_S) as client:
        document = client.call("status")
    place.master = int(document["mount"]["pid"])
    node = os.uname().nodename
    here = (node, node.partition(".")[0], None)
    place.workers = [
        worker["pid"]
        for worker in document["workers"]
        if worker["pid"] and worker["host"] in here and os.path.exists(f"/proc/{worker['pid']}")
    ]
    volume: dict[str, object] = document["volume"]
    return volume


def check_room(where: str, needed_bytes: int) -> None:
    """Raises PosixError(ENOSPC) with a sentence if a file system is too full for the run."""
    room = os.statvfs(where)
    free = room.f_bavail * room.f_frsize
    if free < needed_bytes:
        raise PosixError(
            errno.ENOSPC,
            f"{where} has {free >> 20} MiB free and the run needs {needed_bytes >> 20}; "
            "give a smaller --size",
        )


def check_folder(path: str, advice: str = "make it first") -> str:
    """A folder that can be measured, absolute.  Raises MpifsError with a sentence, which has the
    `advice` if nothing is there."""
    full = os.path.abspath(path)
    try:
        is_folder = stat.S_ISDIR(os.stat(full).st_mode)
    except FileNotFoundError:
        raise PosixError(errno.ENOENT, f"{path} does not exist; {advice}") from None
    except OSError as error:
        raise PosixError(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
    if not is_folder:
        raise FormatError(f"{path} is no folder; name a volume, a mount or a folder")
    if not os.access(full, os.W_OK | os.X_OK):
        raise MpifsError(f"{path} cannot be written to; name a folder of your own", errno.EACCES)
    return full
