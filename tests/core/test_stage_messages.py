"""Orders of stage-in and stage-out: golden bytes, and any bytes as input."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.checksum import guard64
from mpifs.core.errors import ProtocolError
from mpifs.core.limits import STAGE_COUNT_MAX
from mpifs.core.stage_messages import (
    Dress,
    Identity,
    StageDone,
    StageOrder,
    StageOutOrder,
    StageOutPart,
    StagePart,
    StageReply,
    decode_body,
    encode_body,
)

SUM = bytes(range(16))
PART = StagePart(0, b"a", Identity(5, 6, 7, 8), 4096, 5, 42, 1, 1000)
OUT = StageOutPart(0, b"t", 0, 42, 0, 9, 3, SUM, True, True, b"f", Dress(420, -1, -1, 1, 2, []), 3)


def test_golden_order() -> None:
    """What a worker of another release of this wire version must understand."""
    raw = (
        "82a7666f6c6465727391c4022f73a56974656d739198"
        "00c401619405060708cd1000052a01cd03e8ee5d6b961e71a3a4"
    )
    order = StageOrder([b"/s"], [PART])
    assert encode_body(order).hex() == raw
    assert decode_body(bytes.fromhex(raw), StageOrder) == order


def test_round_trips() -> None:
    out = StageOutOrder([b"/s"], [OUT], b"/s/probe")
    assert decode_body(encode_body(out), StageOutOrder) == out
    reply = StageReply(
        [StageDone(0, SUM), StageDone(116, b"", "changed"), StageDone(0, SUM, "", True)]
    )
    assert decode_body(encode_body(reply), StageReply) == reply


@pytest.mark.parametrize(
    "order",
    [
        StageOrder([], [PART]),
        StageOrder([b"/s"], [PART] * (STAGE_COUNT_MAX + 1)),
        StageOrder([b"/s"], [StagePart(0, b"../a", Identity(5, 6, 7, 8), 0, 5, 42, 1, 1)]),
        StageOrder([b"/s"], [StagePart(0, b"", Identity(5, 6, 7, 8), 0, 5, 42, 1, 1)]),
        StageOrder([b"/s"], [StagePart(0, b"a", Identity(5, 6, 7, 8), -1, 5, 42, 1, 1)]),
        StageOrder([b"/s"], [StagePart(0, b"a", Identity(5, 6, 7, 8), 0, 1 << 30, 42, 1, 1)]),
        StageOrder([b"/s"], [StagePart(0, b"a", Identity(5, 6, 7, 8), 0, 5, 0, 1, 1)]),
    ],
)
def test_impossible_orders(order: StageOrder) -> None:
    with pytest.raises(ProtocolError):
        decode_body(encode_body(order), StageOrder)


@pytest.mark.parametrize(
    "changes",
    [(7, b"short"), (10, b"x/y"), (1, b"\0"), (0, 1), (6, 0), (11, None), (12, 4)],
)
def test_impossible_stage_out(changes: tuple[int, object]) -> None:
    fields = [getattr(OUT, name) for name in OUT.__struct_fields__]
    fields[changes[0]] = changes[1]
    order = StageOutOrder([b"/s"], [StageOutPart(*fields)], b"")
    with pytest.raises(ProtocolError):
        decode_body(encode_body(order), StageOutOrder)


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    for kind in (StageOrder, StageOutOrder, StageReply):
        for data in (raw, raw + guard64(raw).to_bytes(8, "little")):
            with contextlib.suppress(ProtocolError):
                decode_body(data, kind)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_is_found(at: int, value: int) -> None:
    raw = bytearray(encode_body(StageOutOrder([b"/s"], [OUT], b"/p")))
    if raw[at % len(raw)] == value:
        return
    raw[at % len(raw)] = value
    with pytest.raises(ProtocolError):
        decode_body(bytes(raw), StageOutOrder)
    packed = bytes(raw[:-8])
    guarded = packed + guard64(packed).to_bytes(8, "little")
    with contextlib.suppress(ProtocolError):
        decode_body(guarded, StageOutOrder)
