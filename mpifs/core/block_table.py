"""The table of block sums that stands behind a chunk in its store.

With it a small read at random needs a block and the table, not the whole chunk.  It counts only if
it belongs to the chunk that the index knows: its guard covers the chunk's key, length and checksum,
which stand in the index.  Whoever stores a chunk makes it from bytes that he has compared with that
checksum.  A table that is missing or wrong is no damage: the whole chunk is summed then.

A guard finds accidents, as xxh3-128 does; volumes whose checksums are to find intent have none.
Layout in doc/format.md, section 3.
"""

from __future__ import annotations

import struct

from mpifs.core.checksum import CHECKSUM_BYTES, Buffer, block_sums, function_of
from mpifs.core.image import IMAGE_HEADER_BYTES, slot_bytes
from mpifs.core.limits import PART_BLOCK_BYTES, PART_CHUNK_BYTES_MIN, PART_TABLED_BYTES_MAX
from mpifs.core.types import ChecksumKind

_BOUND = struct.Struct(">24sQ16s")
_sum = function_of(ChecksumKind.XXH3_128)


def has_table(length: int, kind: int) -> bool:
    """Whether a chunk with `length` payload bytes and a checksum of `kind` has a table."""
    return bool(table_bytes(length)) and kind == ChecksumKind.XXH3_128


def table_bytes(length: int) -> int:
    """Room for the table and its guard behind a chunk with `length` payload bytes."""
    if not PART_CHUNK_BYTES_MIN < length <= PART_TABLED_BYTES_MAX:
        return 0
    return (1 + -(-length // PART_BLOCK_BYTES)) * CHECKSUM_BYTES


def stored_bytes(length: int) -> int:
    """Size of the stored value of a chunk with `length` payload bytes."""
    return IMAGE_HEADER_BYTES + slot_bytes(length) + table_bytes(length)


def add_table(
    value: bytearray | memoryview, key: bytes, length: int, checksum: bytes, kind: int
) -> None:
    """Puts the table of the payload into a value of `stored_bytes`, if it is to have one: best done
    while the payload is in the processor's cache.

    Requires: the payload has been compared with `checksum`; `key` is encoded.
    """
    if not has_table(length, kind):
        return
    payload = memoryview(value)[IMAGE_HEADER_BYTES : IMAGE_HEADER_BYTES + length]
    sums = block_sums(payload, PART_BLOCK_BYTES, _sum)
    at = IMAGE_HEADER_BYTES + slot_bytes(length)
    memoryview(value)[at : at + table_bytes(length)] = _guard(key, length, checksum, sums) + sums


def checked_table(stored: Buffer, key: bytes, length: int, checksum: bytes) -> bytes | None:
    """The sums, if what was read where a table should be is that of this chunk (encoded key)."""
    sums = bytes(stored[CHECKSUM_BYTES:])
    is_right = stored[:CHECKSUM_BYTES] == _guard(key, length, checksum, sums)
    return sums if is_right and len(stored) == table_bytes(length) else None


def _guard(key: bytes, length: int, checksum: bytes, sums: bytes) -> bytes:
    return _sum(_BOUND.pack(key, length, checksum) + sums)
