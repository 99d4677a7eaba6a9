"""INIT: what is agreed with kernels of all kinds."""

from __future__ import annotations

import struct

import pytest

from mpifs.core.errors import PosixError
from mpifs.fuse.handshake import agree
from mpifs.fuse.protocol import INIT_OUT, Init

ALL = 2**32 - 1


def asked(major: int = 7, minor: int = 44, flags: int = ALL, more: int = ALL) -> memoryview:
    return memoryview(struct.pack("=5I", major, minor, 131072, flags, more) + bytes(44))


def test_what_is_wanted_and_offered_is_taken() -> None:
    agreement, answer = agree(asked(), writeback=False)
    fields = INIT_OUT.unpack(answer)
    assert fields[:3] == (7, 39, 131072)
    assert fields[3] | fields[10] << 32 == agreement.flags
    assert Init.HANDLE_KILLPRIV_V2 in agreement.flags
    assert not agreement.is_writeback
    assert fields[6] == agreement.write_bytes_max == 1 << 20
    assert fields[8] == 256
    assert agreement.has_direct_writers
    assert agree(asked(), writeback=True)[0].is_writeback
    assert not agree(asked(), writeback=True)[0].has_direct_writers
    assert not agree(asked(more=0), writeback=False)[0].has_direct_writers
    assert not agree(asked(flags=ALL & ~Init.INIT_EXT), writeback=False)[0].has_direct_writers


def test_nothing_is_taken_that_is_not_offered() -> None:
    agreement, answer = agree(asked(minor=23, flags=Init.ASYNC_READ | 1 << 9), writeback=True)
    assert agreement.flags == Init.ASYNC_READ
    assert agreement.minor == INIT_OUT.unpack(answer)[1] == 23
    assert agreement.write_bytes_max == 128 * 1024


@pytest.mark.parametrize("said", [asked(major=8), asked(minor=22), asked()[:12]])
def test_a_kernel_that_cannot_be_spoken_with(said: memoryview) -> None:
    with pytest.raises(PosixError):
        agree(said, writeback=False)
