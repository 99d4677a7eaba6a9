"""MEND: what a store has of a payload is found and put where it belongs, and nothing is lost."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mpifs.core.chunk_report import Fault
from mpifs.core.image import encode_key
from mpifs.core.limits import MIB
from mpifs.core.types import ChunkKey
from mpifs.store.chunks import ChunkStore
from mpifs.store.mend import Mender
from mpifs.store.side import Side, SideChange
from tests.store.damage import (
    drop_row,
    faults,
    flip,
    item,
    payload_in,
    put_row,
    read_row,
    reports,
    side_named,
    value_of,
    wrong,
)
from tests.store.images import KIND, image, open_store

A, B, C = (ChunkKey(5, chunk, 9) for chunk in range(3))
SIZES = (20, 50_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    opened = open_store(str(tmp_path / "worker-3"), relaxed=True)
    yield opened
    opened.close()


def mend(store: ChunkStore, *items: object, transaction_bytes: int = 64 * MIB) -> list[bool]:
    return Mender(store, KIND, items, transaction_bytes).run()  # type: ignore[arg-type]  # MendItems


def side_of(store: ChunkStore, size: int) -> Side:
    return side_named(store, "small" if size < 32_768 else "large")


def fill(store: ChunkStore, size: int) -> dict[ChunkKey, bytes]:
    payloads = {key: bytes([65 + key.chunk]) * size for key in (A, B, C)}
    store.put_many([image(key, payload) for key, payload in payloads.items()])
    return payloads


def check_good(store: ChunkStore, payloads: dict[ChunkKey, bytes]) -> None:
    """The store holds exactly these chunks, and its counters say so."""
    assert faults(store) == {}
    assert [report.key for report in reports(store)] == sorted(payloads)
    for key, payload in payloads.items():
        assert payload_in(store, key) == payload
    stats = store.stats()
    assert (stats.chunks, stats.bytes) == (len(payloads), sum(map(len, payloads.values())))


@pytest.mark.parametrize("size", SIZES)
def test_headers_and_listing(store: ChunkStore, size: int) -> None:
    payloads = fill(store, size)
    side, a, b, c = side_of(store, size), *map(encode_key, (A, B, C))
    for at in (5, 9, 33, 60):
        put_row(side, "chunks", a, flip(value_of(A, payloads[A]), at))
        put_row(side, "headers", b, flip(value_of(B, payloads[B])[:64], at))
        drop_row(side, "headers", c)
        side.counters = side._read_counters()  # as if it was opened now
        assert mend(store, *(item(key, key, payloads[key]) for key in (A, B, C))) == [True] * 3
        check_good(store, payloads)
    drop_row(side, "chunks", a)
    assert mend(store, item(A, A, payloads[A]), item(B, B, payloads[B])) == [False, True]
    assert faults(store) == {A: Fault.NO_IMAGE}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("budget", [1, 70_000, 64 * MIB])
@pytest.mark.parametrize("told", [(A,), (B,), (C,), (C, A, B)])
def test_rotated_chunks_come_home(
    store: ChunkStore, size: int, budget: int, told: tuple[ChunkKey, ...]
) -> None:
    payloads = fill(store, size)
    side = side_of(store, size)
    stands = {A: B, B: C, C: A}  # where each one's image is
    for key, place in stands.items():
        put_row(side, "chunks", encode_key(place), value_of(key, payloads[key]))
        put_row(side, "headers", encode_key(place), value_of(key, payloads[key])[:64])
    items = [item(key, stands[key], payloads[key]) for key in told]
    assert mend(store, *items, transaction_bytes=budget) == [True] * len(told)
    check_good(store, payloads)


@pytest.mark.parametrize("size", SIZES)
def test_a_swapped_pair_with_one_header_damaged(store: ChunkStore, size: int) -> None:
    """What stands in the way cannot be named; it goes where the other one came from."""
    payloads = fill(store, size)
    side = side_of(store, size)
    put_row(side, "chunks", encode_key(A), flip(value_of(B, payloads[B]), 20))
    put_row(side, "chunks", encode_key(B), value_of(A, payloads[A]))
    assert mend(store, item(A, B, payloads[A])) == [True]
    assert payload_in(store, A) == payloads[A]
    assert faults(store)[B] & Fault.HEADER_DAMAGED
    assert mend(store, item(B, B, payloads[B])) == [True]
    check_good(store, payloads)


@pytest.mark.parametrize("size", SIZES)
def test_what_stands_in_the_way_is_claimed_by_another_item(store: ChunkStore, size: int) -> None:
    payloads = fill(store, size)
    side = side_of(store, size)
    put_row(side, "chunks", encode_key(B), value_of(A, payloads[A]))
    put_row(side, "chunks", encode_key(A), flip(value_of(C, payloads[C]), 20))
    store.delete_many([C])
    del payloads[B]
    assert mend(store, item(A, B, payloads[A]), item(C, A, payloads[C])) == [True, True]
    check_good(store, payloads)


@pytest.mark.parametrize("budget", [1, MIB])
def test_a_payload_in_the_wrong_environment(store: ChunkStore, budget: int) -> None:
    """The row it leaves is given to another chunk meanwhile, and that one stays."""
    small, one, two = b"s" * 50, b"1" * 40_000, b"2" * 50_000
    d, e = ChunkKey(6, 0, 9), ChunkKey(6, 1, 9)
    store.put_many([image(d, b"bad" * 20_000), image(e, b"bad" * 20_000)])
    large = side_named(store, "large")
    put_row(large, "chunks", encode_key(B), value_of(A, small))
    put_row(large, "chunks", encode_key(d), value_of(B, one))
    put_row(large, "chunks", encode_key(e), value_of(d, two))
    items = item(A, B, small), item(d, e, two)
    assert mend(store, *items, transaction_bytes=budget) == [True, True]
    assert mend(store, item(B, B, one)) == [True]
    store.delete_many([e])
    check_good(store, {A: small, B: one, d: two})


@pytest.mark.parametrize("size", SIZES)
def test_an_image_leaves_an_environment_when_the_other_one_has_it(
    store: ChunkStore, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = b"p" * size
    other = side_of(store, 70_020 - size)
    for at in range(1, 7):
        put_row(other, "chunks", encode_key(B), value_of(A, payload))
        with dying(monkeypatch, at), suppress(Killed):
            mend(store, item(A, B, payload))
        assert stored_payloads(store, {A: payload}) == {A}
        mend(store, item(A, B, payload))
        check_good(store, {A: payload})
        store.delete_many([A])


@pytest.mark.parametrize("size", SIZES)
def test_what_the_index_knows_better_goes(store: ChunkStore, size: int) -> None:
    payloads = fill(store, size)
    side = side_of(store, size)
    stray = ChunkKey(7, 0, 1)
    put_row(side, "chunks", encode_key(stray), value_of(B, payloads[B]))
    put_row(side, "chunks", encode_key(B), value_of(A, b"older" * (size // 5)))
    assert mend(store, item(A, A, payloads[A]), item(B, stray, payloads[B])) == [True, True]
    check_good(store, payloads)


@pytest.mark.parametrize("size", SIZES)
def test_damaged_images_are_kept_beside_each_other(store: ChunkStore, size: int) -> None:
    """Two images name the same chunk and both have a wrong byte: neither is thrown away."""
    payloads = fill(store, size)
    side = side_of(store, size)
    one, two = flip(value_of(C, payloads[C]), 70), flip(value_of(C, payloads[C]), 75)
    put_row(side, "chunks", encode_key(C), one)
    put_row(side, "chunks", encode_key(A), two)
    put_row(side, "chunks", encode_key(B), value_of(A, payloads[A]))
    assert mend(store, item(A, B, payloads[A])) == [True]
    with side.environment.read() as rows:
        values = [bytes(value) for _, value in rows.scan("chunks")]
    assert sorted(values) == sorted([value_of(A, payloads[A]), one, two])


@pytest.mark.parametrize("size", SIZES)
def test_a_flipped_key(store: ChunkStore, size: int) -> None:
    payloads = fill(store, size)
    side = side_of(store, size)
    stray = A._replace(generation=8)
    drop_row(side, "chunks", encode_key(A))
    put_row(side, "chunks", encode_key(stray), value_of(A, payloads[A]))
    assert mend(store, item(A, stray, payloads[A])) == [True]
    check_good(store, payloads)
    drop_row(side, "headers", encode_key(B))
    put_row(side, "headers", encode_key(stray), value_of(B, payloads[B])[:64])
    assert mend(store, item(B, stray, payloads[B])) == [True]
    store.delete_many([stray])
    check_good(store, payloads)


@pytest.mark.parametrize("size", SIZES)
def test_twice(store: ChunkStore, size: int) -> None:
    payloads = fill(store, size)
    other = side_of(store, 70_020 - size)
    value = value_of(A, payloads[A])
    for bad in (value, flip(value, 70), flip(value, 20), value_of(B, payloads[B])):
        put_row(other, "chunks", encode_key(A), bad)
        put_row(other, "headers", encode_key(A), bad[:64])
        other.counters = other._read_counters()
        assert faults(store)[A] & Fault.TWICE
        assert mend(store, item(A, A, payloads[A])) == [True]
        left = faults(store)
        if bad[:64] == flip(value, 20)[:64]:  # nobody knows what it was: it is kept, out of the way
            (stray,) = left
            assert stray.inode == 2**64 - 1
            store.delete_many([stray])
        check_good(store, payloads)


@pytest.mark.parametrize("size", SIZES)
def test_a_donor_stays(store: ChunkStore, size: int) -> None:
    """Two chunks with the same payload: one is made from the other."""
    same = b"s" * size
    store.put_many([image(key, same) for key in (A, B, C)])
    store.delete_many([A])
    assert mend(store, item(A, B, same), item(C, B, same)) == [True, True]
    check_good(store, dict.fromkeys((A, B, C), same))


def test_pieces_of_the_index_copy_too(store: ChunkStore) -> None:
    piece = ChunkKey(0, 1, 9)
    assert mend(store, item(piece, piece, b"x" * 10)) == [False]
    store.put_many([image(piece, b"x" * 10)])
    copy = side_named(store, "copy")
    put_row(copy, "chunks", encode_key(piece), flip(value_of(piece, b"x" * 10), 20))
    assert faults(store) == {piece: Fault.HEADER_DAMAGED}
    assert mend(store, item(piece, piece, b"x" * 10)) == [True]
    assert faults(store) == {}
    assert store.stats().chunks == 0
    with store.get(piece) as lease:
        assert lease.image[64:] == b"x" * 10


class Killed(Exception):
    """The process dies here."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[list[int]]:
    """The `at`th commit of an environment does not happen, nor any after it."""
    seen = [0]
    real = Side.change

    @contextmanager
    def change(side: Side) -> Iterator[SideChange]:
        with real(side) as opened:
            yield opened
            seen[0] += 1
            if seen[0] == at:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Side, "change", change)
        yield seen


def damage(store: ChunkStore, source: random.Random, payloads: dict[ChunkKey, bytes]) -> None:
    """Some rows are exchanged, rotated, moved, doubled, unlisted, or have a wrong byte."""
    for side in store.sides:
        keys = [key for key in payloads if side_of(store, len(payloads[key])) is side]
        moved = source.sample(keys, source.randrange(len(keys) + 1))
        images = {key: value_of(key, payloads[key]) for key in moved}
        places = moved[:]
        source.shuffle(places)
        for key, place in zip(moved, places, strict=True):
            put_row(side, "chunks", encode_key(place), images[key])
            if source.random() < 0.7:
                put_row(side, "headers", encode_key(place), images[key][:64])
        for key in source.sample(keys, 2):
            stored = encode_key(key)
            value = read_row(side, "chunks", stored)
            assert value is not None
            match source.randrange(9):
                case 0:
                    put_row(side, "chunks", stored, flip(value, source.randrange(64)))
                case 1:
                    put_row(side, "headers", stored, flip(value[:64], source.randrange(64)))
                case 2:
                    drop_row(side, "headers", stored)
                case 3:
                    drop_row(side, "chunks", stored)
                case 4:
                    put_row(side, "chunks", stored, value[:64] + wrong(value[64:], source))
                case 5:
                    stray = key._replace(generation=source.randrange(1, 9))
                    drop_row(side, "chunks", stored)
                    put_row(side, "chunks", encode_key(stray), value)
                case 6 | 7 as how:
                    other = source.choice(store.sides)
                    if how == 7:
                        drop_row(side, "chunks", stored)
                        stored = encode_key(source.choice(list(payloads)))
                    put_row(other, "chunks", stored, value)
                    put_row(other, "headers", stored, value[:64])
                case 8:
                    put_row(side, "chunks", stored, flip(value, source.randrange(64)))
                    drop_row(side, "headers", stored)


def round_of_mending(
    store: ChunkStore, payloads: dict[ChunkKey, bytes], source: random.Random, budget: int
) -> None:
    """What verify and repair does with a store: items for all that is not as it should be."""
    found = reports(store)
    places = {report.named: report.key for report in found if report.named != report.key}
    good = {report.key for report in found if not report.faults}
    items = [item(key, places.get(key, key), payloads[key]) for key in payloads if key not in good]
    source.shuffle(items)
    items = items[: source.randrange(1, len(items) + 1)] if items else []
    mend(store, *items, transaction_bytes=budget)


def stored_payloads(store: ChunkStore, payloads: dict[ChunkKey, bytes]) -> set[ChunkKey]:
    """Chunks whose payload stands somewhere in the store."""
    there = set()
    for side in store.sides:
        with side.environment.read() as rows:
            for _, value in rows.scan("chunks"):
                there |= {
                    key
                    for key, payload in payloads.items()
                    if bytes(value[64 : 64 + len(payload)]) == payload
                }
    return there


@pytest.mark.parametrize("seed", range(25))
def test_nothing_is_lost_whenever_it_is_killed(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    print("seed", seed)
    source = random.Random(seed)
    budget = source.choice((1, 100_000, 64 * MIB))
    folder = str(tmp_path / "worker-3")
    store = open_store(folder, relaxed=True)
    payloads = {
        ChunkKey(inode, chunk, 9): source.randbytes(source.choice((30, 3_000, 40_000, 100_000)))
        for inode in (3, 4)
        for chunk in range(6)
    }
    payloads[ChunkKey(3, 0, 9)] = payloads[ChunkKey(4, 1, 9)] = source.randbytes(40)
    payloads[ChunkKey(3, 1, 9)] = payloads[ChunkKey(4, 2, 9)] = source.randbytes(60_000)
    store.put_many([image(key, payload) for key, payload in payloads.items()])
    damage(store, source, payloads)
    there = stored_payloads(store, payloads)
    store.close()
    shutil.copytree(folder, folder + ".damaged")
    at = 0
    was_killed = True
    while was_killed and at < 60:
        at += 1
        shutil.rmtree(folder)
        shutil.copytree(folder + ".damaged", folder)
        store = open_store(folder, create=False, relaxed=True)
        order = random.Random(seed * 1000 + at)
        was_killed = False
        with dying(monkeypatch, at):
            try:
                round_of_mending(store, payloads, order, budget)
            except Killed:
                was_killed = True
        assert stored_payloads(store, payloads) >= there, f"seed {seed}, killed at {at}"
        for _ in range(8):
            round_of_mending(store, payloads, order, budget)
        assert stored_payloads(store, payloads) >= there
        whole = {report.key for report in reports(store) if not report.faults}
        for key in whole & set(payloads):
            assert payload_in(store, key) == payloads[key]
        left = {key for key in there - whole if can_be_found(store, key, payloads[key])}
        assert not left, f"seed {seed}, killed at {at}"
        listed = 0
        for side in (side_named(store, "small"), side_named(store, "large")):
            with side.environment.read() as rows:
                listed += rows.count("headers")
        assert store.stats().chunks == listed
        store.close()
    assert not was_killed


def can_be_found(store: ChunkStore, key: ChunkKey, payload: bytes) -> bool:
    """Whether a payload stands under its chunk's key, or under a header that names the chunk."""
    for report in reports(store):
        if key in (report.key, report.named):
            for side in store.sides:
                value = read_row(side, "chunks", encode_key(report.key))
                if value is not None and value[64 : 64 + len(payload)] == payload:
                    return True
    return False
