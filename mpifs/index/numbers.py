"""Numbers that are never used twice in a volume: inode numbers and generations.

A limit stands on disk; numbers below it may have been used.  Opening raises it by a whole range
before the first number is handed out, and it is raised again long before the range is exhausted,
so that the new limit rides on an ordinary commit.

Invariant: next <= durable <= wanted; a number is handed out only below `durable`, the limit that
is known to be on disk.  So no crash makes a number come twice.
"""

from __future__ import annotations

from mpifs.core.limits import NUMBER_RESERVE


class NumberRange:
    """One kind of number.  Guarded by the index's lock.

    `key` names its limit in the database `meta`.
    """

    __slots__ = ("durable", "key", "next", "reserve", "wanted")

    def __init__(self, key: bytes, limit: int, reserve: int = NUMBER_RESERVE) -> None:
        self.key = key
        self.next = limit
        self.durable = limit
        self.wanted = limit
        self.reserve = reserve

    def take(self) -> int:
        """A number never handed out before, or 0: make a higher limit durable first."""
        number = self.next
        if number >= self.durable:
            return 0
        self.next = number + 1
        return number

    def raise_limit(self) -> bool:
        """Raises the wanted limit if less than half a range is left; True if one is wanted."""
        if self.wanted - self.next < self.reserve // 2:
            self.wanted = self.next + self.reserve
        return self.wanted > self.durable

    def settle(self, limit: int) -> None:
        """A limit is on disk now."""
        self.durable = max(self.durable, limit)
        self.wanted = max(self.wanted, limit)
