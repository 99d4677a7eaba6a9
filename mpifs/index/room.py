"""How much the index may still grow before its disk is full.

Changes gather in memory and are committed later, and a commit that does not fit cannot be made
smaller.  So whoever makes the index grow claims room first; INDEX_RESERVE_BYTES are kept free for
commits of removals, and half of them for what only replaces something.

A removal needs room, too, before it gives any back: each row that goes may stand on a page of its
own, which is copied, and is free again only two commits later.  Whoever removes says how many rows
(`strain`), and commits before those pages could take a third of what is free (`is_strained`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from mpifs.core.errors import FullError
from mpifs.core.limits import (
    INDEX_PAGE_BYTES,
    INDEX_RESERVE_BYTES,
    INDEX_ROW_BYTES,
    KV_SLACK_BYTES,
    RESERVE_SHARE,
)


class IndexRoom:
    """`free` tells what the index's environment in `folder` can take.  Any thread; `_lock` guards
    the fields below it and is a leaf."""

    def __init__(self, folder: str, free: Callable[[], int]) -> None:
        stat = os.statvfs(folder)
        share = stat.f_blocks * stat.f_frsize // RESERVE_SHARE
        self._folder = folder
        self._free = free
        self.reserve_bytes = KV_SLACK_BYTES + min(INDEX_RESERVE_BYTES, share)
        self._lock = threading.Lock()
        self._left = free() - self.reserve_bytes
        self._claimed = 0
        self._sealed = 0
        self._strain = 0
        self._sealed_strain = 0

    def claim(self, size: int, *, is_growth: bool = True) -> None:
        """Takes `size` bytes; without `is_growth` half of the reserve may be used.

        Raises FullError.
        """
        floor = 0 if is_growth else -self.reserve_bytes // 2
        with self._lock:
            if self._left - self._claimed - self._sealed - size < floor:
                self._left = self._free() - self.reserve_bytes
                if self._left - self._claimed - self._sealed - size < floor:
                    raise FullError(f"the disk of {self._folder} is full")
            self._claimed += size

    def strain(self, rows: int) -> None:
        """So many rows are changed by a removal."""
        with self._lock:
            self._strain += rows * INDEX_PAGE_BYTES

    @property
    def is_strained(self) -> bool:
        """Whether what was removed had better be committed before more is."""
        free = self._left + self.reserve_bytes - self._claimed - self._sealed
        return 3 * (self._strain + self._sealed_strain) > free

    @property
    def is_full(self) -> bool:
        """Whether hardly anything new can be made."""
        return self._left - self._claimed - self._sealed < 16 * INDEX_ROW_BYTES

    @property
    def is_tight(self) -> bool:
        """Whether room is so short that removed files had better be cleared away soon."""
        return self._left - self._claimed - self._sealed < self.reserve_bytes

    def seal(self) -> None:
        """What was claimed so far is about to be committed."""
        with self._lock:
            self._sealed += self._claimed
            self._claimed = 0
            self._sealed_strain += self._strain
            self._strain = 0

    def committed(self) -> None:
        """What was sealed is on the disk."""
        with self._lock:
            self._sealed = self._sealed_strain = 0
            self._left = self._free() - self.reserve_bytes
