"""How many payload bytes a volume can still take.

Every answer of a worker tells what its store can still take.  Stores may share a disk: then they
tell the same free bytes, which count once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class Space:
    """Free bytes by store.  Any thread: dict operations are atomic in CPython.

    `disk_of` maps a store to a name of the file system it lies on, equal for stores that share
    one.
    """

    def __init__(self, free: Mapping[int, int], disk_of: Mapping[int, str]) -> None:
        self._free: dict[int, int] = dict(free)
        self._disk_of = dict(disk_of)

    def told(self, store: int, free: int) -> None:
        """A worker has told what its store can still take."""
        self._free[store] = free

    def free_bytes(self, replicas: int) -> int:
        """Payload bytes that fit when chunks are dealt round-robin over all stores.

        The disk that is full first decides: with k of n stores on a disk, k/n of all bytes go
        there.
        """
        if not self._free:
            return 0
        on_disk = Counter(self._disk_of.get(store, str(store)) for store in self._free)
        least: dict[str, int] = {}
        for store, free in self._free.items():
            disk = self._disk_of.get(store, str(store))
            least[disk] = min(free, least.get(disk, free))
        fits = min(free * len(self._free) // on_disk[disk] for disk, free in least.items())
        return max(0, fits // max(1, replicas))
