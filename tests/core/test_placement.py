"""Round-robin over any list of stores, replicas on different ones, evenly."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.placement import place, start_of

STORES = st.lists(st.integers(1, 65535), min_size=1, max_size=40, unique=True)


@given(st.integers(0, 2**64), st.integers(0, 2**51), st.integers(1, 8), STORES)
def test_place(start: int, index: int, replicas: int, stores: list[int]) -> None:
    chosen = place(start, index, replicas, stores)
    assert len(chosen) == len(set(chosen)) == min(replicas, len(stores))
    assert set(chosen) <= set(stores)
    following = place(start, index + 1, replicas, stores)
    assert stores.index(following[0]) == (stores.index(chosen[0]) + 1) % len(stores)
    assert chosen == place(start + index, 0, replicas, tuple(stores))
    if len(chosen) > 1:
        assert chosen[1] == following[0]


@given(st.integers(1, 10**9), st.integers(1, 3), STORES)
def test_every_store_gets_its_share(inode: int, replicas: int, stores: list[int]) -> None:
    start = start_of(inode, len(stores))
    assert 0 <= start < len(stores)
    rounds = 3
    use = Counter(s for i in range(rounds * len(stores)) for s in place(start, i, replicas, stores))
    assert set(use.values()) == {rounds * min(replicas, len(stores))}
    starts = {place(start_of(inode + n, len(stores)), 0, 1, stores) for n in range(len(stores))}
    assert len(starts) == len(stores), "consecutive small files spread over all stores"


def test_place_by_example() -> None:
    assert [place(1, i, 2, (10, 20, 30)) for i in range(4)] == [
        (20, 30),
        (30, 10),
        (10, 20),
        (20, 30),
    ]
    assert place(5, 0, 3, (7,)) == (7,)
