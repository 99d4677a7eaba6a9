"""Pool of reusable chunk buffers: first touch of memory is slow on virtual machines.

Thread-safe without a lock: list.append and list.pop are atomic in CPython.
"""

from __future__ import annotations


class BufferPool:
    """Hands out bytearrays in power-of-two classes (plus `extra` bytes) and takes them back.

    A buffer's content is whatever it held before.  The pool keeps about `kept_bytes` in all; the
    caller must not touch a buffer after giving it back.
    """

    def __init__(self, extra: int, kept_bytes: int) -> None:
        self._extra = extra
        self._kept_bytes = kept_bytes
        self._free: dict[int, list[bytearray]] = {}

    def take(self, size: int) -> bytearray:
        """A buffer of at least `size` + extra bytes."""
        capacity = 1 << max(12, (size - 1).bit_length())
        try:
            return self._free[capacity].pop()
        except (KeyError, IndexError):
            return bytearray(capacity + self._extra)

    def give(self, buffer: bytearray) -> None:
        """Takes a buffer of `take` back."""
        capacity = len(buffer) - self._extra
        kept = sum(size * len(free) for size, free in list(self._free.items()))
        if kept + capacity <= self._kept_bytes:
            self._free.setdefault(capacity, []).append(buffer)
