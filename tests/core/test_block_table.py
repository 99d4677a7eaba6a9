"""Tables of block sums: only those of the chunk that the index knows count."""

from __future__ import annotations

import random

import pytest

from mpifs.core.block_table import (
    add_table,
    checked_table,
    has_table,
    stored_bytes,
    table_bytes,
)
from mpifs.core.checksum import block_sums, function_of
from mpifs.core.image import IMAGE_HEADER_BYTES, encode_key, slot_bytes
from mpifs.core.limits import KIB, MIB, PART_BLOCK_BYTES, PART_TABLED_BYTES_MAX
from mpifs.core.types import ChecksumKind, ChunkKey

KIND = ChecksumKind.XXH3_128
SUM = function_of(KIND)
KEY = encode_key(ChunkKey(7, 2, 9))


def made(length: int, kind: ChecksumKind = KIND) -> tuple[bytes, bytes, bytes]:
    """Payload, its checksum and what is stored where a table should be."""
    payload = random.Random(length).randbytes(length)
    checksum = function_of(kind)(payload)
    value = bytearray(stored_bytes(length))
    value[IMAGE_HEADER_BYTES : IMAGE_HEADER_BYTES + length] = payload
    before = bytes(value)
    add_table(value, KEY, length, checksum, kind)
    at = IMAGE_HEADER_BYTES + slot_bytes(length)
    assert value[:at] == before[:at]
    return payload, checksum, bytes(value[at:])


@pytest.mark.parametrize("length", [128 * KIB + 1, 600_000, MIB - 1, MIB, PART_TABLED_BYTES_MAX])
def test_the_sums_of_all_blocks(length: int) -> None:
    payload, checksum, stored = made(length)
    assert len(stored) == table_bytes(length)
    sums = checked_table(stored, KEY, length, checksum)
    assert sums == block_sums(memoryview(payload), PART_BLOCK_BYTES, SUM)


def test_of_another_chunk() -> None:
    length = 300_000
    _, checksum, stored = made(length)
    other = encode_key(ChunkKey(7, 2, 10))
    assert checked_table(stored, other, length, checksum) is None
    assert checked_table(stored, KEY, length - 1, checksum) is None
    assert checked_table(stored, KEY, length, SUM(b"other")) is None
    assert checked_table(stored[:-1], KEY, length, checksum) is None
    assert checked_table(stored + b"x", KEY, length, checksum) is None
    assert checked_table(b"", KEY, length, checksum) is None
    assert checked_table(bytes(len(stored)), KEY, length, checksum) is None


def test_any_flipped_bit_shows() -> None:
    length = 300_000
    _, checksum, stored = made(length)
    for bit in range(8 * len(stored)):
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        assert checked_table(flipped, KEY, length, checksum) is None


def test_a_table_takes_no_page_more() -> None:
    """Of LMDB's, with its header of 16 bytes: holes of chunks without one are as large."""
    for power in range(15, 27):
        for length in (1 << power, (1 << power) + 1):
            without = 16 + IMAGE_HEADER_BYTES + slot_bytes(length)
            assert (16 + stored_bytes(length) + 4095) // 4096 == (without + 4095) // 4096


@pytest.mark.parametrize("length", [0, 1, 32 * KIB, 128 * KIB, PART_TABLED_BYTES_MAX + 1])
def test_short_and_very_long_chunks_have_none(length: int) -> None:
    assert not has_table(length, KIND)
    assert made(length)[2] == b""


def test_checksums_that_find_intent_have_none() -> None:
    """A guard could be made by whoever can write to the store."""
    assert not has_table(MIB, ChecksumKind.BLAKE3)
    assert made(MIB, ChecksumKind.BLAKE3)[2] == bytes(table_bytes(MIB))
