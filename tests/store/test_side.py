"""Changes of a commit: each environment that needs one gets a transaction, and no other does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mpifs.core.errors import ChunkMissingError, FullError, PosixError
from mpifs.core.image import COPY_INODE, encode_key
from mpifs.core.types import ChunkKey
from mpifs.store.chunks import Change, ChunkStore
from mpifs.store.side import Counters, GroupChange, Side, SideChange
from tests.store.damage import flip, payload_in, put_row, read_row, side_named, value_of
from tests.store.images import image, open_store

SMALL, LARGE, COPY = ChunkKey(1, 0, 1), ChunkKey(2, 0, 1), ChunkKey(COPY_INODE, 0, 1)
PAYLOADS = {SMALL: b"small" * 100, LARGE: b"large" * 20_000, COPY: b"copy" * 5000}
NAMES = {SMALL: "small", LARGE: "large", COPY: "copy"}


def put(*keys: ChunkKey) -> Change:
    return Change(puts=[image(key, PAYLOADS[key]) for key in keys])


def plant(store: ChunkStore, name: str, key: ChunkKey, value: bytes) -> None:
    """A chunk in an environment where it does not belong, or damaged."""
    with side_named(store, name).change() as change:
        change.put(encode_key(key), value, len(PAYLOADS[key]))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    """With its environment for copies, which is made when it is needed."""
    opened = open_store(str(tmp_path / "worker-3"))
    opened.apply([put(COPY)])
    opened.delete_many([COPY])
    yield opened
    opened.close()


@pytest.fixture
def changed(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the environments in which a write transaction was begun."""
    names: list[str] = []
    real = Side.change

    @contextmanager
    def change(side: Side) -> Iterator[SideChange]:
        names.append(side.name)
        with real(side) as made:
            yield made

    monkeypatch.setattr(Side, "change", change)
    return names


def begun(changed: list[str]) -> list[str]:
    """What was begun since the last time, sorted; each at most once in a commit."""
    names = sorted(changed)
    assert len(set(names)) == len(names)
    changed.clear()
    return names


def transactions(store: ChunkStore) -> dict[str, int]:
    return {side.name: side.environment.last_transaction() for side in store.sides}


def test_only_what_is_changed_is_opened(store: ChunkStore, changed: list[str]) -> None:
    for key, name in NAMES.items():
        before = transactions(store)
        store.apply([put(key)])
        assert begun(changed) == [name]
        after = transactions(store)
        assert {each for each in after if after[each] != before[each]} == {name}
        assert payload_in(store, key) == PAYLOADS[key]
    for key, name in NAMES.items():
        before = transactions(store)
        store.apply([Change(deletes=[key])])
        assert begun(changed) == [name]
        after = transactions(store)
        assert {each for each in after if after[each] != before[each]} == {name}
        with pytest.raises(ChunkMissingError):
            store.get(key)
    assert [side.counters for side in store.sides] == [Counters()] * 3
    store.apply([])
    assert begun(changed) == []


def test_a_group_of_all_kinds(store: ChunkStore, changed: list[str]) -> None:
    store.apply([put(SMALL), put(LARGE), put(COPY)])
    assert begun(changed) == ["copy", "large", "small"]
    again, gone = ChunkKey(1, 1, 1), ChunkKey(1, 2, 1)
    puts = Change(puts=[image(again, b"again"), image(gone, b"gone")])
    store.apply([puts, Change(deletes=[SMALL, gone]), put(SMALL)])
    assert begun(changed) == ["small"]
    assert payload_in(store, again) == b"again"
    assert payload_in(store, SMALL) == PAYLOADS[SMALL]
    with pytest.raises(ChunkMissingError):
        store.get(gone)
    store.apply([Change(deletes=[again]), Change(deletes=[LARGE])])
    assert begun(changed) == ["large", "small"]
    assert store.stats().chunks == 1  # copies are not counted


def test_the_same_chunk_again_changes_nothing(store: ChunkStore, changed: list[str]) -> None:
    store.apply([put(LARGE)])
    begun(changed)
    before = transactions(store)
    store.apply([put(LARGE)])
    assert begun(changed) == ["large"]
    assert transactions(store) == before
    with pytest.raises(PosixError):
        store.apply([Change(puts=[image(LARGE, b"other" * 20_000)])])
    with pytest.raises(PosixError):
        store.apply([Change(puts=[image(LARGE, b"small")])])
    assert payload_in(store, LARGE) == PAYLOADS[LARGE]


@pytest.mark.parametrize("is_listed", [False, True])
def test_what_is_deleted_goes_wherever_it_is(
    store: ChunkStore, changed: list[str], is_listed: bool
) -> None:
    """Listed elsewhere, or not listed at all."""
    key, value = encode_key(SMALL), value_of(SMALL, PAYLOADS[SMALL])
    if is_listed:
        plant(store, "large", SMALL, value)
    else:
        put_row(side_named(store, "large"), "chunks", key, value)
    begun(changed)
    store.apply([Change(deletes=[SMALL])])
    assert begun(changed) == (["large"] if is_listed else ["copy", "large", "small"])
    for side in store.sides:
        assert read_row(side, "chunks", key) is None
        assert read_row(side, "headers", key) is None


def test_a_chunk_in_two_places_goes_from_both(store: ChunkStore, changed: list[str]) -> None:
    store.apply([put(SMALL)])
    plant(store, "large", SMALL, value_of(SMALL, PAYLOADS[SMALL]))
    changed.clear()
    store.apply([Change(deletes=[SMALL])])
    assert begun(changed) == ["large", "small"]
    for side in store.sides:
        assert read_row(side, "chunks", encode_key(SMALL)) is None
    assert store.stats().chunks == 0


def test_a_damaged_one_elsewhere_is_replaced(store: ChunkStore, changed: list[str]) -> None:
    plant(store, "small", LARGE, flip(value_of(LARGE, PAYLOADS[LARGE]), 500))
    begun(changed)
    store.apply([put(LARGE)])
    assert begun(changed) == ["large", "small"]
    assert payload_in(store, LARGE) == PAYLOADS[LARGE]
    for database in ("headers", "chunks"):
        assert read_row(side_named(store, "small"), database, encode_key(LARGE)) is None
    assert store.stats().chunks == 1


def test_a_failure_undoes_all_of_them(store: ChunkStore, changed: list[str]) -> None:
    store.apply([put(SMALL)])
    counters = [side.counters for side in store.sides]
    before = transactions(store)
    with pytest.raises(PosixError):
        store.apply(
            [
                put(LARGE, COPY),
                Change(deletes=[SMALL]),
                Change(puts=[image(LARGE, b"another one" * 9000)]),
            ]
        )
    assert transactions(store) == before
    assert [side.counters for side in store.sides] == counters
    assert payload_in(store, SMALL) == PAYLOADS[SMALL]
    for key in (LARGE, COPY):
        with pytest.raises(ChunkMissingError):
            store.get(key)


def test_deletes_need_no_room(
    store: ChunkStore, changed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk as well; puts there are refused."""
    store.apply([put(SMALL, LARGE)])
    asked: list[str] = []

    def full(side: Side, needed: int, count: int, *, is_replacing: bool = False) -> None:
        asked.append(side.name)
        if count:
            raise FullError("full")

    monkeypatch.setattr(Side, "make_room", full)
    with pytest.raises(FullError):
        store.apply([put(COPY)])
    assert asked == ["copy"], "what is not changed needs no room"
    store.apply([Change(deletes=[SMALL, LARGE])])
    assert {*asked} == {"small", "large", "copy"}
    assert store.stats().chunks == 0


def test_a_group_sees_its_own_changes(store: ChunkStore, changed: list[str]) -> None:
    key, value = encode_key(SMALL), value_of(SMALL, PAYLOADS[SMALL])
    with ExitStack() as stack:
        group = GroupChange(stack, store.sides)
        assert group.holders(key) == []
        assert changed == []
        change = group.of(side_named(store, "small"))
        assert group.of(side_named(store, "small")) is change
        change.put(key, value, len(PAYLOADS[SMALL]))
        assert group.holders(key) == [change]
        group.delete(key)
        assert group.holders(key) == []
        change.put(key, value, len(PAYLOADS[SMALL]))
    assert payload_in(store, SMALL) == PAYLOADS[SMALL]
    assert side_named(store, "small").counters == Counters(1, len(PAYLOADS[SMALL]))
    assert changed == ["small"]
