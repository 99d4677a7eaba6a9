"""Chunk images: golden bytes, round trips, any bytes as input."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.checksum import function_of
from mpifs.core.errors import DamageError
from mpifs.core.image import (
    IMAGE_HEADER_BYTES,
    KEY_BYTES,
    decode_header,
    decode_key,
    decode_keys,
    encode_header_into,
    encode_key,
    encode_keys,
    padded,
    split_batch,
)
from mpifs.core.limits import CHUNK_BYTES_MAX
from mpifs.core.types import ChecksumKind, ChunkKey

GOLDEN = (
    "6d704348" "01" "01" "0000" "0807060504030201" "1817161514131211" "2827262524232221" "78563400" "00000000"
    "000102030405060708090a0b0c0d0e0f" "690fe4395f382bc3"
)  # fmt: skip
GOLDEN_KEY = ChunkKey(0x0102030405060708, 0x1112131415161718, 0x2122232425262728)
U64 = st.integers(0, 2**64 - 1)
KEYS = st.builds(ChunkKey, U64, U64, U64)
KINDS = st.sampled_from(list(ChecksumKind))


def image(key: ChunkKey, payload: bytes, kind: ChecksumKind = ChecksumKind.XXH3_128) -> bytes:
    """Header and payload."""
    buffer = bytearray(IMAGE_HEADER_BYTES) + payload
    encode_header_into(buffer, 0, kind, key, len(payload), function_of(kind)(payload))
    return bytes(buffer)


def batch(images: list[bytes]) -> bytes:
    """Images as PUT carries them: each starts at a multiple of 8, nothing behind the last."""
    body = b""
    for one in images:
        body += bytes(padded(len(body)) - len(body)) + one
    return body


def test_golden_header() -> None:
    buffer = bytearray(b"\xaa" * 80)
    encode_header_into(buffer, 8, ChecksumKind.XXH3_128, GOLDEN_KEY, 0x345678, bytes(range(16)))
    assert buffer.hex() == "aa" * 8 + GOLDEN + "aa" * 8
    header = decode_header(bytes.fromhex(GOLDEN))
    assert (header.checksum_kind, header.key, header.length, header.checksum) == (
        1,
        GOLDEN_KEY,
        0x345678,
        bytes(range(16)),
    )


def test_golden_key() -> None:
    text = "000000000000000100000000000000020000000000000003"
    assert encode_key(ChunkKey(1, 2, 3)).hex() == text
    assert decode_key(bytes.fromhex(text)) == ChunkKey(1, 2, 3)


@given(
    KEYS,
    st.integers(0, CHUNK_BYTES_MAX),
    st.binary(min_size=16, max_size=16),
    KINDS,
    st.integers(0, 40),
)
def test_header_round_trip(
    key: ChunkKey, length: int, checksum: bytes, kind: ChecksumKind, offset: int
) -> None:
    buffer = bytearray(offset + IMAGE_HEADER_BYTES)
    encode_header_into(memoryview(buffer), offset, kind, key, length, checksum)
    header = decode_header(memoryview(buffer), offset)
    assert (header.key, header.length, header.checksum, header.checksum_kind) == (
        key,
        length,
        checksum,
        kind,
    )


@given(st.lists(KEYS, max_size=20))
def test_keys_round_trip_and_sort(keys: list[ChunkKey]) -> None:
    assert decode_keys(encode_keys(keys)) == keys
    assert [decode_key(text) for text in sorted(map(encode_key, keys))] == sorted(keys)


@given(st.integers(0, IMAGE_HEADER_BYTES * 8 - 1))
def test_any_flipped_bit_of_a_header_is_damage(bit: int) -> None:
    data = bytearray.fromhex(GOLDEN)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamageError):
        decode_header(data)


@given(st.binary(max_size=200), st.integers(0, 220))
def test_hostile_bytes(data: bytes, offset: int) -> None:
    calls = (
        lambda: decode_header(data, offset),
        lambda: decode_key(data),
        lambda: decode_keys(data),
        lambda: split_batch(memoryview(data), offset),
    )
    for call in calls:
        with contextlib.suppress(DamageError):
            call()
    with pytest.raises(DamageError):
        decode_header(bytes.fromhex(GOLDEN)[: offset % IMAGE_HEADER_BYTES])
    if len(data) != KEY_BYTES:
        with pytest.raises(DamageError):
            decode_key(data)


PAYLOADS = st.lists(st.binary(max_size=100), max_size=6)


@given(PAYLOADS)
def test_batch_round_trip(payloads: list[bytes]) -> None:
    images = [image(ChunkKey(1, n, 5), payload) for n, payload in enumerate(payloads)]
    body = batch(images)
    split = split_batch(memoryview(body), len(images))
    assert [bytes(view) for _, view in split] == images
    assert [header.chunk for header, _ in split] == list(range(len(images)))


@given(PAYLOADS.filter(bool), st.data())
def test_batch_must_be_exactly_its_images(payloads: list[bytes], data: st.DataObject) -> None:
    body = batch([image(ChunkKey(1, n, 5), payload) for n, payload in enumerate(payloads)])
    cut = data.draw(st.integers(0, len(body) - 1))
    for wrong, count in (
        (body[:cut], len(payloads)),
        (body, len(payloads) + 1),
        (body, len(payloads) - 1),
        (body + bytes(8), len(payloads)),
    ):
        with pytest.raises(DamageError):
            split_batch(memoryview(wrong), count)
    place = data.draw(st.integers(0, IMAGE_HEADER_BYTES - 1))
    wrong = body[:place] + bytes([body[place] ^ 0x40]) + body[place + 1 :]
    with pytest.raises(DamageError):
        split_batch(memoryview(wrong), len(payloads))


def test_impossible_length_is_refused_even_with_a_right_guard() -> None:
    buffer = bytearray(IMAGE_HEADER_BYTES)
    encode_header_into(
        buffer, 0, ChecksumKind.BLAKE3, ChunkKey(1, 2, 3), CHUNK_BYTES_MAX + 1, bytes(16)
    )
    with pytest.raises(DamageError, match="length"):
        decode_header(buffer)
