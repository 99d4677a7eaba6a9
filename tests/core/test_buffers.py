"""The pool gives room enough, reuses, and stays bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.buffers import BufferPool
from tests.threads import all_at_once


@given(st.lists(st.integers(1, 300_000), max_size=60), st.integers(0, 128), st.integers(0, 1 << 20))
def test_size_and_bound(sizes: list[int], extra: int, kept: int) -> None:
    pool = BufferPool(extra, kept)
    for _ in range(2):
        taken = [pool.take(size) for size in sizes]
        assert len({id(buffer) for buffer in taken}) == len(taken), "one buffer for two"
        for size, buffer in zip(sizes, taken, strict=True):
            assert size + extra <= len(buffer) <= max(4096, 2 * size) + extra
            pool.give(buffer)
    for capacity, free in pool._free.items():
        assert len(free) * capacity < kept + capacity


def test_reuse() -> None:
    pool = BufferPool(64, 1 << 20)
    first = pool.take(5000)
    pool.give(first)
    assert pool.take(8192) is first
    assert pool.take(8192) is not first
    assert len(pool.take(8193)) == 16_384 + 64


def test_threads_never_share_a_buffer() -> None:
    pool = BufferPool(0, 1 << 20)
    wrong = []

    def work(mark: int) -> None:
        for _ in range(3000):
            buffer = pool.take(4096)
            buffer[0] = mark
            buffer[4095] = mark
            if (buffer[0], buffer[4095]) != (mark, mark):
                wrong.append(mark)
            pool.give(buffer)

    all_at_once(work, range(4))
    assert not wrong
