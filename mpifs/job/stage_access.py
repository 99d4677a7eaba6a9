"""The command's side of a stage-in or stage-out: starts it in rank 0 and follows it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

from mpifs.core.limits import STAGE_PAIRS_MAX
from mpifs.fuse.kernel_mounts import is_dead
from mpifs.job.control import ControlClient
from mpifs.job.folder import VolumeFolder
from mpifs.job.mounts import mounts_of
from mpifs.job.stage_run import WORKING


class MountSeen(NamedTuple):
    """The volume's mount as this process sees it; b"" and 0: none."""

    root: bytes
    device: int


def mount_of(folder: VolumeFolder) -> MountSeen:
    """A mount of the volume that answers and that may be entered."""
    for mount in reversed(mounts_of(folder.path)):
        with contextlib.suppress(OSError):
            if not is_dead(mount.mountpoint):
                root = os.fsencode(mount.mountpoint.rstrip("/"))
                return MountSeen(root, os.stat(mount.mountpoint).st_dev)
    return MountSeen(b"", 0)


def write_back(mount: MountSeen) -> None:
    """Has the kernel write what it holds of a mounted volume: pages of mappings, and all of them
    with -o writeback.  Raises OSError."""
    if not mount.root:
        return
    descriptor = os.open(mount.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


class Staging:
    """One run of rank 0; used by one thread."""

    def __init__(self, client: ControlClient, mount: MountSeen) -> None:
        self._client = client
        self._mount = mount

    def start(self, pairs: Iterable[tuple[bytes, bytes]], *, is_in: bool, is_dry: bool) -> None:
        """Begins the run for these (source, target).  Raises OSError."""
        self._client.call(
            "stage.begin",
            is_in=is_in,
            is_dry=is_dry,
            device=self._mount.device,
        )
        left = iter(pairs)
        while page := list(islice(left, STAGE_PAIRS_MAX)):
            self._client.call("stage.pairs", pairs=page)
        self._client.call("stage.start")

    def follow(
        self, tell: Callable[[dict[str, Any]], None], is_interrupted: Callable[[], bool]
    ) -> dict[str, Any]:
        """Tells of each poll's answer until the run is over; the last one.  Once `is_interrupted`,
        the run is to end at its next step.  Raises OSError."""
        is_cancelled = False
        while True:
            if not is_cancelled and is_interrupted():
                is_cancelled = True
                self._client.call("stage.cancel")
            news = self._client.call("stage.poll")
            tell(news)
            if news["state"] != WORKING:
                return news
