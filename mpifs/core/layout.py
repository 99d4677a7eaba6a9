"""(offset, length) of a file ↔ extents inside its chunks.  Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """A byte range inside one chunk, and where it stands in the caller's buffer."""

    chunk: int
    start: int
    length: int
    position: int


def extents(offset: int, length: int, chunk_size: int) -> Iterator[Extent]:
    """Yields the extents of `[offset, offset + length)` in order; none for length 0.

    Requires: offset >= 0, length >= 0, chunk_size > 0.
    """
    position = 0
    while position < length:
        index, start = divmod(offset + position, chunk_size)
        size = min(chunk_size - start, length - position)
        yield Extent(index, start, size, position)
        position += size


def chunk_count(size: int, chunk_size: int) -> int:
    """Number of chunk indexes that a file of `size` bytes covers."""
    return -(-size // chunk_size)


def chunk_bytes(index: int, size: int, chunk_size: int) -> int:
    """How many bytes of chunk `index` lie below the end of a file of `size` bytes."""
    return max(0, min(chunk_size, size - index * chunk_size))


def is_chunk_size(value: int, smallest: int, largest: int) -> bool:
    """Chunk sizes are powers of two between the limits."""
    return smallest <= value <= largest and value & (value - 1) == 0
