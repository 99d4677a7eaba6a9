"""The callbacks of libfuse for open files, but for those that direct.py serves."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpifs.fuse.binding import Binding
from mpifs.fuse.open_files import OpenFiles
from mpifs.fuse.request import Request
from mpifs.fuse.serving import Serving

if TYPE_CHECKING:
    from mpifs.vfs.facade import Opened, Vfs


class FileOperations:
    """open to release.  Any number of threads; state is only the table of open files.

    `keep_cache` of the Vfs is followed on libfuse 3 only: with libfuse 2 the kernel's pages of a
    closed file cannot be dropped by its name, so they are dropped at open.
    """

    NAMES = (
        "open",
        "create",
        "release",
        "fsync",
        "fallocate",
        "lseek",
        "copy_file_range",
    )

    def __init__(
        self,
        vfs: Vfs,
        binding: Binding,
        serving: Serving,
        files: OpenFiles,
        hidden_changed: Callable[[int], None],
    ) -> None:
        self._vfs = vfs
        self._serving = serving
        self._files = files
        self._hidden_changed = hidden_changed
        self._info = binding.file_info
        self._fh_offset = binding.fh_offset
        self._can_keep = binding.major == 3
        self._can_skip_flush = hasattr(self._info, "noflush")

    def _fh(self, info: int) -> int:
        return ctypes.c_uint64.from_address(info + self._fh_offset).value

    def _use(self, info: int) -> int:
        """The handle of a request on an open file; learns the kernel's number of a new one."""
        fh: int = ctypes.c_uint64.from_address(info + self._fh_offset).value
        if self._serving.request is not None:
            self._files.used(fh, self._serving.request.nodeid)
        return fh

    def _change(self, info: int) -> int:
        """As `_use`, for a request that changes the file; notes it for the notifier."""
        serving = self._serving
        serving.path = None
        serving.fh = fh = self._use(info)
        return fh

    def _opened(self, path: bytes, opened: Opened, info: int) -> None:
        structure = self._info.from_address(info)
        structure.fh = opened.fh
        structure.direct_io = opened.direct_io
        structure.keep_cache = opened.keep_cache and self._can_keep
        if self._can_skip_flush and structure.flags & os.O_ACCMODE == os.O_RDONLY:
            structure.noflush = 1  # nothing is to be told at its close
        request = self._serving.request
        is_open = request is not None and request.opcode == Request.OPEN
        self._files.opened(opened.fh, path, request.nodeid if request and is_open else 0)

    def open(self, path: bytes, info: int) -> None:
        """open(2) of what is there; the Vfs truncates when O_TRUNC is set (libfuse 3 only)."""
        serving = self._serving
        serving.path, serving.fh = path, None
        flags = ctypes.c_int.from_address(info).value
        try:
            opened = self._vfs.open(path, flags, serving.caller())
        except OSError as error:
            if error.errno == errno.ENOENT:
                # The kernel has just found the name: something else has it now.  ESTALE makes it
                # look again (path_openat) instead of telling the user that there is none.
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from error
            raise
        self._opened(path, opened, info)

    def create(self, path: bytes, mode: int, info: int) -> None:
        """open(2) with O_CREAT of a new name."""
        flags = ctypes.c_int.from_address(info).value
        self._opened(path, self._vfs.create(path, mode, flags, self._serving.caller()), info)

    def release(self, _: bytes | None, info: int) -> None:
        """The last close."""
        fh = self._fh(info)
        self._files.closed(fh)
        self._vfs.release(fh)

    def fsync(self, _: bytes | None, datasync: int, info: int) -> None:
        """fsync(2), fdatasync(2)."""
        self._vfs.fsync(self._use(info), bool(datasync))

    def fallocate(self, _: bytes | None, mode: int, offset: int, length: int, info: int) -> None:
        """fallocate(2)."""
        fh = self._change(info)
        self._vfs.fallocate(fh, mode, offset, length, self._serving.caller())
        if self._files.hidden:
            self._hidden_changed(fh)

    def lseek(self, _: bytes | None, offset: int, whence: int, info: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        return self._vfs.lseek(self._use(info), offset, whence)

    def copy_file_range(
        self,
        _: bytes | None,
        info_in: int,
        offset_in: int,
        __: bytes | None,
        info_out: int,
        offset_out: int,
        length: int,
        flags: int,
    ) -> int:
        """copy_file_range(2)."""
        if flags:
            raise OSError(errno.EINVAL, "copy_file_range has no flags")
        fh_in = self._fh(info_in)
        serving = self._serving
        serving.path = None
        serving.fh = fh_out = self._fh(info_out)
        caller = self._serving.caller()
        count = self._vfs.copy_file_range(fh_in, offset_in, fh_out, offset_out, length, caller)
        if self._files.hidden:
            self._hidden_changed(fh_out)
        return count
