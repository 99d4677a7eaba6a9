"""A volume under test: mounted by the real command, cleaned up whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mpifs.core.limits import FINALIZE_TIMEOUT_S
from mpifs.job import state as job_state
from mpifs.job.folder import VolumeFolder
from mpifs.job.mounts import mount_at, unmount
from mpifs.job.processes import kill, marked_with, wait_gone

ROOT = Path(__file__).resolve().parents[2]
GONE_S = 20.0


def mpifs(*words: str, timeout_s: float = 90.0) -> subprocess.CompletedProcess[str]:
    """Runs a command of mpifs to its end."""
    return subprocess.run(
        [sys.executable, "-m", "mpifs", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
    )


class Volume:
    """A volume and a mount point in a place of their own."""

    def __init__(self, place: Path, mpi: str) -> None:
        self.folder = VolumeFolder(str(place / "volume"))
        self.mountpoint = place / "mnt"
        self.mountpoint.mkdir()
        self.mpi = mpi

    def mount(self, *words: str) -> job_state.State:
        """Mounts; the job's state."""
        result = mpifs("mount", self.folder.path, str(self.mountpoint), "--mpi", self.mpi, *words)
        assert result.returncode == 0, result.stderr + self.log()
        return self.state()

    def state(self) -> job_state.State:
        """run/state.json."""
        return job_state.read(self.folder)

    def log(self) -> str:
        """The job's log."""
        with contextlib.suppress(OSError):
            return Path(self.folder.log).read_text(errors="replace")
        return ""

    def left(self, state: job_state.State) -> list[str]:
        """What of a job is still there."""
        found = [f"process {p.pid}" for p in marked_with(state["job"], everywhere=True)]
        if mount_at(str(self.mountpoint)):
            found.append("mount")
        found += [path for path, _ in self.state().get("shm", []) if os.path.exists(path)]
        if os.path.exists(state["scratch"]):
            found.append(state["scratch"])
        return found

    def await_gone(self, state: job_state.State, timeout_s: float = GONE_S) -> None:
        """Fails when anything of the job is left at the deadline."""
        deadline = time.monotonic() + timeout_s
        while self.left(state) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.left(state) == [], self.log()

    def put(self, name: str, content: bytes) -> None:
        """Writes a file, durably."""
        with open(self.mountpoint / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def await_that(self, check: Callable[[], bool], limit_s: float) -> float:
        """Seconds until `check` holds; fails at the limit."""
        begun = time.monotonic()
        while not check():
            assert time.monotonic() - begun < limit_s, self.log()
            time.sleep(0.02)
        return time.monotonic() - begun

    def clear(self) -> list[str]:
        """Takes away by force what is left; says what it was."""
        state = self.state()
        if not state.get("job"):
            return []
        # Ranks on other hosts are their launcher's to end; MPI may keep one that was spawned so long.
        here = set(marked_with(state["job"]))
        away = [p for p in marked_with(state["job"], everywhere=True) if p not in here]
        wait_gone(away, FINALIZE_TIMEOUT_S + 2)
        left = self.left(state)
        while mount_at(str(self.mountpoint)):
            if unmount(str(self.mountpoint), lazy=True):
                break
        kill(marked_with(state["job"], everywhere=True))
        return left


@contextlib.contextmanager
def volume(mpi: str = "openmpi") -> Iterator[Volume]:
    """A volume for one test; the test fails when it leaves anything."""
    place = Path(tempfile.mkdtemp(prefix="mpifs-job-test-"))
    made = Volume(place, mpi)
    try:
        yield made
    finally:
        left = made.clear()
        shutil.rmtree(place, ignore_errors=True)
    assert left == [], f"the test left {left}"


def pid_of(state: job_state.State, role: str) -> int:
    """Process id of supervisor, launcher or rank0."""
    process = job_state.process(state, role)
    assert process is not None, f"no {role}"
    return process.pid


def kill_all(state: job_state.State) -> None:
    """SIGKILL to everything of a job, in no order."""
    for process in marked_with(state["job"]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
