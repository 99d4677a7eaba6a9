"""One changed byte of a guarded record is found again; more are not guessed at."""

from __future__ import annotations

import random

import pytest

from mpifs.core import records
from mpifs.core.image import IMAGE_HEADER_BYTES, encode_header_into
from mpifs.core.mending import correct_byte, correct_header, correct_record, correct_superblock
from mpifs.core.superblock import Role, Superblock
from mpifs.core.superblock import encode as encode_superblock
from mpifs.core.types import ChecksumKind, ChunkKey, ChunkRef

SEED = random.randrange(10**6)
KEY = records.ref_key(7, 3)
VALUE = records.encode_ref(KEY, ChunkRef(12, 4096, bytes(range(16)), (1, 3)))


def changed(data: bytes, at: int, by: int) -> bytes:
    return data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]


def test_each_bit_of_key_and_value_is_put_right() -> None:
    row = KEY + VALUE
    for at in range(len(row)):
        for bit in range(8):
            harmed = changed(row, at, 1 << bit)
            assert correct_record(harmed[: len(KEY)], harmed[len(KEY) :]) == (KEY, VALUE), (at, bit)


def test_any_byte_is_put_right_and_two_are_not() -> None:
    rng = random.Random(SEED)
    print("seed", SEED)
    for _ in range(100):
        row = KEY + VALUE
        first, second = rng.sample(range(len(row)), 2)
        harmed = changed(row, first, rng.randrange(1, 256))
        assert correct_record(harmed[: len(KEY)], harmed[len(KEY) :]) == (KEY, VALUE)
        worse = changed(harmed, second, rng.randrange(1, 256))
        assert correct_record(worse[: len(KEY)], worse[len(KEY) :]) != (worse, b"")
        assert correct_record(worse[: len(KEY)], worse[len(KEY) :]) is None


@pytest.mark.parametrize("by", [1, 64, 255])
def test_headers_and_superblocks(by: int) -> None:
    header = bytearray(IMAGE_HEADER_BYTES)
    encode_header_into(header, 0, ChecksumKind.XXH3_128, ChunkKey(4, 5, 6), 999, bytes(16))
    block = encode_superblock(
        Superblock(Role.STORE, bytes(16), bytes(range(16)), 2, 65536, 1, ChecksumKind.BLAKE3, 1)
    )
    for at in range(len(header)):
        assert correct_header(changed(bytes(header), at, by)) == bytes(header)
    for at in range(len(block)):
        assert correct_superblock(changed(block, at, by)) == block
    assert correct_header(bytes(64)) is None
    assert correct_superblock(b"short") is None


def test_correct_byte_takes_what_is_right_as_it_is() -> None:
    assert correct_byte(b"abc", lambda data: data == b"abc") == b"abc"
    assert correct_byte(b"abd", lambda data: data == b"abc") == b"abc"
    assert correct_byte(b"xyz", lambda data: data == b"abc") is None
