"""Mounts as the kernel sees them: find, unmount, abort, tune.  Knows /proc and /sys, no libfuse."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from mpifs.core.limits import FUSERMOUNT_TIMEOUT_S

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 4096
"""With 128 KiB, the default, a sequential reader gets a tenth of the throughput at 1 ms latency."""

_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
KINDS = ("fuse.mpifs", "fuseblk.mpifs")
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class KernelMount:
    """One line of mountinfo."""

    mountpoint: str
    kind: str
    source: str
    device: str

    @property
    def is_ours(self) -> bool:
        """Whether mpifs made it."""
        return self.kind in KINDS

    @property
    def connection(self) -> str:
        """Folder of the FUSE connection in fusectl."""
        return f"/sys/fs/fuse/connections/{self.device.partition(':')[2]}"


def _decode(field: bytes) -> str:
    plain = _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
    return os.fsdecode(plain)


def parse(table: bytes) -> list[KernelMount]:
    """Reads the text of a mountinfo file; lines that are none are left out."""
    found = []
    for line in table.splitlines():
        left, _, right = line.partition(b" - ")
        before, after = left.split(b" "), right.split(b" ")
        if len(before) < 5 or len(after) < 2:
            continue
        found.append(
            KernelMount(
                _decode(before[4]),
                after[0].decode("ascii", "replace"),
                _decode(after[1]),
                before[2].decode(),
            )
        )
    return found


def mounts() -> list[KernelMount]:
    """All mounts that this process sees, in the order they were made."""
    with open("/proc/self/mountinfo", "rb") as file:
        return parse(file.read())


def find_mount(mountpoint: str) -> KernelMount | None:
    """The topmost mount on exactly this folder; never touches the mounted file system."""
    for mount in reversed(mounts()):
        if mount.mountpoint == mountpoint:
            return mount
    return None


def _umount2(mountpoint: str, flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags | _UMOUNT_NOFOLLOW) == 0:
        return 0
    return ctypes.get_errno()


def _fusermount(mountpoint: str, lazy: bool) -> int:
    """errno of `fusermount -u`: only EBUSY can be told from its words."""
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        return errno.ENOENT
    command = [program, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=FUSERMOUNT_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        return errno.ETIMEDOUT
    if done.returncode == 0:
        return 0
    return errno.EBUSY if b"busy" in done.stderr.lower() else errno.EPERM


def unmount(mountpoint: str, *, lazy: bool = False) -> int:
    """0 or the errno.  Blocks while the kernel sends the last requests, so the loop must run."""
    if os.geteuid() == 0:
        return _umount2(mountpoint, _MNT_DETACH if lazy else 0)
    return _fusermount(mountpoint, lazy)


def can_abort_detached(mount: KernelMount) -> bool:
    """Whether the connection can be cut when no path leads to the mount any more."""
    return os.access(f"{mount.connection}/abort", os.W_OK)


def abort(mount: KernelMount) -> bool:
    """Cuts a FUSE connection: all its requests, present and future, fail.

    Through fusectl where that is mounted, else by a forced unmount, which root may do while the
    mount is still in the tree.
    """
    try:
        with open(f"{mount.connection}/abort", "wb") as control:
            control.write(b"1")
        return True
    except OSError as error:
        log.info("aborting through fusectl: %s", error)
    if os.geteuid() == 0 and find_mount(mount.mountpoint) is not None:
        _umount2(mount.mountpoint, _MNT_FORCE)
        _umount2(mount.mountpoint, _MNT_DETACH)
        return True
    return False


def raise_read_ahead(mount: KernelMount, kib: int = READ_AHEAD_KIB) -> bool:
    """Lets the kernel read further ahead; only root may."""
    try:
        with open(f"/sys/class/bdi/{mount.device}/read_ahead_kb", "w", encoding="ascii") as knob:
            knob.write(str(kib))
        return True
    except OSError as error:
        log.info("read-ahead stays at 128 KiB, sequential reads will be slower: %s", error)
        return False


def is_dead(mountpoint: str) -> bool:
    """Whether a FUSE mount stands there whose process has gone.

    stat may be answered from the kernel's cache for a while; statvfs is always asked for, and
    waits while a killed process is still going.
    """
    try:
        os.stat(mountpoint)
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def clear_dead_mount(mountpoint: str) -> None:
    """Removes what a killed process has left mounted there: ENOTCONN on every access."""
    if is_dead(mountpoint) and find_mount(mountpoint):
        log.info("removing the dead mount on %s", mountpoint)
        with contextlib.suppress(OSError):
            unmount(mountpoint, lazy=True)
