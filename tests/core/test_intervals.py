"""Intervals against a model that is obviously right: a set of integers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mpifs.core import intervals

PAIRS = st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda p: (p[0], p[0] + p[1]))


@given(st.lists(PAIRS), st.integers(0, 80), st.integers(0, 80))
def test_against_a_set(pairs: list[tuple[int, int]], limit: int, end: int) -> None:
    mine: list[tuple[int, int]] = []
    model: set[int] = set()
    for start, stop in pairs:
        intervals.add(mine, start, stop)
        model |= set(range(start, stop))
        assert mine == sorted(mine)
        assert all(a[1] < b[0] for a, b in pairwise(mine))
    assert {n for a, b in mine for n in range(a, b)} == model
    assert {n for a, b in intervals.gaps(mine, end) for n in range(a, b)} == set(range(end)) - model
    assert intervals.covers(mine, limit, end) == (set(range(limit, end)) <= model)
    intervals.clip(mine, limit)
    assert {n for a, b in mine for n in range(a, b)} == {n for n in model if n < limit}
