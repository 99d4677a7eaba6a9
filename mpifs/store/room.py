"""What a store can still take: of its disk, of its capacity, and of what is kept free on both.

SPACE_RESERVE_BYTES are kept free, because deleting needs pages first.  Half of that is for what
replaces an older generation of its chunk, which goes soon: so a full store can be overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

from mpifs.core.limits import RESERVE_SHARE, SPACE_RESERVE_BYTES
from mpifs.store.side import Side


class StoreRoom:
    """Room in the store of `folder`; `sides` are the environments that its capacity bounds.

    `capacity_bytes` is what the store may take of its disk; 0: all of it.
    """

    def __init__(self, folder: str, sides: tuple[Side, Side], capacity_bytes: int) -> None:
        self._folder = folder
        self._sides = sides
        self._capacity_bytes = capacity_bytes
        if capacity_bytes:
            for side in sides:
                side.environment.room.ahead_bytes_max = 0

    def has(self, needed_bytes: Mapping[Side, int], *, is_replacing: bool) -> bool:
        """Whether all sides can take so much."""
        reserve = self._reserve_bytes()
        extra = reserve // 2 if is_replacing else 0
        for side, needed in needed_bytes.items():
            if not side.environment.has_room(needed + reserve - extra):
                return False
        needed = sum(needed_bytes.get(side, 0) for side in self._sides)
        return not self._capacity_bytes or needed <= self._quota_bytes() + extra

    def free_bytes(self) -> int:
        """How many bytes of large chunks the store can still take."""
        small, large = (side.environment for side in self._sides)
        free = large.free_bytes() + small.reusable_bytes() - self._reserve_bytes()
        if self._capacity_bytes:
            # Other stores of the volume on this disk want their share of what is left of it.
            free = min(free // self._sharers(), self._quota_bytes())
        return max(0, free)

    def _quota_bytes(self) -> int:
        """What the capacity leaves, by the pages in use."""
        environments = [side.environment for side in self._sides]
        used = sum(each.used_bytes() - each.reusable_bytes() for each in environments)
        return self._capacity_bytes - used

    def _reserve_bytes(self) -> int:
        """What is kept free: less on a tiny disk or with a tiny capacity."""
        stat = os.statvfs(self._folder)
        size = self._capacity_bytes or stat.f_blocks * stat.f_frsize
        return min(SPACE_RESERVE_BYTES, size // RESERVE_SHARE)

    def _sharers(self) -> int:
        """Stores of this volume on this store's disk, as far as their folders are there."""
        volume = os.path.dirname(self._folder)
        device, count = os.stat(self._folder).st_dev, 0
        for name in os.listdir(volume):
            if name.startswith("worker-"):
                with suppress(OSError):
                    count += os.stat(os.path.join(volume, name)).st_dev == device
        return max(1, count)
