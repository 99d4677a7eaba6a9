"""Extents cut a range without gap or overlap, and counts agree with them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.layout import chunk_bytes, chunk_count, extents, is_chunk_size

CHUNK_SIZES = st.integers(0, 14).map(lambda n: 4096 << n)
OFFSETS = st.integers(0, 2**63 - 1)


@given(OFFSETS, st.integers(0, 1 << 24), CHUNK_SIZES)
def test_extents_cover_the_range_in_order(offset: int, length: int, chunk_size: int) -> None:
    position = 0
    for extent in extents(offset, length, chunk_size):
        assert extent.position == position
        assert extent.chunk * chunk_size + extent.start == offset + position
        assert 0 < extent.length <= chunk_size - extent.start
        position += extent.length
        is_last = position == length
        assert is_last or extent.start + extent.length == chunk_size
    assert position == length


def test_extents_by_example() -> None:
    assert [tuple(e) for e in extents(10, 25, 16)] == [(0, 10, 6, 0), (1, 0, 16, 6), (2, 0, 3, 22)]
    assert list(extents(123, 0, 16)) == []
    assert [tuple(e) for e in extents(16, 16, 16)] == [(1, 0, 16, 0)]


@given(st.integers(0, 1 << 26), st.sampled_from([4096, 65536, 1 << 20]))
def test_bytes_of_all_chunks_are_the_size(size: int, chunk_size: int) -> None:
    count = chunk_count(size, chunk_size)
    assert sum(chunk_bytes(index, size, chunk_size) for index in range(count)) == size
    assert chunk_bytes(count, size, chunk_size) == 0
    assert count == len({e.chunk for e in extents(0, size, chunk_size)})


@given(st.integers(-10, 1 << 28))
def test_chunk_sizes_are_powers_of_two_in_range(value: int) -> None:
    allowed = {4096 << n for n in range(15)}
    assert is_chunk_size(value, 4096, 64 << 20) == (value in allowed)
    assert all(is_chunk_size(size, 4096, 64 << 20) for size in allowed)
