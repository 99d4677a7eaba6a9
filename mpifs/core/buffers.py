"""Pool of reusable chunk buffers: first touch of memory is slow on virtual machines."""

from __future__ import annotations

import threading

class BufferPool:
    """Hands out bytearrays in power-of-two classes (plus `extra` bytes) and takes them back.

    A buffer's content is whatever it held before.  The pool keeps `kept_bytes` in all; the caller
    must not touch a buffer after giving it back.  Any thread; `_lock` guards the fields below it.
    """

    def __init__(self, extra: int, kept_bytes: int) -> None:
        self._extra = extra
        self._kept_bytes = kept_bytes
        self._lock = threading.Lock()
        self._free: dict[int, list[bytearray]] = {}
        self._held_bytes = 0

    def take(self, size: int) -> bytearray:
        """A buffer of at least `size` + extra bytes."""
        capacity = 1 << max(12, (size - 1).bit_length())
        with self._lock:
            free = self._free.get(capacity)
            if free:
                self._held_bytes -= capacity
                return free.pop()
        return bytearray(capacity + self._extra)

    def give(self, buffer: bytearray) -> None:
        """Takes a buffer of `take` back."""
        capacity = len(buffer) - self._extra
        with self._lock:
            if self._held_bytes + capacity <= self._kept_bytes:
                self._held_bytes += capacity
                self._free.setdefault(capacity, []).append(buffer)
