"""What the benchmark's files hold: bytes that tell where they belong, at no cost in the loop.

A file of seed S is one random block of PERIOD_BYTES, repeated.  The period is a prime, so no two
chunks of a file (of less than 16 Mi chunks) are equal, and a piece of a file is a slice of one
buffer that was made before the clock started.
"""

from __future__ import annotations

import random
from functools import lru_cache

from mpifs.core.limits import MIB

PERIOD_BYTES = 16 * MIB + 43
"""The first prime above 16 MiB: beyond the processor's nearer caches, as real data would be."""

_SLICE_BYTES_MAX = 4 * MIB


@lru_cache(maxsize=4)
def block_of(seed: int) -> memoryview:
    """The block of a seed, with its own beginning behind it, so that slices need not wrap."""
    block = random.Random(seed).randbytes(PERIOD_BYTES)
    return memoryview(block + block[:_SLICE_BYTES_MAX])


def piece(seed: int, offset: int, length: int) -> memoryview:
    """Bytes of a file from `offset` on.  Requires: length <= 4 MiB."""
    assert length <= _SLICE_BYTES_MAX
    start = offset % PERIOD_BYTES
    return block_of(seed)[start : start + length]
