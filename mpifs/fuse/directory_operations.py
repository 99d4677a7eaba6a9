"""The callbacks of libfuse for open folders: entries in portions, with offsets and attributes.

Each entry has an offset, so libfuse keeps no list of the whole folder.  On libfuse 3 the attributes
go along when the kernel asks (readdirplus): `ls -l` of 20,000 files costs 2 requests, not 20,000.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from mpifs.fuse.attributes import StatPacker
from mpifs.fuse.binding import Binding
from mpifs.fuse.serving import Serving

if TYPE_CHECKING:
    from mpifs.vfs.facade import Vfs

_READDIR_PLUS = 1
_FILL_DIR_PLUS = 2
_DIRENT_BYTES = 24
_DIRENT_PLUS_BYTES = 128 + _DIRENT_BYTES


class DirectoryOperations:
    """opendir to releasedir.  Any number of threads."""

    NAMES = ("opendir", "readdir", "releasedir", "fsyncdir")

    def __init__(self, vfs: Vfs, binding: Binding, serving: Serving) -> None:
        self._vfs = vfs
        self._serving = serving
        self._packer = StatPacker(binding.stat)
        self._fh_offset = binding.fh_offset
        self._filler_type = binding.filler
        self._fillers: dict[int, Any] = {}
        self._has_flags = binding.major == 3

    def _fh(self, info: int) -> int:
        return ctypes.c_uint64.from_address(info + self._fh_offset).value

    def _filler(self, address: int) -> Any:
        """libfuse has two fill functions; making a ctypes function of one costs microseconds."""
        filler = self._fillers.get(address)
        if filler is None:
            filler = self._fillers[address] = self._filler_type(address)
        return filler

    def opendir(self, path: bytes, info: int) -> None:
        """opendir(3)."""
        fh = self._vfs.opendir(path)
        ctypes.c_uint64.from_address(info + self._fh_offset).value = fh

    def readdir(
        self, _: bytes | None, buffer: int, fill: int, offset: int, info: int, flags: int = 0
    ) -> None:
        """Entries from `offset` on until the reply is full.

        The room is counted here: libfuse takes a reference on an entry's node before it finds that
        the entry does not fit in a readdirplus reply, and never gives it back.
        """
        plus = bool(flags & _READDIR_PLUS)
        request = self._serving.request
        room = request.read_size if request is not None else 4096
        fixed = _DIRENT_PLUS_BYTES if plus else _DIRENT_BYTES
        filler = self._filler(fill)
        space = ctypes.create_string_buffer(self._packer.size)
        extra = (_FILL_DIR_PLUS if plus else 0,) if self._has_flags else ()
        for name, stat, following in self._vfs.readdir(self._fh(info), offset, plus):
            room -= (fixed + len(name) + 7) & ~7
            if room < 0:
                break
            space.raw = self._packer.pack(stat)
            if filler(buffer, name, ctypes.addressof(space), following, *extra):
                break

    def releasedir(self, _: bytes | None, info: int) -> None:
        """closedir(3)."""
        self._vfs.releasedir(self._fh(info))

    def fsyncdir(self, _: bytes | None, datasync: int, info: int) -> None:
        """fsync(2) of a folder."""
        self._vfs.fsyncdir(self._fh(info), bool(datasync))
