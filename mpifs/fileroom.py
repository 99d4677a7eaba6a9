"""What an environment's data file can still take: blocks, disk, map, freed pages."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

from mpifs.core.errors import FullError
from mpifs.core.limits import (
    KV_SLACK_BYTES,
    MAP_BYTES_SMALL,
    MAP_GROWTH_BYTES_MAX,
    PREALLOCATE_BYTES,
)
from mpifs.datafile import DATA_NAME, allocated_bytes, disk_free_bytes, grow_file


class FileRoom:
    """Room in the data file of `folder`, allocated ahead of its use by the writing thread.

    `used` gives the length of the part that LMDB has used, `reusable` about what is freed in it,
    `grow_map(least)` whether the map has that many bytes, made longer if it can be.
    """

    def __init__(
        self,
        folder: str,
        used: Callable[[], int],
        reusable: Callable[[], int],
        grow_map: Callable[[int], bool],
        *,
        preallocate: bool,
    ) -> None:
        self._folder = folder
        self._used = used
        self._reusable = reusable
        self._grow_map = grow_map
        self._preallocate = preallocate
        self.ahead_bytes_max = PREALLOCATE_BYTES
        """Blocks allocated ahead of their use, beside KV_SLACK_BYTES."""
        self._fd = os.open(os.path.join(folder, DATA_NAME), os.O_RDWR | os.O_CLOEXEC)
        self._allocated = 0
        self.look()

    def look(self) -> None:
        """Asks the file anew: LMDB may have written behind what was allocated."""
        self._allocated = allocated_bytes(self._fd)

    def ahead(self, needed_bytes: int, *, may_use_slack: bool) -> None:
        """See kv.Environment.preallocate_ahead."""
        used = self._used()
        least = used + needed_bytes + KV_SLACK_BYTES
        has_map = self._grow_map(least)
        if self._has_blocks(used, needed_bytes, least) and has_map:
            return
        if self._reusable() >= 2 * needed_bytes > 0:
            return
        if may_use_slack and has_map and self.spare_bytes() >= needed_bytes:
            return
        raise FullError(f"the {'disk' if has_map else 'map'} of {self._folder} is full")

    def _has_blocks(self, used: int, needed_bytes: int, least: int) -> bool:
        start = max(used, self._allocated)
        if start >= least:
            return True
        wanted = least
        free = disk_free_bytes(self._folder)
        ahead = min(self.ahead_bytes_max, max(used, needed_bytes))
        if free > 4 * ahead:
            wanted = max(least, used + ahead)
        if free <= wanted - start:
            return False
        if not self._preallocate:
            self._allocated = start
            return True
        if grow_file(self._fd, start, wanted):
            self._allocated = wanted
            return True
        return False

    def spare_bytes(self) -> int:
        """Estimate of what fits in without more of the disk: allocated and freed pages."""
        return max(0, self._allocated - self._used()) + self._reusable()

    def has_unused(self, needed_bytes: int, map_bytes: int) -> bool:
        """Whether disk and map have so many bytes that were never used, freed pages left out."""
        if map_bytes - self._used() < needed_bytes:
            return False
        return disk_free_bytes(self._folder) >= needed_bytes

    def free_bytes(self, map_bytes: int) -> int:
        """Estimate of what can still be stored within a map that does not grow."""
        disk_bytes = disk_free_bytes(self._folder) + self.spare_bytes()
        return min(disk_bytes, max(0, map_bytes - self._used()) + self._reusable())

    def close(self) -> None:
        """May be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0


def longer_map(now: int, least: int) -> int | None:
    """How long a map of `now` bytes that needs `least` should be made; None: it cannot be.

    LMDB must not fail to map it (it would be left without any map), so there must be address space
    for the new one beside the old one, which is given up before.
    """
    for more in (now, now // 4, 0):
        size = max(least, now + min(more, MAP_GROWTH_BYTES_MAX))
        size = -(-size // MAP_BYTES_SMALL) * MAP_BYTES_SMALL
        if has_address_space(size):
            return size
    return None


def has_address_space(size: int) -> bool:
    """Whether a map of `size` bytes fits into what this process may still map (ulimit -v)."""
    try:
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ).close()
    except (OSError, ValueError, OverflowError, MemoryError):
        return False
    return True
