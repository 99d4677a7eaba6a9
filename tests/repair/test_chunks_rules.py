"""The pure part of checking chunks: one place judged by itself, choices among what is stored."""

from __future__ import annotations

import random

import pytest

from mpifs.core.chunk_report import Fault
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.repair.adopt import chunk_size_of
from mpifs.repair.lost_refs import Candidate, choose_damaged, explain_deficit, newest
from mpifs.repair.place_rules import (
    Copy,
    Place,
    Reach,
    State,
    check_copies_are_as_the_ref_says,
    check_every_generation_is_known,
    check_garbage_is_not_in_use,
    check_no_store_holds_a_copy_too_many,
    is_sound,
    is_whole,
    spare_copies,
    state_of,
)

SUM = b"s" * 16
REF = ChunkRef(7, 100, SUM, (1, 2))
KEY = ChunkKey(5, 3, 7)
ALL = Reach(frozenset((1, 2, 3)), frozenset((1, 2, 3)))


def copy(store: int = 1, generation: int = 7, faults: int = 0, **other: object) -> Copy:
    made = Copy(store, generation, faults, 100, SUM, KEY._replace(generation=generation))
    return made._replace(**other)  # type: ignore[arg-type]  # fields by name


def place(*copies: Copy, ref: ChunkRef | None = REF, **garbage: tuple[int, ...] | None) -> Place:
    listed = {int(name[1:]): stores for name, stores in garbage.items()}
    return Place(5, 3, ref, garbage=listed, copies=list(copies))


@pytest.mark.parametrize(
    ("held", "state"),
    [
        (copy(), State.GOOD),
        (None, State.MISSING),
        (copy(faults=Fault.NO_IMAGE, length=0, checksum=bytes(16)), State.MISSING),
        (copy(faults=Fault.NOT_LISTED), State.LISTING),
        (copy(faults=Fault.LIST_DAMAGED), State.LISTING),
        (copy(faults=Fault.TWICE), State.LISTING),
        (copy(faults=Fault.HEADER_DAMAGED, length=0, checksum=bytes(16)), State.HEADER),
        (copy(faults=Fault.SUM_WRONG), State.HEADER),  # the payload is the index's, the header not
        (copy(faults=Fault.WRONG_KEY, named=ChunkKey(9, 9, 9)), State.HEADER),
        (copy(faults=Fault.WRONG_KEY, checksum=b"x" * 16), State.FOREIGN),
        (copy(faults=Fault.CUT), State.CUT),
        (copy(length=99), State.LENGTH),
        (copy(checksum=b"x" * 16), State.SUM),
        (copy(checksum=b"x" * 16, faults=Fault.SUM_WRONG), State.SUM),
        (copy(checksum=b"x" * 16, faults=Fault.NOT_LISTED), State.SUM),
    ],
)
def test_state_of_one_copy(held: Copy | None, state: State) -> None:
    assert state_of(REF, held) is state


def test_stores_that_do_not_answer() -> None:
    reach = Reach(frozenset((1, 2)), frozenset(), frozenset((2,)))
    ref = REF._replace(stores=(1, 2, 9))
    states = check_copies_are_as_the_ref_says(Place(5, 3, ref), reach)
    assert states == {1: State.AWAY, 2: State.UNSEEN, 9: State.NO_STORE}
    reported = Place(5, 3, ref, copies=[copy(2)])  # it told of this place before it fell silent
    assert check_copies_are_as_the_ref_says(reported, reach)[2] is State.GOOD


def test_sound_places() -> None:
    assert is_sound(place(copy(1), copy(2)), ALL, 2)
    assert is_sound(place(copy(1), copy(2), copy(1, 6), g6=(1,)), ALL, 2)
    assert is_sound(place(ref=None, g6=(1,)), ALL, 0)
    assert not is_sound(place(copy(1), copy(2)), ALL, 3)
    assert not is_sound(place(copy(1)), ALL, 2)
    assert not is_sound(place(copy(1), copy(2), copy(3)), ALL, 2)
    assert not is_sound(place(copy(1), copy(2), copy(1, 6), copy(2, 6), g6=(1,)), ALL, 2)
    assert not is_sound(place(copy(1), copy(2), g7=(1, 2)), ALL, 2)
    assert not is_sound(place(copy(1), copy(2), g6=None), ALL, 2)
    assert not is_sound(place(copy(1), copy(2, faults=Fault.NOT_LISTED)), ALL, 2)
    assert not is_sound(Place(5, 3, is_damaged=True), ALL, 0)


def test_copies_too_many_and_spare_ones() -> None:
    extra = place(copy(1), copy(2), copy(3, checksum=b"x" * 16), copy(4))
    assert [c.store for c in check_no_store_holds_a_copy_too_many(extra)] == [3, 4]
    assert spare_copies(extra) == [4]


def test_unknown_generations() -> None:
    unknown = place(copy(1), copy(1, 6), copy(2, 6), copy(3, 5), copy(3, 8), g6=(1,), g5=None)
    found = [(c.store, c.generation) for c in check_every_generation_is_known(unknown)]
    assert found == [(2, 6), (3, 8)]
    assert check_garbage_is_not_in_use(place(g7=(1,)))
    assert not check_garbage_is_not_in_use(place(g6=(1,)))


def test_newest_names_all_stores_that_agree_in_order() -> None:
    copies = [copy(3, 8), copy(1, 8), copy(2, 8, checksum=b"x" * 16), copy(1, 9, Fault.CUT)]
    assert newest(copies, [1, 2, 3]) == ChunkRef(8, 100, SUM, (1, 3))
    assert newest([copy(faults=Fault.SUM_WRONG)], [1]) is None
    assert not is_whole(copy(length=0))


def test_a_damaged_ref_is_chosen_by_copy_length_and_age() -> None:
    stored = Place(5, 3, is_damaged=True, copies=[copy(1, 6), copy(2, 8, length=50), copy(3, 9)])
    assert choose_damaged(stored, None, None, [1, 2, 3]) == ChunkRef(9, 100, SUM, (3,))
    assert choose_damaged(stored, None, 50, [1, 2, 3]) == ChunkRef(8, 50, SUM, (2,))
    old = ChunkRef(6, 100, SUM, (1,))
    assert choose_damaged(stored, old, 50, [1, 2, 3]) is old
    stored.garbage[6] = (1,)  # it was rewritten since that copy of the index
    assert choose_damaged(stored, old, None, [1, 2, 3]) == ChunkRef(9, 100, SUM, (3,))
    empty = Place(5, 3, is_damaged=True)
    assert choose_damaged(empty, None, 50, [1]) is None
    assert choose_damaged(empty, old, 50, [1]) is old


def test_a_deficit_is_explained_only_without_doubt() -> None:
    def candidates(*lengths: int) -> list[Candidate]:
        return [Candidate(n, REF._replace(length=length)) for n, length in enumerate(lengths)]

    two = candidates(100, 60)
    assert explain_deficit(160, two, set()) == two
    assert explain_deficit(60, two, set()) == two[1:]
    assert explain_deficit(70, two, set()) == []
    assert explain_deficit(100, candidates(100, 100), set()) == []  # either could be it
    assert explain_deficit(100, candidates(100, 100), {1}) == candidates(100, 100)[1:]
    assert explain_deficit(100, candidates(*[100] * 40), set()) == []
    assert explain_deficit(5, [], set()) == []


def test_no_other_subset_has_the_same_sum() -> None:
    chance = random.Random(11)
    for _ in range(300):
        made = [
            Candidate(n, REF._replace(length=chance.randrange(1, 9)))
            for n in range(chance.randrange(1, 7))
        ]
        deficit = chance.randrange(1, 20)
        chosen = explain_deficit(deficit, made, set())
        if chosen:
            assert sum(candidate.ref.length for candidate in chosen) == deficit
            if len(chosen) < len(made):
                same = 0
                for mask in range(1, 1 << len(made)):
                    picked = [c for n, c in enumerate(made) if mask >> n & 1]
                    same += sum(c.ref.length for c in picked) == deficit
                assert same == 1


def test_chunk_size_of_a_file_without_a_name() -> None:
    assert chunk_size_of(65536, 3, 1 << 20) == 65536
    assert chunk_size_of(65536, 0, 1 << 20) == 1 << 20
    assert chunk_size_of(100, 3, 4096) == 4096
    assert chunk_size_of(5000, 0, 4096) == 8192
