"""FuseMount: a Vfs in the file tree of this machine.

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
from mpifs.fuse.binding import (
    CAP_AUTO_INVAL_DATA,
    CAP_HANDLE_KILLPRIV,
    CAP_SPLICE,
    CAP_WRITEBACK,
    Binding,
    load,
)
from mpifs.fuse.callbacks import answered
from mpifs.fuse.direct import DirectOperations
from mpifs.fuse.directory_operations import DirectoryOperations
from mpifs.fuse.file_operations import FileOperations
from mpifs.fuse.loop import Loop
from mpifs.fuse.notifier import Notifier
from mpifs.fuse.open_files import OpenFiles
from mpifs.fuse.operations import Operations
from mpifs.fuse.options import MountOptions
from mpifs.fuse.process import prepare_process
from mpifs.fuse.serving import Serving
from mpifs.fuse.session import Session

if TYPE_CHECKING:
    from mpifs.vfs.facade import Vfs

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
"""The kernel sends INIT at once; a mount that takes longer is stuck."""
MAX_BACKGROUND = 64
"""Requests of readahead and of asynchronous I/O that the kernel sends at once."""
WRITE_BYTES_MAX = {2: 128 * 1024, 3: 1024 * 1024}


class FuseMount:
    """One mount of a Vfs.  `start` and `unmount` are called by one thread, the rest by any."""

    def __init__(self, vfs: Vfs, mountpoint: str, options: MountOptions) -> None:
        self._vfs = vfs
        self._options = options
        self._mountpoint = os.path.realpath(mountpoint)
        self._binding: Binding | None = None
        self._loop: Loop | None = None
        self._session: Session | None = None
        self._notifier: Notifier | None = None
        self._mount: kernel_mounts.KernelMount | None = None
        self._write_bytes_max = 0

    @property
    def mountpoint(self) -> str:
        """Absolute, without symbolic links."""
        return self._mountpoint

    def start(self) -> None:
        """Mounts; returns when the kernel's INIT was answered.  Raises StartError."""
        prepare_process()
        binding = self._binding = load(self._options.library)
        if binding.major == 2 and self._options.writeback:
            raise StartError("-o writeback needs libfuse 3 (Debian: apt install fuse3)")
        self._check_mountpoint()
        serving = Serving()
        files = OpenFiles()
        callbacks = self._callbacks(binding, serving, files)
        words = self._options.kernel_words(os.geteuid() == 0) + self._library_words(binding.major)
        session = binding.mount(os.fsencode(self._mountpoint), words, callbacks)
        self._session = session
        self._notifier = Notifier(session, files, serving, self._inode_of)
        direct = DirectOperations(self._vfs, serving, files, self._hidden_changed)
        self._loop = Loop(session, serving, direct, self._options.threads, self._end)
        if not self._loop.start(START_TIMEOUT_S):
            self.unmount(0.0)
            raise StartError(f"the kernel did not take the mount on {self._mountpoint}")
        self._notifier.start()
        self._vfs.on_change = self._on_change
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
        return {
            "mountpoint": self._mountpoint,
            "binding": binding.name if binding else "",
            "libfuse": binding.version if binding else "",
            "max_write": self._write_bytes_max,
            "threads": self._options.threads,
            "writeback": self._options.writeback,
            "late_invalidations": self._notifier.late if self._notifier else 0,
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

    def _callbacks(self, binding: Binding, serving: Serving, files: OpenFiles) -> dict[str, Any]:
        """Everything that libfuse may call, by name."""
        room = Operations(self._vfs, binding, serving, files, self._hidden_changed)
        opened = FileOperations(self._vfs, binding, serving, files, self._hidden_changed)
        folders = DirectoryOperations(self._vfs, binding, serving)
        calls: dict[str, Any] = {}
        for part in (room, opened, folders):
            for name in part.NAMES:
                calls[name] = getattr(part, name, None)
        if binding.major == 2:
            calls["fgetattr"] = room.getattr
            calls["ftruncate"] = room.truncate
        answers = {name: answered(name, call) for name, call in calls.items() if call}
        answers["init"] = answered("init", self._init_3 if binding.major == 3 else self._init_2)
        return answers

    def _on_change(self, paths: Iterable[bytes], handles: Iterable[int] = ()) -> None:
        if self._notifier is not None:
            self._notifier.on_change(paths, handles)

    def _hidden_changed(self, fh: int) -> None:
        if self._notifier is not None:
            self._notifier.hidden_changed(fh)

    def _inode_of(self, path: bytes | None, fh: int | None) -> int:
        return self._vfs.getattr(path, fh).ino

    def _library_words(self, major: int) -> list[str]:
        """Settings that libfuse 2 takes as options; libfuse 3 gets them in `_init_3`."""
        if major == 3:
            return []
        if self._options.attr_timeout_s != MountOptions().attr_timeout_s:
            log.warning("attr_timeout is 0 with libfuse 2, for the sake of hard links")
        return [
            "use_ino",
            "big_writes",
            f"max_write={WRITE_BYTES_MAX[2]}",
            f"max_background={MAX_BACKGROUND}",
            f"congestion_threshold={MAX_BACKGROUND * 3 // 4}",
            "attr_timeout=0",
            f"entry_timeout={self._options.entry_timeout_s}",
            "negative_timeout=0",
            "no_splice_read",
            "no_splice_write",
            "no_splice_move",
        ]

    def _init_2(self, _: int) -> int:
        self._write_bytes_max = WRITE_BYTES_MAX[2]
        return 0

    def _init_3(self, connection: int, config: int) -> int:
        assert self._binding is not None
        structures = self._binding.module
        conn = structures.fuse_conn_info.from_address(connection)
        want = conn.want & ~(CAP_SPLICE | CAP_HANDLE_KILLPRIV | CAP_AUTO_INVAL_DATA)
        if self._options.writeback:
            want |= CAP_WRITEBACK & conn.capable
        conn.want = want
        conn.max_background = MAX_BACKGROUND
        conn.congestion_threshold = MAX_BACKGROUND * 3 // 4
        self._write_bytes_max = conn.max_write
        settings = structures.fuse_config.from_address(config)
        settings.use_ino = 1
        settings.nullpath_ok = 1
        settings.hard_remove = 0
        settings.attr_timeout = self._options.attr_timeout_s
        settings.entry_timeout = self._options.entry_timeout_s
        settings.negative_timeout = 0.0
        return 0

    def _end(self) -> None:
        """The kernel has ended the session: in the last loop thread."""
        if self._notifier is not None:
            self._notifier.stop()
        if self._session is not None:
            self._session.destroy()
