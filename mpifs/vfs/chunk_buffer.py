"""A dirty chunk in memory.

Its bytes are: what was written (`written` intervals), elsewhere the first `base_limit` bytes of
its base (the stored chunk, or the buffer of it that is on its way), elsewhere zeros.  Filling from
the base waits until somebody needs it: a chunk that is overwritten whole never reads its base.

States: OPEN (may change) → IN_FLIGHT (frozen: the scatter thread reads it) → gone.
"""

from __future__ import annotations

from mpifs.core import intervals
from mpifs.core.image import IMAGE_HEADER_BYTES as ROOM
from mpifs.core.types import ChunkRef


class ChunkBuffer:
    """Guarded by the lock of its file's FileData, but for what the scatter thread reads in flight.

    `length` is the payload length; `capacity` is what the buffer can take; `since` the time of the
    first write, `parked_s` that when first no worker took it (0 = never); `is_cancelled` says that
    a truncate or hole has made an in-flight chunk void.
    """

    __slots__ = (
        "base",
        "base_limit",
        "base_ref",
        "buffer",
        "chunk",
        "is_cancelled",
        "is_done",
        "length",
        "outgoing",
        "parked_s",
        "since",
        "tries",
        "written",
    )

    def __init__(self, chunk: int, buffer: bytearray, since: float) -> None:
        self.chunk = chunk
        self.buffer = buffer
        self.since = since
        self.length = 0
        self.written: intervals.Intervals = []
        self.base_ref: ChunkRef | None = None
        self.base: ChunkBuffer | None = None
        self.base_limit = 0
        self.is_cancelled = False
        self.is_done = False
        self.tries = 0
        self.parked_s = 0.0
        self.outgoing: object | None = None

    @property
    def capacity(self) -> int:
        """Payload bytes that fit."""
        return len(self.buffer) - ROOM

    def set_base(self, ref: ChunkRef | None, buffer: ChunkBuffer | None, limit: int) -> None:
        """What lies under the written bytes: a stored chunk or a buffer on its way."""
        self.base_ref = ref
        self.base = buffer
        self.base_limit = limit if ref is not None or buffer is not None else 0
        self.length = max(self.length, self.base_limit)

    def hold(self, length: int) -> None:
        """The first `length` bytes of payload stand in the buffer already.  State OPEN, empty."""
        self.written = [(0, length)]
        self.length = length

    def write(self, start: int, data: memoryview) -> None:
        """Copies `data` in at `start`.  Requires: start + len(data) <= capacity, state OPEN."""
        end = start + len(data)
        # Not into the bytearray itself: that would copy `data` first.
        memoryview(self.buffer)[ROOM + start : ROOM + end] = data
        intervals.add(self.written, start, end)
        self.length = max(self.length, end)

    def write_zeros(self, start: int, end: int) -> None:
        """As `write` of zeros."""
        self.write(start, memoryview(bytes(end - start)))

    def truncate(self, length: int) -> None:
        """Forgets everything from `length` on.  State OPEN."""
        intervals.clip(self.written, length)
        self.base_limit = min(self.base_limit, length)
        self.length = min(self.length, length)

    @property
    def needs_base(self) -> bool:
        """Whether bytes of the base are missing in the buffer."""
        return bool(self.base_limit) and not intervals.covers(self.written, 0, self.base_limit)

    def fill(self, base: memoryview | None) -> None:
        """Copies the base's bytes and zeros into the gaps; afterwards the buffer is whole.

        Requires: base has at least base_limit bytes if needs_base.
        """
        view = memoryview(self.buffer)[ROOM:]
        for start, end in intervals.gaps(self.written, self.length):
            middle = max(start, min(end, self.base_limit))
            if start < middle:
                assert base is not None
                view[start:middle] = base[start:middle]
            if middle < end:
                view[middle:end] = bytes(end - middle)
        self.written = [(0, self.length)] if self.length else []
        self.base_ref = None
        self.base = None
        self.base_limit = 0

    def view(self, start: int, end: int) -> memoryview:
        """Payload bytes [start, end).  Requires: they are written or the buffer is filled."""
        return memoryview(self.buffer)[ROOM + start : ROOM + end]

    def grow(self, buffer: bytearray) -> bytearray:
        """Moves into a larger buffer; returns the old one."""
        old = self.buffer
        end = ROOM + self.length
        memoryview(buffer)[ROOM:end] = memoryview(old)[ROOM:end]
        self.buffer = buffer
        return old
