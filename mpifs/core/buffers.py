"""Pool of reusable chunk buffers: first touch of memory is slow on virtual machines.

Thread-safe without a lock: list.append and list.pop are atomic in CPython, and the count of kept
bytes, which threads may spoil, is taken anew from time to time.
"""

from __future__ import annotations

_RECOUNT = 256  # buffers given back between two counts.


def capacity_of(size: int) -> int:
    """What a pool's smallest buffer for `size` bytes has room for, its extra bytes left out."""
    return 1 << max(12, (size - 1).bit_length())


class BufferPool:
    """Hands out bytearrays in power-of-two classes (plus `extra` bytes) and takes them back.

    A buffer's content is whatever it held before.  The pool keeps about `kept_bytes` in all; the
    caller must not touch a buffer after giving it back.
    """

    def __init__(self, extra: int, kept_bytes: int) -> None:
        self._extra = extra
        self._kept_bytes = kept_bytes
        self._free: dict[int, list[bytearray]] = {}
        self._room = kept_bytes
        self._uncounted = 0

    def take(self, size: int) -> bytearray:
        """A buffer of at least `size` + extra bytes."""
        capacity = capacity_of(size)
        try:
            buffer = self._free[capacity].pop()
        except (KeyError, IndexError):
            return bytearray(capacity + self._extra)
        self._room += capacity
        return buffer

    def give(self, buffer: bytearray) -> None:
        """Takes a buffer of `take` back."""
        capacity = len(buffer) - self._extra
        if self._room < capacity or self._uncounted >= _RECOUNT:
            self._count()
            if self._room < capacity:
                return
        self._room -= capacity
        self._uncounted += 1
        try:
            self._free[capacity].append(buffer)
        except KeyError:
            self._free.setdefault(capacity, []).append(buffer)

    def _count(self) -> None:
        self._uncounted = 0
        kept = sum(size * len(free) for size, free in list(self._free.items()))
        self._room = self._kept_bytes - kept
