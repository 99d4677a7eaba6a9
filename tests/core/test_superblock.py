"""Superblocks: golden bytes, round trips, refusals that say what to do."""

from __future__ import annotations

import contextlib
import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.checksum import guard64
from mpifs.core.errors import FormatError
from mpifs.core.superblock import SUPERBLOCK_BYTES, Role, Superblock, decode, encode
from mpifs.core.types import ChecksumKind

GOLDEN = (
    "6d70696673564f4c" "0100" "0200" "00000000" "000102030405060708090a0b0c0d0e0f" "101112131415161718191a1b1c1d1e1f"
    "07000000" "00001000" "0200" "0200" "0000006500000000" + "00" * 52 + "977183f5339481f4"
)  # fmt: skip
GOLDEN_BLOCK = Superblock(
    Role.STORE,
    bytes(range(16)),
    bytes(range(16, 32)),
    7,
    1 << 20,
    2,
    ChecksumKind.BLAKE3,
    0x65000000,
)
UUIDS = st.binary(min_size=16, max_size=16)
BLOCKS = st.builds(
    Superblock, st.sampled_from(list(Role)), UUIDS, UUIDS, st.integers(0, 2**32 - 1), st.integers(0, 14).map(lambda n: 4096 << n),
    st.integers(1, 8), st.sampled_from(list(ChecksumKind)), st.integers(0, 2**64 - 1),
)  # fmt: skip


def resealed(place: int, fmt: str, value: int) -> bytes:
    """The golden block with one field changed and the checksum made right again."""
    data = bytearray.fromhex(GOLDEN)
    struct.pack_into(fmt, data, place, value)
    struct.pack_into("<Q", data, 120, guard64(data[:120]))
    return bytes(data)


def test_golden() -> None:
    assert encode(GOLDEN_BLOCK).hex() == GOLDEN
    assert decode(bytes.fromhex(GOLDEN), "x") == GOLDEN_BLOCK
    bounded = dataclasses.replace(GOLDEN_BLOCK, capacity_bytes=500 << 30)
    data = encode(bounded)
    assert data[12:16] == b"\1\0\0\0"
    assert data[68:76] == (500 << 30).to_bytes(8, "little")
    assert decode(data, "x") == bounded


@given(BLOCKS)
def test_round_trip(block: Superblock) -> None:
    data = encode(block)
    assert len(data) == SUPERBLOCK_BYTES
    assert decode(data, "x") == block
    assert decode(memoryview(data), "x") == dataclasses.replace(block)


@given(st.integers(0, SUPERBLOCK_BYTES * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    data = bytearray.fromhex(GOLDEN)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        decode(data, "x")


@given(st.binary(max_size=300))
def test_hostile_bytes(data: bytes) -> None:
    for candidate in (data, (b"mpifsVOL\1\0" + data).ljust(128, b"\0")[:128]):
        with contextlib.suppress(FormatError):
            decode(candidate, "x")


@pytest.mark.parametrize(
    ("place", "fmt", "value", "words"),
    [
        (8, "<H", 2, "install"),
        (12, "<I", 2, "install"),
        (10, "<H", 9, "role"),
        (58, "<H", 77, "checksum"),
        (52, "<I", 5000, "geometry"),
        (52, "<I", 2048, "geometry"),
        (52, "<I", 1 << 27, "geometry"),
        (56, "<H", 0, "geometry"),
        (56, "<H", 9, "geometry"),
        (0, "<B", 0, "no mpifs superblock"),
    ],
)
def test_refusals_say_what_is_wrong(place: int, fmt: str, value: int, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        decode(resealed(place, fmt, value), "/disk/index/superblock")
    assert "/disk/index/superblock" in str(caught.value)


def test_wrong_length_and_wrong_guard() -> None:
    for data in (b"", bytes.fromhex(GOLDEN)[:-1], bytes.fromhex(GOLDEN) + b"\0"):
        with pytest.raises(FormatError, match="no mpifs superblock"):
            decode(data, "x")
    with pytest.raises(FormatError, match="damaged"):
        decode(bytes.fromhex(GOLDEN)[:-1] + b"\0", "x")
