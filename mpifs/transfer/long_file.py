"""Moves one long file: facts and checksums first, then the chunks that are missing, then the end.

    source: sums of all chunks ─▶ begin ─▶ have (named file?) ─▶ have (part): missing chunks
    ─▶ read, compare, write … several at once ─▶ have: read back ─▶ unchanged? ─▶ finish

The source is read twice, to sum and to send: so what the receiver has already need not travel, and
a source that changes is noticed, by its version and by its sums.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from mpifs.core.checksum import CHECKSUM_BYTES, Buffer
from mpifs.core.errors import DamageError, was_garbled
from mpifs.core.layout import chunk_bytes as bytes_of_chunk
from mpifs.core.limits import (
    GARBLED_TRIES,
    TRANSFER_SUM_BYTES,
    TRANSFER_SUM_COUNT,
    TRANSFER_WINDOW,
)
from mpifs.core.transfer_messages import Entry, chunk_bytes_of
from mpifs.transfer.chunks import sum_of, sum_of_sums
from mpifs.transfer.ends import Promise, Sink, Source
from mpifs.transfer.folder import shown
from mpifs.transfer.source import changed
from mpifs.transfer.tally import Tally


class _Written(NamedTuple):
    """A chunk on its way to the sink."""

    chunk: int
    data: Buffer
    promise: Promise[None]


def move_long(
    source: Source, entry: Entry, sink: Sink, target: Entry, tally: Tally, chunk_bytes: int = 0
) -> None:
    """Moves `entry` to where `target` says, in chunks of its own size unless one is given.

    Raises OSError; the part stays then.
    """
    tally.current = entry.path
    chunk_bytes = chunk_bytes or chunk_bytes_of(entry.size)
    sums = all_sums(source, entry, chunk_bytes, tally)
    begun = sink.begin(target, chunk_bytes, sum_of_sums(entry.size, sums))
    before = tally.bytes
    is_named = False
    try:
        receiver = _Receiver(sink, begun.number, sums, span_of(chunk_bytes), tally)
        if not (begun.has_file and receiver.has_all()):
            missing = receiver.missing()
            tally.bytes += sum(
                bytes_of_chunk(index, entry.size, chunk_bytes)
                for index in range(len(sums) // CHECKSUM_BYTES)
                if index not in missing
            )
            _send(source, entry, chunk_bytes, sums, sink, begun.number, missing, tally)
            if source.look(entry.path).version != entry.version:
                raise changed(entry)
            receiver.compare(missing, shown(target.path))
        sink.finish(begun.number)
        is_named = True
    finally:
        if not is_named:
            sink.abandon(begun.number)
    tally.bytes = before + entry.size
    tally.files += 1
    tally.chunks += len(sums) // CHECKSUM_BYTES
    tally.current = b""


def span_of(chunk_bytes: int) -> int:
    """How many chunks are summed by one request."""
    return max(1, min(TRANSFER_SUM_COUNT, TRANSFER_SUM_BYTES // chunk_bytes))


def all_sums(source: Source, entry: Entry, chunk_bytes: int, tally: Tally) -> bytes:
    """The checksums of a file's chunks.  Raises PosixError(ESTALE) when it changes meanwhile."""
    count, span = -(-entry.size // chunk_bytes), span_of(chunk_bytes)
    parts = []
    for first in range(0, count, span):
        tally.check()
        parts.append(source.sums(entry, chunk_bytes, first, min(span, count - first)))
    sums = b"".join(parts)
    if len(sums) != count * CHECKSUM_BYTES:
        raise DamageError(f"{shown(entry.path)}: its checksums are not as many as its chunks")
    return sums


class _Receiver:
    """What the sink has of one file."""

    def __init__(self, sink: Sink, number: int, sums: bytes, span: int, tally: Tally) -> None:
        self._sink = sink
        self._number = number
        self._sums = sums
        self._span = span
        self._tally = tally

    def _have(self, first: int, *, of_file: bool) -> bytes:
        self._tally.check()
        end = (first + self._span) * CHECKSUM_BYTES
        sums = self._sums[first * CHECKSUM_BYTES : end]
        return self._sink.have(self._number, first, sums, of_file=of_file)

    def _firsts(self) -> range:
        return range(0, len(self._sums) // CHECKSUM_BYTES, self._span)

    def has_all(self) -> bool:
        """Whether the file that has the name is the same already."""
        return all(all(self._have(first, of_file=True)) for first in self._firsts())

    def missing(self) -> set[int]:
        """Chunks that are not in the partial file."""
        return {
            first + place
            for first in self._firsts()
            for place, is_there in enumerate(self._have(first, of_file=False))
            if not is_there
        }

    def compare(self, written: set[int], name: str) -> None:
        """Has what was written read back.  Raises DamageError."""
        for first in sorted({index // self._span * self._span for index in written}):
            there = self._have(first, of_file=False)
            if not all(there):
                index = first + there.index(0)
                raise DamageError(
                    f"{name}: chunk {index} is not on the disk as it was sent; nothing got its "
                    "name, send it again"
                )


def _send(
    source: Source,
    entry: Entry,
    chunk_bytes: int,
    sums: bytes,
    sink: Sink,
    number: int,
    missing: set[int],
    tally: Tally,
) -> None:
    """Reads chunks ahead and writes them behind, TRANSFER_WINDOW each."""
    reads: deque[tuple[int, Promise[Buffer]]] = deque()
    writes: deque[_Written] = deque()

    def sum_at(index: int) -> bytes:
        return sums[index * CHECKSUM_BYTES : (index + 1) * CHECKSUM_BYTES]

    def forward() -> None:
        index, promise = reads.popleft()
        data = promise.get()
        if sum_of(data) != sum_at(index):  # damaged on its way, or changed
            start, length = index * chunk_bytes, len(data)
            data = source.read(entry, start, length).get()
            if sum_of(data) != sum_at(index):
                raise changed(entry)
        writes.append(_Written(index, data, sink.write(number, index, data, sum_at(index))))

    def settle() -> None:
        written = writes.popleft()
        _await(sink, number, written, sum_at(written.chunk))
        tally.sent += 1
        tally.sent_bytes += len(written.data)
        tally.bytes += len(written.data)

    for index in sorted(missing):
        tally.check()
        length = bytes_of_chunk(index, entry.size, chunk_bytes)
        reads.append((index, source.read(entry, index * chunk_bytes, length)))
        if len(reads) >= TRANSFER_WINDOW:
            forward()
        if len(writes) >= TRANSFER_WINDOW:
            settle()
    while reads:
        forward()
    while writes:
        settle()


def _await(sink: Sink, number: int, written: _Written, checksum: bytes) -> None:
    """Waits for a chunk to be stored; one that was damaged on its way is sent again."""
    promise = written.promise
    for left in range(GARBLED_TRIES - 1, -1, -1):
        try:
            promise.get()
            return
        except OSError as error:
            if not left or not was_garbled(error):
                raise
        promise = sink.write(number, written.chunk, written.data, checksum)
