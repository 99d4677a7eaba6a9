"""FuseMount: a volume in the file tree of this machine.

Life of a mount; each arrow names what performs it:

    new ── start ──▶ serving ── unmount, or umount(8) by anybody ──▶ ended
     └──── start fails ────────────────────────────────────────────▶ ended

`auto_unmount` is not used: libfuse then leaves a helper process per mount that outlives a killed
rank 0 only to do what the supervisor does anyway, and it would keep the mount off the direct
mount(2) that root's set-id and device files need.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mpifs.core.errors import StartError
from mpifs.core.limits import UNMOUNT_ABORT_S, UNMOUNT_LAZY_S, UNMOUNT_RETRY_S
from mpifs.fuse import kernel_mounts
from mpifs.fuse.attributes import Answers
from mpifs.fuse.binding import Binding, load
from mpifs.fuse.dispatch import Dispatch
from mpifs.fuse.handshake import Agreement
from mpifs.fuse.latency import CpuLatency
from mpifs.fuse.loop import Loop
from mpifs.fuse.notifier import Entry, Notifier
from mpifs.fuse.options import MountOptions
from mpifs.fuse.process import prepare_process
from mpifs.fuse.session import Session

if TYPE_CHECKING:
    from mpifs.vfs.nodes import Nodes

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
"""The kernel sends INIT at once; a mount that takes longer is stuck."""


class FuseMount:
    """One mount of a volume's nodes.  `start` and `unmount` are called by one thread, the rest by
    any."""

    def __init__(self, nodes: Nodes, mountpoint: str, options: MountOptions) -> None:
        self._nodes = nodes
        self._options = options
        self._mountpoint = os.path.realpath(mountpoint)
        self._binding: Binding | None = None
        self._loop: Loop | None = None
        self._session: Session | None = None
        self._notifier: Notifier | None = None
        self._mount: kernel_mounts.KernelMount | None = None

    @property
    def mountpoint(self) -> str:
        """Absolute, without symbolic links."""
        return self._mountpoint

    def start(self) -> None:
        """Mounts; returns when the kernel's INIT was answered.  Raises StartError."""
        prepare_process()
        options = self._options
        binding = self._binding = load(options.library)
        self._check_mountpoint()
        latency = CpuLatency() if options.low_latency else None
        words = options.kernel_words(os.geteuid() == 0)
        session = self._session = binding.mount(os.fsencode(self._mountpoint), words)
        session.on_agreed = self._on_agreed
        self._notifier = Notifier(session.device)
        writeback = options.writeback
        answers = Answers(options.entry_timeout_s, options.attr_timeout_s, writeback=writeback)
        dispatch = Dispatch(self._nodes, answers)
        if writeback:
            dispatch = Dispatch(self._nodes, answers, self._write_back)
        self._loop = Loop(
            session,
            dispatch,
            options.threads,
            self._end,
            writeback=writeback,
            latency=latency,
        )
        if not self._loop.start(START_TIMEOUT_S):
            self.unmount(0.0)
            raise StartError(f"the kernel did not take the mount on {self._mountpoint}")
        self._notifier.start()
        self._nodes.on_change = self._on_change
        self._mount = kernel_mounts.find_mount(self._mountpoint)
        if self._mount is not None and os.geteuid() == 0:
            kernel_mounts.raise_read_ahead(self._mount)
        log.info("mounted on %s: %s", self._mountpoint, self.describe())

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once the mount has ended, by whomever, and its session is closed."""
        return self._loop is None or self._loop.ended.wait(timeout_s)

    def unmount(self, grace_s: float) -> bool:
        """Ends the mount.  While it is busy, tries again for `grace_s`; then detaches it, which
        takes it from the tree and lets its users finish for a second, where they can still be cut
        off afterwards (fusectl is mounted); then cuts them off.

        Returns True if nobody was cut off.  Everything the kernel had was written by then (with
        `writeback`, what the users still held dirty is lost by the cut).
        """
        if self._loop is None or self._session is None:
            return True
        deadline = time.monotonic() + grace_s
        mount = self._mount or kernel_mounts.find_mount(self._mountpoint)
        while not self._loop.ended.is_set():
            code = kernel_mounts.unmount(self._mountpoint)
            if code in (0, errno.EINVAL):
                break
            if code != errno.EBUSY:
                log.warning("unmounting %s: %s", self._mountpoint, os.strerror(code))
                break
            if time.monotonic() >= deadline:
                break
            self._loop.ended.wait(UNMOUNT_RETRY_S)
        if self._loop.ended.wait(
            0.0 if kernel_mounts.find_mount(self._mountpoint) else UNMOUNT_LAZY_S
        ):
            return True
        if mount is not None and (kernel_mounts.can_abort_detached(mount) or os.geteuid() != 0):
            log.warning("%s is still in use: detaching it", self._mountpoint)
            kernel_mounts.unmount(self._mountpoint, lazy=True)
            if self._loop.ended.wait(UNMOUNT_LAZY_S):
                return True
        log.warning("%s is still in use: cutting its users off", self._mountpoint)
        if mount is not None:
            kernel_mounts.abort(mount)
        if not self._loop.ended.wait(UNMOUNT_ABORT_S):
            log.error("the FUSE session on %s could not be ended", self._mountpoint)
        return False

    def describe(self) -> dict[str, Any]:
        """Binding, library and sizes, for `mpifs status` and the log."""
        binding = self._binding
        agreement = self._session.agreement if self._session else None
        return {
            "mountpoint": self._mountpoint,
            "binding": binding.name if binding else "",
            "libfuse": binding.version if binding else "",
            "max_write": agreement.write_bytes_max if agreement else 0,
            "threads": self._options.threads,
            "writeback": agreement.is_writeback if agreement else False,
        }

    def _check_mountpoint(self) -> None:
        kernel_mounts.clear_dead_mount(self._mountpoint)
        try:
            entries = os.listdir(self._mountpoint)
        except OSError as error:
            raise StartError(f"cannot mount on {self._mountpoint}: {error.strerror}") from error
        mounted = kernel_mounts.find_mount(self._mountpoint)
        if mounted is not None and mounted.kind.startswith("fuse"):
            raise StartError(f"{self._mountpoint} already has a mount; run `mpifs umount` first")
        if entries and mounted is None:
            raise StartError(f"{self._mountpoint} is not empty; mount on an empty folder")

    def _on_agreed(self, agreement: Agreement) -> None:
        # With -o sync the kernel has each write followed by an fsync, but not of such files.
        if agreement.has_direct_writers and "sync" not in self._options.flags:
            self._nodes.use_direct_writers()

    def _on_change(self, inodes: Iterable[int], entries: Iterable[Entry]) -> None:
        if self._notifier is not None:
            self._notifier.changed(inodes, entries)

    def _write_back(self, node: int) -> None:
        """Has the kernel write what is dirty of a node.  Takes other loop threads to serve it."""
        self._on_change([node], [])
        self.settle()

    def settle(self) -> bool:
        """Waits until the kernel has dropped what `on_change` was told; False at a time limit."""
        return self._notifier is None or self._notifier.settle()

    def _end(self) -> None:
        """The kernel has ended the session: in the last loop thread."""
        if self._notifier is not None:
            self._notifier.stop()
        if self._session is not None:
            self._session.destroy()
