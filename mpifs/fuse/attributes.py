"""Attributes as the kernel wants them."""

from __future__ import annotations

import stat

from mpifs.core.types import SpaceUse, Stat
from mpifs.fuse.protocol import ATTR_OUT, ENTRY_OUT, STATFS_OUT

NAME_BYTES_MAX = 255
_BLOCK_BYTES = 4096
_NS = 10**9


class Answers:
    """Entries and attributes with the time for which the kernel may keep them, in seconds.

    With its write-back cache the kernel does not see that a write has changed a file's blocks, and
    GNU tar takes a file without blocks for a hole: then it keeps nothing of regular files.
    """

    def __init__(
        self, entry_timeout_s: float, attr_timeout_s: float, *, writeback: bool = False
    ) -> None:
        self._fleeting = stat.S_IFREG if writeback else None
        self._entry_s, self._entry_ns = _parts(entry_timeout_s)
        self._attr_s, self._attr_ns = _parts(attr_timeout_s)
        self.absent = ENTRY_OUT.pack(0, 0, self._entry_s, 0, self._entry_ns, *[0] * 17)
        """Says that there is no such name, and that the kernel may remember it."""

    def entry(self, found: Stat) -> bytes:
        """struct fuse_entry_out: node and attributes of a name."""
        ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, atime, mtime, ctime = found
        atime, atime_ns = divmod(atime, _NS)
        mtime, mtime_ns = divmod(mtime, _NS)
        ctime, ctime_ns = divmod(ctime, _NS)
        is_kept = stat.S_IFMT(mode) != self._fleeting
        return ENTRY_OUT.pack(
            ino, 0, self._entry_s, is_kept * self._attr_s, self._entry_ns, is_kept * self._attr_ns,
            ino, size, blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
            mode, nlink, uid, gid, rdev & 0xFFFFFFFF, blksize, 0,
        )  # fmt: skip

    def attributes(self, found: Stat) -> bytes:
        """struct fuse_attr_out."""
        ino, mode, nlink, uid, gid, rdev, size, blocks, blksize, atime, mtime, ctime = found
        atime, atime_ns = divmod(atime, _NS)
        mtime, mtime_ns = divmod(mtime, _NS)
        ctime, ctime_ns = divmod(ctime, _NS)
        is_kept = stat.S_IFMT(mode) != self._fleeting
        return ATTR_OUT.pack(
            is_kept * self._attr_s, is_kept * self._attr_ns, 0,
            ino, size, blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
            mode, nlink, uid, gid, rdev & 0xFFFFFFFF, blksize, 0,
        )  # fmt: skip


def _parts(seconds: float) -> tuple[int, int]:
    return int(seconds), int(seconds % 1 * _NS)


def space(use: SpaceUse) -> bytes:
    """struct fuse_kstatfs."""
    return STATFS_OUT.pack(
        use.total_bytes // _BLOCK_BYTES,
        use.free_bytes // _BLOCK_BYTES,
        use.free_bytes // _BLOCK_BYTES,
        use.files + use.files_free,
        use.files_free,
        _BLOCK_BYTES,
        NAME_BYTES_MAX,
        _BLOCK_BYTES,
        0,
    )


def signed(seconds: int) -> int:
    """A time's seconds, which the protocol calls unsigned."""
    return seconds - (1 << 64) if seconds >> 63 else seconds
