"""What a caller wants changed of an inode's attributes."""

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """None leaves an attribute; times are ns or TIME_NOW.

    `ctime_ns` is set by a kernel that keeps the times of files itself, and by nobody else.
    `kills`: a change of the content takes set-id bits off, since who asks has no CAP_FSETID.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    kills: bool = False

    @property
    def is_note(self) -> bool:
        """Whether the kernel tells of times that its own cached writes have brought about."""
        others = (self.mode, self.uid, self.gid, self.size, self.atime_ns)
        return self.ctime_ns is not None and all(each is None for each in others)
