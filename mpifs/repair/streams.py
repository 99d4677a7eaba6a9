"""All stores verify themselves at once; their reports come together as windows in key order.

Each store has one VERIFY under way and a few answers waiting, so none idles while another one is
read.  A window holds the reports of all stores for a range of places (inode, chunk) that is
complete: nothing of it is still to come.  Rows of inode 0 (copies of the index) are not asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias, cast

from mpifs.core.chunk_report import REPORT_BYTES, unpack_reports
from mpifs.core.errors import MpifsError, ProtocolError
from mpifs.core.image import encode_key
from mpifs.core.limits import (
    CHECK_AHEAD_COUNT,
    CHECK_PACED_BYTES,
    CHECK_READ_BYTES,
    CHECK_READ_COUNT,
    FSCK_LOOK_S,
)
from mpifs.core.messages import VerifyReply, decode_args
from mpifs.core.types import ChunkKey
from mpifs.repair.findings import Progress
from mpifs.repair.stores import StoreAccess
from mpifs.transport.client import Pending, wait_any

Spot: TypeAlias = "tuple[int, int]"
"""(inode, chunk)."""

Row: TypeAlias = "tuple[int, int, int, int, int, int, int, int, bytes, int]"
"""inode, chunk, generation, faults, length, named inode, chunk and generation, checksum, store."""

BEFORE_FILES = encode_key(ChunkKey(0, 2**64 - 1, 2**64 - 1))
"""Behind every key of inode 0."""


class Window(NamedTuple):
    """Rows of all places from `low` on, below `high` (None: to the end), in key order."""

    low: Spot
    high: Spot | None
    rows: list[Row]


class _Stream:
    """The reports of one store, asked for ahead."""

    def __init__(self, store: int, after: bytes) -> None:
        self.store = store
        self.after = after
        self.rows: list[Row] = []
        """Not yet given out, in key order."""
        self.ahead: deque[list[Row]] = deque()
        self.pending: Pending | None = None
        self.is_over = False
        """No answer is to come; what is ahead is the rest."""

    @property
    def last(self) -> Spot | None:
        """The last place of which something is here; None at the end: all is here."""
        if self.is_over and not self.ahead:
            return None
        row = self.rows[-1]
        return row[0], row[1]


class Streams:
    """`pace` hears of payload bytes read and may wait; with it the stores read in small steps.

    A store that fails is left out from the place on that it has reached.  Used by one thread.
    """

    def __init__(
        self,
        stores: StoreAccess,
        progress: Progress,
        *,
        data: bool,
        start: bytes = b"",
        pace: Callable[[int], None] | None = None,
    ) -> None:
        self._stores = stores
        self._progress = progress
        self._data = data
        self._pace = pace
        self._size = CHECK_READ_BYTES if pace is None else CHECK_PACED_BYTES
        self._ahead = CHECK_AHEAD_COUNT if pace is None else 0
        self._low: Spot = (0, 0)  # a row of the index may have got there by a damaged key
        after = max(start, BEFORE_FILES)
        if start > BEFORE_FILES:
            self._low = int.from_bytes(start[:8], "big"), int.from_bytes(start[8:16], "big")
            after = encode_key(ChunkKey(*self._low, 0))
        self._streams = [_Stream(store, after) for store in sorted(stores.available)]

    def windows(self) -> Iterator[Window]:
        """All windows, without a gap between them, the last one without an end."""
        for stream in self._streams:
            self._ask(stream)
        while True:
            self._fill()
            lasts = [last for stream in self._streams if (last := stream.last) is not None]
            high = min(lasts, default=None)
            rows: list[Row] = []
            for stream in self._streams:
                rows += _take_below(stream, high)
            rows.sort()
            yield Window(self._low, high, rows)
            if high is None:
                return
            self._low = high

    def _fill(self) -> None:
        """Waits until every store has told of more than one place, or of its end: a window ends at
        the lowest of their last places, of which more may come."""
        while True:
            self._poll()
            for stream in self._streams:
                while stream.ahead and _is_short(stream):
                    stream.rows += stream.ahead.popleft()
            hungry = [s for s in self._streams if not s.is_over and _is_short(s)]
            if not hungry:
                return
            self._progress.check()
            pending = [stream.pending for stream in hungry if stream.pending is not None]
            if pending:
                wait_any(pending, FSCK_LOOK_S)

    def _poll(self) -> None:
        """Takes the answers that have come, and asks on."""
        for stream in self._streams:
            if stream.pending is not None and stream.pending.poll():
                self._take(stream)
            is_idle = stream.pending is None and not stream.is_over
            if is_idle and len(stream.ahead) <= self._ahead:
                self._ask(stream)

    def _ask(self, stream: _Stream) -> None:
        try:
            if stream.store not in self._stores.available:
                stream.is_over = True
                return
            stream.pending = self._stores.ask_reports(
                stream.store, stream.after, CHECK_READ_COUNT, self._size, self._data
            )
        except MpifsError as error:
            self._lose(stream, error)

    def _take(self, stream: _Stream) -> None:
        pending, stream.pending = stream.pending, None
        assert pending is not None
        try:
            reply = pending.wait()
            told = decode_args(bytes(reply.args), VerifyReply)
            body = bytes(reply.body)
            rows = [(*row, stream.store) for row in unpack_reports(body)]
            if rows:
                after = body[-REPORT_BYTES : -REPORT_BYTES + 24]
                if after <= stream.after:
                    raise ProtocolError(f"worker {stream.store} reports its chunks out of order")
                stream.after = after
            elif not told.is_end:
                raise ProtocolError(f"worker {stream.store} does not come to an end")
        except MpifsError as error:
            self._lose(stream, error)
            return
        stream.is_over = told.is_end
        if rows:
            stream.ahead.append(rows)
        self._progress.bytes += told.bytes
        if self._pace is not None:
            self._pace(told.bytes)

    def _lose(self, stream: _Stream, error: MpifsError) -> None:
        stream.pending = None
        stream.is_over = not self._stores.has_returned(stream.store, error)  # else: asked on


def _is_short(stream: _Stream) -> bool:
    """Whether a stream shows no end of the first place that it holds: no window can be cut."""
    rows = stream.rows
    return not rows or rows[0][:2] == rows[-1][:2]


def _take_below(stream: _Stream, high: Spot | None) -> list[Row]:
    """The rows of places below `high`, taken off the stream."""
    rows = stream.rows
    if high is None:
        stream.rows = []
        return rows
    end = bisect_left(cast("list[Spot]", rows), high)  # a row is greater than its own place
    stream.rows = rows[end:]
    return rows[:end]
