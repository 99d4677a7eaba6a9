"""INIT: the flag that libfuse does not know."""

from __future__ import annotations

import struct

import pytest

from mpifs.fuse.handshake import HANDLE_KILLPRIV_V2, agreed

_OTHER = 1 << 3


def asked(flags: int) -> bytes:
    header = struct.pack("=IIQQIIII", 40 + 16, 26, 2, 0, 0, 0, 0, 0)
    return header + struct.pack("=IIII", 7, 44, 131072, flags)


def answer(error: int = 0, major: int = 7) -> bytes:
    body = struct.pack("=IIII", major, 36, 131072, _OTHER) + bytes(48)
    return struct.pack("=IiQ", 16 + len(body), error, 2) + body


def flags_of(whole: bytes) -> int:
    return int(struct.unpack_from("=I", whole, 16 + 12)[0])


def test_the_flag_is_added_where_the_kernel_offers_it() -> None:
    whole = agreed(asked(HANDLE_KILLPRIV_V2 | _OTHER), answer())
    assert flags_of(whole) == HANDLE_KILLPRIV_V2 | _OTHER
    assert len(whole) == len(answer())
    assert flags_of(agreed(asked(_OTHER), answer())) == _OTHER


@pytest.mark.parametrize("said", [answer(error=-71), answer(major=8), answer()[:16]])
def test_an_answer_that_agrees_to_nothing_is_left_alone(said: bytes) -> None:
    assert agreed(asked(HANDLE_KILLPRIV_V2), said) == said
