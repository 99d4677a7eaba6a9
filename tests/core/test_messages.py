"""Wire headers and arguments: golden bytes, round trips, any bytes as input."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.errors import ProtocolError
from mpifs.core.image import encode_key
from mpifs.core.kinds import TAG_CONTROL, TAG_METADATA, Kind, tag_of
from mpifs.core.limits import (
    ARGS_BYTES_MAX,
    BODY_BYTES_MAX,
    HEADER_BYTES,
    INLINE_BYTES_MAX,
    SLOT_COUNT_MAX,
)
from mpifs.core.messages import (
    TAG_DATA_BASE,
    TAG_REPLY_BASE,
    Copy,
    CopyFailure,
    CopyItem,
    CopyReply,
    GetPart,
    Header,
    HelloReply,
    ListKeys,
    Retire,
    Serve,
    StoreStats,
    TableWish,
    decode_args,
    decode_header,
    decode_message,
    encode_args,
    encode_header,
    encode_message,
)
from mpifs.core.types import ChunkKey

GOLDEN = (
    "464d" "02" "20" "fbffffff" "03000000" "11000000" "8877665544332211" "0a000000" "70110100" "04000000"
    "30313233343536373839616263646566" "00000000" "ccbbaa9900000000"
)  # fmt: skip
GOLDEN_HEADER = Header(
    Kind.PUT, -5, 3, 17, 0x1122334455667788, 10, 70000, 4, b"0123456789abcdef", 0x99AABBCC
)
GUARD = "287f3b1a"
GOLDEN_ARGS = {
    "83a4686f7374a4686f7374a37069642aa673746f726573919301c41076767676767676767676767676767676c41073737373737373737373737373737373": HelloReply(
        "host", 42, [(1, b"v" * 16, b"s" * 16)]
    ),
    "85a573746f726501a66368756e6b7302a5627974657303a46672656504a46469736ba164": StoreStats(
        1, 2, 3, 4, "d"
    ),
    "82a56166746572c40101a5636f756e7405": ListKeys(b"\1", 5),
    "82a6736f7572636502a56974656d739193c4186b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b07c41063636363636363636363636363636363": Copy(
        2, [CopyItem(b"k" * 24, 7, b"c" * 16)]
    ),
    "96c418000000000000000700000000000000020000000000000009ce00100000c41063636363636363636363636363636363110101": GetPart(
        encode_key(ChunkKey(7, 2, 9)), 1 << 20, b"c" * 16, 17, 1, TableWish.ANY
    ),
    "81a86661696c757265739193011ca466756c6c": CopyReply([CopyFailure(1, 28, "full")]),
    "83a573746f726503ab766f6c756d655f75756964c41076767676767676767676767676767676aa73746f72655f75756964c41073737373737373737373737373737373": Retire(
        3, b"v" * 16, b"s" * 16
    ),
}
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
HEADERS = st.builds(
    Header, st.integers(0, 255), st.integers(-(2**31), 2**31 - 1), U32, st.integers(0, SLOT_COUNT_MAX - 1), U64, st.integers(0, ARGS_BYTES_MAX),
    st.integers(0, BODY_BYTES_MAX), U32, st.binary(min_size=16, max_size=16), U64,
)  # fmt: skip
ARGS: list[type[Any]] = [HelloReply, Serve, StoreStats, ListKeys, Copy, CopyReply, Retire, GetPart]


def test_golden_header() -> None:
    assert encode_header(GOLDEN_HEADER).hex() == GOLDEN
    assert decode_header(bytes.fromhex(GOLDEN)) == GOLDEN_HEADER
    assert decode_header(bytearray.fromhex(GOLDEN) + b"arguments") == GOLDEN_HEADER


def test_a_flipped_byte_anywhere_in_a_header_message_is_found() -> None:
    header = GOLDEN_HEADER._replace(args_bytes=9, body_bytes=30)
    message = encode_message(header, b"arguments", bytes(range(30)))
    assert (
        message.hex()
        == encode_header(header).hex()[:104]
        + GUARD
        + GOLDEN[112:]
        + (b"arguments" + bytes(range(30))).hex()
    )
    assert decode_message(memoryview(message)) == header
    for place in range(len(message)):
        damaged = bytearray(message)
        damaged[place] ^= 0x10
        with pytest.raises(ProtocolError):
            decode_message(memoryview(damaged))
    for cut in (0, 63, 64, 73, len(message) - 1):
        with pytest.raises(ProtocolError):
            decode_message(memoryview(message)[:cut])


def test_golden_arguments() -> None:
    for text, value in GOLDEN_ARGS.items():
        assert encode_args(value).hex() == text
        assert decode_args(bytes.fromhex(text), type(value)) == value


def test_numbers_are_frozen() -> None:
    first = {
        "HELLO": 1,
        "SERVE": 2,
        "PING": 3,
        "STATS": 4,
        "STOP": 5,
        "PUT": 32,
        "GET": 33,
        "DELETE": 34,
        "LIST": 35,
        "RETIRE": 9,
        "COPY": 38,
        "GET_PART": 39,
    }
    assert {name: int(Kind[name]) for name in first} == first
    assert (TAG_CONTROL, TAG_METADATA, TAG_REPLY_BASE, TAG_DATA_BASE) == (1, 2, 8192, 16384)
    assert {tag_of(kind) for kind in Kind if kind < 32} == {TAG_CONTROL}
    assert {tag_of(kind) for kind in Kind if kind >= 32} == {TAG_METADATA}


@given(HEADERS)
def test_header_round_trip(header: Header) -> None:
    data = encode_header(header)
    assert len(data) == HEADER_BYTES
    assert decode_header(memoryview(data)) == header
    assert header.is_inline == (header.body_bytes <= INLINE_BYTES_MAX)


@given(st.binary(max_size=120))
def test_hostile_headers(data: bytes) -> None:
    for candidate in (data, bytes.fromhex(GOLDEN)[:3] + data):
        with contextlib.suppress(ProtocolError):
            header = decode_header(candidate)
            assert header.slot < SLOT_COUNT_MAX
            assert header.args_bytes <= ARGS_BYTES_MAX
            assert header.body_bytes <= BODY_BYTES_MAX


@pytest.mark.parametrize(
    ("place", "fmt", "value"),
    [
        (0, "<H", 0x4D47),
        (2, "<B", 1),
        (12, "<I", SLOT_COUNT_MAX),
        (24, "<I", ARGS_BYTES_MAX + 1),
        (28, "<I", BODY_BYTES_MAX + 1),
    ],
)
def test_headers_over_a_limit(place: int, fmt: str, value: int) -> None:
    data = bytearray.fromhex(GOLDEN)
    struct.pack_into(fmt, data, place, value)
    with pytest.raises(ProtocolError):
        decode_header(data)
    with pytest.raises(ProtocolError):
        decode_header(bytes.fromhex(GOLDEN)[:63])


@given(st.binary(max_size=200), st.sampled_from(ARGS))
def test_hostile_arguments(data: bytes, kind: type[Any]) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode_args(data, kind), kind)


@given(
    st.sampled_from(list(GOLDEN_ARGS)),
    st.integers(0, 10**6),
    st.integers(0, 255),
    st.integers(0, 60),
)
def test_damaged_arguments(text: str, place: int, value: int, cut: int) -> None:
    data = bytearray.fromhex(text)
    data[place % len(data)] = value
    kind = type(GOLDEN_ARGS[text])
    for candidate in (data, data[: max(0, len(data) - cut)], data + b"\0"):
        with contextlib.suppress(ProtocolError):
            decode_args(candidate, kind)
    with pytest.raises(ProtocolError):
        decode_args(b"\xa3abc", kind)
    with pytest.raises(ProtocolError):
        decode_args(b"\xdd\xff\xff\xff\xff", kind)  # an array of four billion
    with pytest.raises(ProtocolError):
        decode_args(b"\x91" * 100_000, kind)  # nested deeply
