"""Changes that are not committed yet, of one database, and their merge with what is on disk.

Two layers: `top` takes the changes, `sealed` is what the commit under way (or the one that failed)
writes.  A value of None says that the row is deleted.  Rows are found by a group (an inode number,
or 0) and a key inside it, so that a directory or a file is scanned without the rest.

Invariants: top wins over sealed, sealed over the disk; a key never leaves a layer but by `drop`,
so the keys of a group can be kept sorted (`_sorted_*`) and only new ones be sorted in.

All of it is guarded by the index's lock, but `rows`: while a commit is under way nobody changes
the sealed layer, and the committer reads it without the lock.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import islice
from operator import itemgetter
from typing import Any, Final, Generic, TypeAlias, TypeVar

K = TypeVar("K", bound=Any)
V = TypeVar("V")


class Unknown(Enum):
    """Type of UNKNOWN: neither layer says anything of the key; ask the disk."""

    UNKNOWN = 0


UNKNOWN: Final = Unknown.UNKNOWN


class Table(Generic[K, V]):
    """The two layers of one database.

    `encode_key(group, key)` gives the key on disk, `encode(key on disk, value)` the record.
    """

    __slots__ = (
        "_encode",
        "_encode_key",
        "_sorted_sealed",
        "_sorted_top",
        "database",
        "sealed",
        "top",
    )

    def __init__(
        self,
        database: str,
        encode_key: Callable[[int, K], bytes],
        encode: Callable[[bytes, V], bytes],
    ) -> None:
        self.database = database
        self.top: dict[int, dict[K, V | None]] = {}
        self.sealed: dict[int, dict[K, V | None]] = {}
        self._encode_key = encode_key
        self._encode = encode
        self._sorted_top: dict[int, list[K]] = {}
        self._sorted_sealed: dict[int, list[K]] = {}

    def put(self, group: int, key: K, value: V | None) -> None:
        """Sets (or with None deletes) one row."""
        try:
            self.top[group][key] = value
        except KeyError:
            self.top[group] = {key: value}

    def find(self, group: int, key: K) -> V | Unknown | None:
        """The newest change of a row: its value, None if deleted, UNKNOWN if there is none."""
        rows = self.top.get(group)
        if rows is not None and key in rows:
            return rows[key]
        rows = self.sealed.get(group)
        if rows is not None and key in rows:
            return rows[key]
        return UNKNOWN

    def changes(self, group: int, start: K) -> Iterator[tuple[K, V | None]]:
        """The newest changes of a group from key `start` on, in key order.

        Costs, besides what is taken from the iterator, the time to sort in the keys that are new
        since the last call.  Nothing may be put while it is in use.
        """
        top = self.top.get(group)
        sealed = self.sealed.get(group)
        if top is None and sealed is None:
            return iter(())
        if sealed is None:
            assert top is not None
            return _from(top, _order(top, group, self._sorted_top), start)
        below = _from(sealed, _order(sealed, group, self._sorted_sealed), start)
        if top is None:
            return below
        above = _from(top, _order(top, group, self._sorted_top), start)
        return _layered(above, below)

    def seal(self) -> bool:
        """Moves the top layer into the sealed one; False if there is nothing to commit.

        Cheap (a swap) unless a commit has failed: then the top layer is merged into what waits.
        """
        if self.top:
            if self.sealed:
                for group, rows in self.top.items():
                    self.sealed.setdefault(group, {}).update(rows)
                self._sorted_sealed.clear()
            else:
                self.sealed = self.top
                self._sorted_sealed = self._sorted_top
            self.top = {}
            self._sorted_top = {}
        return bool(self.sealed)

    def drop(self) -> None:
        """Forgets the sealed layer: it is on disk now."""
        self.sealed = {}
        self._sorted_sealed = {}

    def rows(self) -> Iterator[tuple[bytes, bytes | None]]:
        """The sealed layer as keys and records (None: delete), near each other on disk in turn."""
        encode_key = self._encode_key
        encode = self._encode
        for group in sorted(self.sealed):
            for key, value in sorted(self.sealed[group].items(), key=_first):
                raw = encode_key(group, key)
                yield raw, None if value is None else encode(raw, value)

    def count_sealed(self) -> int:
        """Number of rows in the sealed layer."""
        return sum(map(len, self.sealed.values()))


AnyTable: TypeAlias = "Table[Any, Any]"

_first = itemgetter(0)


def _order(rows: dict[K, V | None], group: int, orders: dict[int, list[K]]) -> list[K]:
    """The keys of a group in order; those since the last call stand last in the dict."""
    known = orders.get(group)
    if known is None:
        known = orders[group] = sorted(rows)
    elif len(known) < len(rows):
        known.extend(islice(rows, len(known), None))
        known.sort()
    return known


def _from(rows: dict[K, V | None], order: list[K], start: K) -> Iterator[tuple[K, V | None]]:
    for index in range(bisect_left(order, start), len(order)):
        key = order[index]
        yield key, rows[key]


def _layered(above: Iterator[tuple[K, V]], below: Iterator[tuple[K, V]]) -> Iterator[tuple[K, V]]:
    """Both in key order; where both have a key, the row of `above` alone."""
    last: Any = UNKNOWN
    for row in heapq.merge(above, below, key=_first):  # stable: of equal keys, above comes first
        if row[0] != last:
            last = row[0]
            yield row


def merged(
    changes: Iterator[tuple[K, V | None]], disk: Iterator[tuple[K, V]]
) -> Iterator[tuple[K, V]]:
    """What is there: the rows on disk with the changes applied, in key order."""
    for key, value in _layered(changes, disk):
        if value is not None:
            yield key, value
