"""What is wrong at one (inode, chunk): the index's rows against what the stores report.  Pure.

A `Place` holds everything known of one chunk of one file; the functions below, one per invariant,
say what does not agree.  They decide nothing about repair and know no volume: who calls them says
which stores exist and answer (`Reach`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from mpifs.core.chunk_report import Fault
from mpifs.core.types import ChunkKey, ChunkRef


class Copy(NamedTuple):
    """One stored image as its store reports it (core.chunk_report); the key's generation."""

    store: int
    generation: int
    faults: int
    length: int
    checksum: bytes
    named: ChunkKey


class State(Enum):
    """What a store holds of a chunk that a ref says it has."""

    GOOD = auto()
    LISTING = auto()
    """Whole and readable; the store's own bookkeeping of it is wrong."""
    HEADER = auto()
    """Its header is damaged or another's: not readable, but the payload may be (or is) good."""
    MISSING = auto()
    FOREIGN = auto()
    """Another chunk's image stands in its place."""
    CUT = auto()
    LENGTH = auto()
    SUM = auto()
    """Other bytes than the index's checksum says."""
    AWAY = auto()
    """The store is not there."""
    UNSEEN = auto()
    """The store fell silent during the run: nothing is known."""
    NO_STORE = auto()
    """The volume's table lacks the store that the ref names: it may be the table that is wrong."""


READABLE = frozenset((State.GOOD, State.LISTING))
MENDABLE = frozenset((State.LISTING, State.HEADER))
"""The store itself can put it right, without the payload travelling."""
HOPEFUL = READABLE | {State.HEADER, State.UNSEEN, State.NO_STORE}
"""The bytes are there, or may be."""

_NO_PAYLOAD = Fault.NO_IMAGE | Fault.HEADER_DAMAGED | Fault.CUT
_NOT_WHOLE = _NO_PAYLOAD | Fault.WRONG_KEY | Fault.SUM_WRONG
_LIST_FAULTS = Fault.NOT_LISTED | Fault.LIST_DAMAGED | Fault.TWICE


@dataclass(frozen=True, slots=True)
class Reach:
    """The stores of the volume, those that answer, and those that fell silent during the run."""

    known: frozenset[int]
    available: frozenset[int]
    silent: frozenset[int] = frozenset()


@dataclass(slots=True)
class Place:
    """`ref` is None for a hole and for a damaged row (`is_damaged`); `garbage` maps generations
    listed for deletion to their stores (None: the row is damaged)."""

    inode: int
    chunk: int
    ref: ChunkRef | None = None
    is_damaged: bool = False
    garbage: dict[int, tuple[int, ...] | None] = field(default_factory=dict)
    copies: list[Copy] = field(default_factory=list)

    @property
    def spot(self) -> tuple[int, int]:
        """(inode, chunk)."""
        return self.inode, self.chunk

    def key(self, generation: int) -> ChunkKey:
        """Key of one of its generations."""
        return ChunkKey(self.inode, self.chunk, generation)


def has_payload_of(copy: Copy, ref: ChunkRef) -> bool:
    """Whether the stored payload is the one that the index knows (as far as it was summed)."""
    return not copy.faults & _NO_PAYLOAD and (copy.length, copy.checksum) == (
        ref.length,
        ref.checksum,
    )


def state_of(ref: ChunkRef, copy: Copy | None) -> State:
    """What a store that answers holds of the ref's generation; `copy` is its report of that key."""
    if copy is None or copy.faults & Fault.NO_IMAGE:
        return State.MISSING
    faults = copy.faults
    if faults & Fault.HEADER_DAMAGED:
        return State.HEADER
    if faults & Fault.CUT:
        return State.CUT
    if has_payload_of(copy, ref):
        if faults & (Fault.WRONG_KEY | Fault.SUM_WRONG):
            return State.HEADER
        return State.LISTING if faults & _LIST_FAULTS else State.GOOD
    if faults & Fault.WRONG_KEY:
        return State.FOREIGN
    return State.LENGTH if copy.length != ref.length else State.SUM


def is_whole(copy: Copy) -> bool:
    """Whether an image agrees with itself: it names its own key, its payload has its sum."""
    return not copy.faults & _NOT_WHOLE and copy.length > 0


def check_copies_are_as_the_ref_says(place: Place, reach: Reach) -> dict[int, State]:
    """The state on each store that the ref names; {} for a hole or a damaged ref."""
    ref = place.ref
    if ref is None:
        return {}
    held = {copy.store: copy for copy in place.copies if copy.generation == ref.generation}
    states = {}
    for store in ref.stores:
        if store not in reach.known:
            states[store] = State.NO_STORE
        elif store in held or store in reach.available:
            states[store] = state_of(ref, held.get(store))
        else:
            states[store] = State.UNSEEN if store in reach.silent else State.AWAY
    return states


def check_no_store_holds_a_copy_too_many(place: Place) -> list[Copy]:
    """Images of the ref's generation on stores that the ref does not name, good ones or not."""
    ref = place.ref
    if ref is None:
        return []
    named = set(ref.stores)
    return [c for c in place.copies if c.generation == ref.generation and c.store not in named]


def check_every_generation_is_known(place: Place) -> list[Copy]:
    """Images of generations that neither the ref nor the garbage list of their store accounts for.

    A damaged garbage row accounts for its generation everywhere; a damaged ref for none."""
    ref = place.ref
    unknown = []
    for copy in place.copies:
        if ref is not None and copy.generation == ref.generation:
            continue
        if copy.generation in place.garbage:
            stores = place.garbage[copy.generation]
            if stores is None or copy.store in stores:
                continue
        unknown.append(copy)
    return unknown


def check_garbage_is_not_in_use(place: Place) -> bool:
    """True if the ref's own generation is listed for deletion: its data may go at any moment."""
    return place.ref is not None and place.ref.generation in place.garbage


def spare_copies(place: Place) -> list[int]:
    """Stores that hold a readable copy which the ref does not name."""
    ref = place.ref
    if ref is None:
        return []
    extra = check_no_store_holds_a_copy_too_many(place)
    return sorted(copy.store for copy in extra if state_of(ref, copy) in READABLE)


def is_sound(place: Place, reach: Reach, wanted: int) -> bool:
    """Whether nothing at all is to be said of the place (garbage that is listed is no fault)."""
    ref = place.ref
    if place.is_damaged or check_garbage_is_not_in_use(place):
        return False
    if any(stores is None for stores in place.garbage.values()):
        return False
    if check_every_generation_is_known(place) or check_no_store_holds_a_copy_too_many(place):
        return False
    if any(copy.faults for copy in place.copies):
        return False
    if ref is None:
        return True
    if not ref.stores:
        return False  # recorded as lost
    states = check_copies_are_as_the_ref_says(place, reach)
    fine = (State.GOOD, State.UNSEEN)
    return len(states) >= wanted and all(state in fine for state in states.values())
