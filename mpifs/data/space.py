"""How many payload bytes a volume can still take.

Every answer of a worker tells what its store can still take.  Stores may share a disk: then they
tell the same free bytes, which count once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


class Space:
    """Free bytes by store.  Any thread: dict operations are atomic in CPython.

    `disk_of` maps a store to a name of the file system it lies on, equal for stores that share
    one; it may change.
    """

    def __init__(self, free: Mapping[int, int], disk_of: Mapping[int, str]) -> None:
        self._free: dict[int, int] = dict(free)
        self._disk_of = disk_of
        self._left_out: frozenset[int] = frozenset()
        self._fits = 0
        self._count()

    def told(self, store: int, free: int) -> None:
        """A worker has told what its store can still take."""
        if self._free.get(store) != free:
            self._free[store] = free
            self._count()

    def leave_out(self, stores: Iterable[int]) -> None:
        """Stores that get no new chunks from now on: lost, being drained, or gone."""
        left_out = frozenset(stores)
        if left_out != self._left_out:
            self._left_out = left_out
            self._count()

    def _count(self) -> None:
        """With k of n stores on a disk, k/n of all bytes go there: the disk that would be full
        first decides.  Done here and not in free_bytes, which every write asks."""
        least: dict[str, int] = {}
        stores_on: Counter[str] = Counter()
        for store, free in list(self._free.items()):
            if store not in self._left_out:
                disk = self._disk_of.get(store, str(store))
                least[disk] = min(free, least.get(disk, free))
                stores_on[disk] += 1
        count = stores_on.total()
        self._fits = min(
            (free * count // stores_on[disk] for disk, free in least.items()), default=0
        )

    def free_bytes(self, replicas: int) -> int:
        """Payload bytes that fit when chunks are dealt round-robin over all stores."""
        return max(0, self._fits // max(1, replicas))
