"""Checksums are those of the published algorithms, for every kind of buffer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.checksum import CHECKSUM_BYTES, NAMES, function_of, guard64, name_of
from mpifs.core.types import ChecksumKind

GOLDEN = {
    "xxh3-128": {
        b"": "99aa06d3014798d86001c324468d497f",  # the value the xxHash specification gives
        b"mpifs": "706f537e710330be3c4a25a37bb64303",
        bytes(range(256)) * 5: "d92ab3a1cb0542a74844b009e164352e",
    },
    "blake3": {
        b"": "af1349b9f5f9a1a6a0404dea36dcc949",  # start of the official test vector
        b"mpifs": "d19025a7cd8c9c278dd54224be671a2f",
        bytes(range(256)) * 5: "7586fa21246e8e17b384b8fe78948d91",
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    for data, want in GOLDEN[name].items():
        for buffer in (data, bytearray(data), memoryview(data)):
            assert function_of(NAMES[name])(buffer).hex() == want
    assert name_of(NAMES[name]) == name


def test_guard_and_numbers_are_frozen() -> None:
    assert (guard64(b""), guard64(b"mpifs")) == (0x2D06800538D394C2, 0x423B864B182FE014)
    assert {kind.name: int(kind) for kind in ChecksumKind} == {"XXH3_128": 1, "BLAKE3": 2}
    assert set(GOLDEN) == set(NAMES)


@given(
    st.binary(min_size=1, max_size=500), st.integers(0, 10**6), st.sampled_from(list(ChecksumKind))
)
def test_a_flipped_bit_shows(data: bytes, place: int, kind: ChecksumKind) -> None:
    total = function_of(kind)
    bit = place % (len(data) * 8)
    other = bytearray(data)
    other[bit // 8] ^= 1 << bit % 8
    assert len(total(data)) == CHECKSUM_BYTES
    assert total(other) != total(data)
    assert guard64(other) != guard64(data)
