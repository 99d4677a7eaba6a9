"""Mounts as the kernel lists them: which are ours, which are dead, who uses one, how to end one.

Standard library only: the supervisor imports it.  Never stats a mount point that may hang: what
can be known from /proc/self/mountinfo is taken from there.
"""

from __future__ import annotations

import contextlib
import errno
import os

from mpifs.core.errors import InUseError, PosixError
from mpifs.fuse import kernel_mounts
from mpifs.fuse.kernel_mounts import KernelMount, is_dead, mounts


def _true_path(path: str) -> str:
    """`path` without symlinks in its folders; its last part is not touched (it may be dead)."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name) if name else folder


def mount_at(path: str) -> KernelMount | None:
    """The topmost mount whose mount point is `path`, or None."""
    wanted = {_true_path(path)}
    if not any(mount.mountpoint in wanted for mount in mounts()):
        wanted.add(os.path.realpath(path))  # the last part may be a symlink to a mount point.
    for mount in reversed(mounts()):
        if mount.mountpoint in wanted:
            return mount
    return None


def mounts_of(source: str) -> list[KernelMount]:
    """Our mounts of the volume `source`."""
    return [mount for mount in mounts() if mount.is_ours and mount.source == source]


def unmount(path: str, *, lazy: bool) -> str:
    """Takes the mount at `path` away; returns "" or the reason why not."""
    code = kernel_mounts.unmount(path, lazy=lazy)
    if code == errno.ENOENT:
        return "fusermount3 is missing; install the package fuse3"
    return os.strerror(code) if code else ""


def clear_dead(path: str) -> bool:
    """Unmounts a dead FUSE mount at `path`; whether there was one.

    Raises PosixError when it cannot be taken away.
    """
    cleared = False
    while is_dead(path):
        reason = unmount(path, lazy=True)
        if reason:
            raise PosixError(
                errno.ENOTCONN, f"{path} is a dead mount and cannot be cleared: {reason}"
            )
        cleared = True
    return cleared


def check_mountpoint(path: str) -> str:
    """The true path of a mount point that may be used, after a dead mount there was cleared.

    Raises PosixError or InUseError, each reason with its own sentence.
    """
    clear_dead(path)
    mount = mount_at(path)
    if mount is not None and mount.is_ours:
        raise InUseError(f"{path} is already a mount of {mount.source}; mpifs umount {path}")
    if mount is not None and mount.mountpoint != "/":
        raise InUseError(f"{path} is already a mount point ({mount.kind}); choose another")
    if not os.path.exists(path):
        raise PosixError(errno.ENOENT, f"{path} does not exist; make it with: mkdir {path}")
    if not os.path.isdir(path):
        raise PosixError(errno.ENOTDIR, f"{path} is not a directory; a mount needs an empty one")
    if os.listdir(path):
        raise PosixError(errno.ENOTEMPTY, f"{path} is not empty; a mount needs an empty directory")
    return os.path.realpath(path)


def users_of(mountpoint: str) -> list[int]:
    """Processes with an open file, a working directory, a root or a mapping in the mount.

    Looks at links in /proc only, so it does not touch the mount.  Other users' processes are
    seen only by root.
    """
    inside = mountpoint.rstrip("/") + "/"
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _uses(f"/proc/{entry}", mountpoint, inside):
            found.append(int(entry))
    return found


def _uses(process: str, mountpoint: str, inside: str) -> bool:
    links = [f"{process}/cwd", f"{process}/root", f"{process}/exe"]
    with contextlib.suppress(OSError):
        links += [f"{process}/fd/{number}" for number in os.listdir(f"{process}/fd")]
    for link in links:
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == mountpoint or target.startswith(inside):
            return True
    try:
        with open(f"{process}/maps", "rb") as file:
            return os.fsencode(inside) in file.read()
    except OSError:
        return False
