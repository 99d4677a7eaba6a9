"""Tests of mpifs/job/assign.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpifs.core.errors import FormatError
from mpifs.core.messages import HelloReply
from mpifs.core.types import StoreEntry, StoreId, StoreState
from mpifs.job.assign import assign_stores

VOLUME = b"v" * 16


def _entry(number: int, state: StoreState = StoreState.ACTIVE) -> StoreEntry:
    return StoreEntry(StoreId(number), bytes([number]) * 16, state)


def _row(number: int, volume: bytes = VOLUME) -> tuple[int, bytes, bytes]:
    return number, volume, bytes([number]) * 16


def _hellos(*stores: list[int]) -> dict[int, HelloReply]:
    return {
        rank: HelloReply(f"h{rank}", rank, [_row(n) for n in numbers])
        for rank, numbers in enumerate(stores, 1)
    }


def test_one_host_keeps_the_numbers() -> None:
    places, _ = assign_stores(VOLUME, [_entry(1), _entry(2), _entry(3)], _hellos(*[[1, 2, 3]] * 3))
    assert {store: place.rank for store, place in places.items()} == {1: 1, 2: 2, 3: 3}
    assert not any(place.create for place in places.values())


@given(st.permutations([1, 2, 3, 4, 5]))
def test_each_host_serves_its_own(order: list[int]) -> None:
    hellos = _hellos(*[[number] for number in order])
    places, _ = assign_stores(VOLUME, [_entry(n) for n in (1, 2, 3, 4, 5)], hellos)
    assert [place.rank for place in places.values()] == [
        order.index(n) + 1 for n in (1, 2, 3, 4, 5)
    ]


def test_a_preference_gives_way() -> None:
    places, _ = assign_stores(VOLUME, [_entry(1), _entry(2)], _hellos([1, 2], [1]))
    assert {store: place.rank for store, place in places.items()} == {1: 2, 2: 1}


def test_fresh_stores_are_made_where_nothing_is_in_the_way() -> None:
    fresh = [_entry(1, StoreState.FRESH), _entry(2, StoreState.FRESH)]
    hellos = _hellos([], [])
    hellos[1].stores.append(_row(1, b"o" * 16))
    places, _ = assign_stores(VOLUME, fresh, hellos)
    assert {store: place.rank for store, place in places.items()} == {1: 2, 2: 1}
    assert all(place.create for place in places.values())


def test_what_cannot_be_served_has_its_reason() -> None:
    with pytest.raises(FormatError, match="has 1 workers and this job 2"):
        assign_stores(VOLUME, [_entry(1)], _hellos([1], []))
    places, reasons = assign_stores(VOLUME, [_entry(1), _entry(2)], _hellos([1], []))
    assert places.keys() == {1}
    assert "worker-2 was not found on h1, h2" in reasons[2]
    places, reasons = assign_stores(VOLUME, [_entry(1), _entry(2)], _hellos([1, 2]))
    assert places.keys() == {1}
    assert "more stores than workers" in reasons[2]
    foreign = {1: HelloReply("h", 1, [_row(1, b"o" * 16)])}
    places, reasons = assign_stores(VOLUME, [_entry(1)], foreign)
    assert not places
    assert "another volume" in reasons[1]
