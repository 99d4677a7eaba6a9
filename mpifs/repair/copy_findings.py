"""What is wrong where a ref stands: its copies, copies too many, rows that list it for deletion.

Every bad copy is a finding of its own; what is to be done for the chunk is one `Cure` that they
share.  The bytes are lost only if no copy has them and none may: then the ref stays as it is, and
so do the bad copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mpifs.core.errors import DamageError
from mpifs.core.placement import place as placed
from mpifs.core.types import ChunkRef
from mpifs.repair import chunk_words as words
from mpifs.repair import index_edits as edits
from mpifs.repair.chunk_case import Case
from mpifs.repair.chunk_words import Owner
from mpifs.repair.findings import DAMAGE, ERROR, LEFTOVER, LOST, Finding
from mpifs.repair.heal import Cure, Disposal, Drop
from mpifs.repair.place_rules import (
    HOPEFUL,
    MENDABLE,
    READABLE,
    Place,
    State,
    check_copies_are_as_the_ref_says,
    check_garbage_is_not_in_use,
    check_no_store_holds_a_copy_too_many,
    spare_copies,
)

_FINE = frozenset((State.GOOD, State.UNSEEN))
_GONE = frozenset((State.AWAY, State.NO_STORE))


class CopyFindings:
    """Judges places by their refs."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._judgement = case.judgement
        self._healing = case.healing
        self._table = case.table

    def of(self, place: Place) -> Iterator[Finding]:
        """What is wrong with the copies that the ref names, and with its garbage rows."""
        owner = self._case.owners.of(place.inode)
        if place.is_damaged:
            yield from self._judgement.lost_refs.of_damaged(place, owner)
            return
        yield from self._of_garbage(place, owner)
        ref = place.ref
        if ref is None:
            return
        adoption = self._judgement.adoption
        if adoption is not None and adoption.supersedes(place):
            return
        if not ref.stores:
            yield self._tombstone(place, owner, ref)
            return
        states = check_copies_are_as_the_ref_says(place, self._case.reach)
        bad = {store: state for store, state in states.items() if state not in _FINE}
        wanted = self._wanted(place, owner, states)
        if bad or wanted > len(states):
            yield from self._of_copies(place, owner, states, wanted)
        else:
            yield from self._of_duplicates(place, owner)

    def _wanted(self, place: Place, owner: Owner, states: dict[int, State]) -> int:
        """How many copies the chunk is to have; not more than the ref names while nothing was
        noted, since the fast path does not look at the file."""
        if owner.record is None or place.spot not in self._judgement.facts.few:
            return len(states)
        return min(owner.record.replicas, len(set(self._table) - self._case.draining))

    def _tombstone(self, place: Place, owner: Owner, ref: ChunkRef) -> Finding:
        return Finding(
            "check_chunk_is_not_lost",
            LOST,
            f"{owner.byte_range(place.chunk, ref.length)} of the file are recorded as lost: "
            "reads of them give EIO until they are written again",
            owner.path,
            place.inode,
            place.chunk,
        )

    def _of_copies(
        self, place: Place, owner: Owner, states: dict[int, State], wanted: int
    ) -> Iterator[Finding]:
        ref = place.ref
        assert ref is not None
        key = place.key(ref.generation)
        good = [store for store, state in states.items() if state in READABLE]
        cure = Cure(key, ref, sources=good + spare_copies(place))
        self._plan_mends(cure, states)
        self._plan_copies(cure, states, owner, wanted)
        hopeful = cure.sources or cure.mends or any(s in HOPEFUL for s in states.values())
        has_steps = bool(cure.mends or cure.copies or cure.stores)
        for store, state in states.items():
            if state in _FINE:
                continue
            others = len([s for s in cure.sources if s != store])
            is_covered = store in cure.mends or store in cure.copies
            is_covered |= cure.stores is not None and store not in cure.stores
            yield Finding(
                words.check_name(state),
                DAMAGE if hopeful else LOST,
                words.of_copy(state, store, owner, place.chunk, ref, others, is_lost=not hopeful),
                owner.path,
                place.inode,
                place.chunk,
                store,
                self._healing.cure(cure, store) if has_steps and is_covered else None,
            )
        if wanted > len(states):
            can_grow = cure.stores is not None and len(cure.stores) > len(states)
            yield Finding(
                "check_chunk_has_its_replicas",
                DAMAGE,
                f"{owner.byte_range(place.chunk, ref.length)} of the file have {len(states)} "
                f"of {wanted} wanted copies: they are less safe than the rest",
                owner.path,
                place.inode,
                place.chunk,
                remedy=self._healing.cure(cure, None) if can_grow else None,
            )

    def _plan_mends(self, cure: Cure, states: dict[int, State]) -> None:
        """What its store can put right by itself."""
        for store, state in states.items():
            if state in MENDABLE:
                cure.mends[store] = cure.key
                continue
            stray = self._judgement.strays.get((store, cure.key))
            wanted = (cure.ref.length, cure.ref.checksum)
            if stray and state not in _FINE | _GONE and (stray.length, stray.checksum) == wanted:
                cure.mends[store] = stray.found
                self._judgement.claimed.add((store, cure.key))

    def _plan_copies(self, cure: Cure, states: dict[int, State], owner: Owner, wanted: int) -> None:
        """Bad copies are replaced in their place; for stores that are gone, and for copies that
        are too few, stores that hold one already are named, then the next ones in the order of
        placement get one."""
        if not cure.sources:
            return
        stores = list(states)
        spare = [store for store in cure.sources if store not in states]
        bad = [
            store
            for store, state in states.items()
            if state not in READABLE | _GONE and state is not State.UNSEEN
            if store not in cure.mends
        ]
        gone = [store for store, state in states.items() if state in _GONE]
        start = owner.record.start if owner.record else 0
        order = placed(start, cure.key.chunk, len(self._table), self._table) if self._table else ()
        ready = self._case.stores.available - self._case.draining
        free = [store for store in order if store in ready and store not in (*stores, *spare)]
        if free:  # neighbours share most of their chunks: not all of a lost store's go to one
            turn = (cure.key.inode + cure.key.chunk // len(self._table)) % len(free)
            free = free[turn:] + free[:turn]
        for store in gone + bad:
            if spare:
                stores[stores.index(store)] = spare.pop(0)
            elif store in bad:
                cure.copies.append(store)
            elif free:
                cure.copies.append(free[0])
                stores[stores.index(store)] = free.pop(0)
        while len(stores) < wanted and (spare or free):
            if not spare:
                cure.copies.append(free[0])
            stores.append(spare.pop(0) if spare else free.pop(0))
        if tuple(stores) != cure.ref.stores:
            cure.stores = tuple(stores)

    def _of_duplicates(self, place: Place, owner: Owner) -> Iterator[Finding]:
        """Only where all that the ref names is good: else a copy too many may be needed."""
        for copy in check_no_store_holds_a_copy_too_many(place):
            key = place.key(copy.generation)
            yield Finding(
                "check_no_store_holds_a_copy_too_many",
                LEFTOVER,
                f"worker {copy.store} holds a copy of "
                f"{owner.byte_range(place.chunk, copy.length)} of the file that the index does "
                "not ask for: it only takes space",
                owner.path,
                place.inode,
                place.chunk,
                copy.store,
                self._healing.drop(Drop(copy.store, key, self._unasked(place, copy.store))),
            )

    def _unasked(self, place: Place, store: int) -> Callable[[], bool]:
        view = self._case.view

        def may_go() -> bool:
            try:
                ref = view.current_ref(*place.spot)
            except DamageError:
                return False
            return ref == place.ref and ref is not None and store not in ref.stores

        return may_go

    def _of_garbage(self, place: Place, owner: Owner) -> Iterator[Finding]:
        ref = place.ref
        if check_garbage_is_not_in_use(place) and ref is not None:
            yield self._in_use(place, owner, ref)
        if self._case.view.is_live:
            return  # the mount deletes them; at rest nobody does
        for generation, stores in place.garbage.items():
            if stores is None or (ref is not None and generation == ref.generation):
                continue
            known = self._case.reach.known.intersection(stores)
            if not known <= self._case.reach.available:
                continue  # its worker is not there: a finding of its own
            disposal = Disposal(place.key(generation), stores)
            yield Finding(
                "check_garbage_is_deleted",
                LEFTOVER,
                f"generation {generation} of a chunk was replaced or removed and is not deleted "
                "yet: it only takes space, the next mount deletes it, too",
                owner.path,
                place.inode,
                place.chunk,
                remedy=self._healing.dispose(disposal),
            )

    def _in_use(self, place: Place, owner: Owner, ref: ChunkRef) -> Finding:
        view = self._case.view
        row, ref_row = edits.garbage_row(place.key(ref.generation)), edits.ref_row(*place.spot)

        def forget() -> bool:
            with view.snapshot() as snapshot:
                value, ref_value = edits.raw(snapshot, row), edits.raw(snapshot, ref_row)
            if value is None:
                return True
            if edits.decode_ref(ref_row, ref_value) != ref:
                return False
            return edits.amend(view, {row: None}, {row: value, ref_row: ref_value})

        return Finding(
            "check_garbage_is_not_in_use",
            ERROR,
            f"{owner.byte_range(place.chunk, ref.length)} of the file are listed for deletion "
            "although the file has them: they could go at any moment",
            owner.path,
            place.inode,
            place.chunk,
            remedy=forget,
        )
