"""The memory of dirty chunks: bounded, pooled; writers wait for room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mpifs.core.buffers import BufferPool
from mpifs.core.errors import MpifsError
from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import REQUEST_TIMEOUT_S

_SMALLEST_BUFFER = 4096
_GROWTH = 16  # each growth copies the buffer: few, large steps.


def capacity_for(end: int, chunk_size: int) -> int:
    """Payload bytes of a buffer for `end` bytes: small files get small buffers, and a growing one
    soon gets a whole chunk's."""
    size = _SMALLEST_BUFFER
    while size < end:
        size *= _GROWTH
    return min(size, chunk_size)


def buffer_bytes(chunk_size: int) -> int:
    """Length of a buffer that holds a whole chunk."""
    return IMAGE_HEADER_BYTES + chunk_size


class DirtyMemory:
    """Buffers of dirty and in-flight chunks, from `pool` (whose extra room is a header's).

    `_room` guards `bytes_used` and `_waiting`; any thread may call.
    """

    def __init__(self, bytes_max: int, pool: BufferPool) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self._room = threading.Condition()
        self._waiting = 0
        self._pool = pool

    def take(self, capacity: int) -> bytearray:
        """A buffer with room for a header and `capacity` bytes of payload; never waits."""
        buffer = self._pool.take(capacity)
        with self._room:
            self.bytes_used += len(buffer)
        return buffer

    def give(self, buffer: bytearray, keep: bool = True) -> None:
        """Takes a buffer back.  Without `keep` it is not reused: somebody else has it now, or MPI
        may still read it after a send that failed."""
        with self._room:
            self.bytes_used -= len(buffer)
            if self._waiting:
                self._room.notify_all()
        if keep:
            self._pool.give(buffer)

    def wait_for(self, size: int, flush: Callable[[], None]) -> None:
        """Waits until `size` more bytes fit, having `flush` begun meanwhile.

        Raises MpifsError when the workers take nothing until the deadline.
        Requires: no other lock is held.
        """
        if self.bytes_used + size <= self.bytes_max:
            return
        deadline = time.monotonic() + 2 * REQUEST_TIMEOUT_S
        while self.bytes_used and self.bytes_used + size > self.bytes_max:
            flush()
            with self._room:
                if self.bytes_used and self.bytes_used + size > self.bytes_max:
                    self._waiting += 1
                    self._room.wait(0.5)
                    self._waiting -= 1
            if time.monotonic() > deadline:
                raise MpifsError("workers do not take data: write-back is stuck")
