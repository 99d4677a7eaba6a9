"""Refs that are damaged or missing: what the stores, the copy of the index and the sums say they
were.

A ref that nothing tells of any more is lost, and stays recorded as lost: a damaged row becomes a
tombstone (generation 0, no stores), a missing one leaves the inode with a sum that is too large.
Both make reads give EIO, never zeros.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from mpifs.core import records
from mpifs.core.limits import FACTS_MAX, REPLICAS_MAX
from mpifs.core.types import ChunkRef
from mpifs.index.amendment import RowKey
from mpifs.repair import index_edits as edits
from mpifs.repair.chunk_words import Owner, Owners
from mpifs.repair.facts import DamagedRef, Facts
from mpifs.repair.findings import ERROR, LOST, Finding
from mpifs.repair.place_rules import Copy, Place, check_every_generation_is_known, is_whole
from mpifs.repair.refs_of_file import refs_of
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.volume import VolumeView

TOMBSTONE_GENERATION = 0
"""No chunk ever has it: the same damage always gives the same tombstone."""

_SUBSETS_OF_MAX = 16  # candidates of which every choice is tried: 65,536 sums


class Candidate(NamedTuple):
    """A stored chunk that may be the one whose ref is missing."""

    chunk: int
    ref: ChunkRef


def newest(copies: list[Copy], order: list[int]) -> ChunkRef | None:
    """The ref that the whole images of the newest generation would have; None without one.

    `order`: the stores in the order of placement."""
    whole = [copy for copy in copies if is_whole(copy)]
    if not whole:
        return None
    top = max(whole, key=lambda copy: copy.generation)
    same = {
        copy.store
        for copy in whole
        if (copy.generation, copy.length, copy.checksum)
        == (top.generation, top.length, top.checksum)
    }
    stores = tuple(store for store in order if store in same)[:REPLICAS_MAX]
    return ChunkRef(top.generation, top.length, top.checksum, stores)


def choose_damaged(
    place: Place, old: ChunkRef | None, length: int | None, order: list[int]
) -> ChunkRef | None:
    """What a ref that cannot be read was; None: nothing tells.

    `old`: the ref in the copy of the index; `length`: how many bytes the inode counts for it, if
    that is known.  A generation that is stored and not listed for deletion is the current one, or
    one that a crash kept from being committed."""
    unknown = check_every_generation_is_known(place)
    generations = {copy.generation for copy in unknown}
    is_listed = old is None or old.generation in place.garbage
    if (
        old is not None
        and not is_listed
        and (old.generation in generations or not any(map(is_whole, unknown)))
    ):
        return old
    fitting = [copy for copy in unknown if copy.length == length]
    return newest(fitting, order) or newest(unknown, order)


def explain_deficit(
    deficit: int, candidates: list[Candidate], confirmed: set[int]
) -> list[Candidate]:
    """Which stored chunks are the ones that an inode misses; [] if that cannot be told.

    `confirmed`: chunks whose candidate is what the copy of the index has.  Only a choice whose
    bytes are exactly the missing ones, and that no other choice of its kind can be, is taken: a
    wrong one would show old bytes as new.
    """
    if sum(candidate.ref.length for candidate in candidates) == deficit:
        return candidates
    sure = [candidate for candidate in candidates if candidate.chunk in confirmed]
    if sure and sum(candidate.ref.length for candidate in sure) == deficit:
        return sure
    if len(candidates) > _SUBSETS_OF_MAX:
        return []
    found: list[Candidate] = []
    for count in range(1, len(candidates)):
        for choice in combinations(candidates, count):
            if sum(candidate.ref.length for candidate in choice) == deficit:
                if found:
                    return []
                found = list(choice)
    return found


class LostRefs:
    """Collects what may stand for missing refs during a run, and judges damaged ones."""

    def __init__(self, view: VolumeView, facts: Facts, table: list[int]) -> None:
        self._view = view
        self._facts = facts
        self._table = table
        self._candidates: dict[int, dict[int, ChunkRef]] = defaultdict(dict)
        self._count = 0
        self._damaged_in: dict[int, int] = defaultdict(int)
        for ino, _ in facts.damaged:
            self._damaged_in[ino] += 1

    # Damaged rows.

    def of_damaged(self, place: Place, owner: Owner) -> Iterator[Finding]:
        """A ref that cannot be read."""
        damaged = self._facts.damaged.get(place.spot)
        if damaged is None:
            return  # more than are remembered: the next round has it
        if damaged.fixed is not None:
            yield self._corrected(place, owner, damaged, damaged.fixed)
            return
        view, row = self._view, edits.ref_row(*place.spot)
        old = edits.decode_ref(row, view.copy_row(*row))
        deficit = self._facts.deficits.get(place.inode, 0)
        is_alone = self._damaged_in[place.inode] == 1
        length = deficit if is_alone and 0 < deficit <= owner.chunk_size else None
        ref = choose_damaged(place, old, length, self._table)
        if ref is None:
            yield self._lost(place, owner, damaged, length)
            return
        where = owner.byte_range(place.chunk, ref.length)
        yield Finding(
            "check_ref_is_readable",
            ERROR,
            f"the index's record of {where} of the file is damaged: reads give EIO until it is "
            "repaired; " + ("its copy has it" if ref is old else "a stored chunk fits it"),
            owner.path,
            place.inode,
            place.chunk,
            remedy=lambda: edits.restore_ref(view, *place.spot, ref, damaged.value),
        )

    def _lost(self, place: Place, owner: Owner, damaged: DamagedRef, length: int | None) -> Finding:
        size = owner.record.stable_size if owner.record else 0
        inside = size - place.chunk * owner.chunk_size
        likely = length or (min(owner.chunk_size, inside) if inside > 0 else owner.chunk_size)
        tombstone = ChunkRef(TOMBSTONE_GENERATION, likely, bytes(16), ())
        return Finding(
            "check_ref_is_readable",
            LOST,
            f"the index's record of {owner.byte_range(place.chunk, likely)} of the file is damaged "
            "and no stored chunk fits it: these bytes are lost, reads give EIO",
            owner.path,
            place.inode,
            place.chunk,
            remedy=lambda: edits.restore_ref(self._view, *place.spot, tombstone, damaged.value),
        )

    def _corrected(
        self, place: Place, owner: Owner, damaged: DamagedRef, fixed: tuple[bytes, bytes]
    ) -> Finding:
        """One byte explains it: of the record, or of its key (then it belongs elsewhere)."""
        view = self._view
        row, home = edits.ref_row(*place.spot), RowKey(records.REFS, fixed[0])
        ino, chunk, path = place.inode, place.chunk, owner.path
        if home != row and len(fixed[0]) == 16:
            ino, chunk = records.decode_ref_key(fixed[0])
            path = self._path_of(ino)

        def put_right() -> bool:
            rows: dict[RowKey, bytes | None] = {row: None}
            expected: dict[RowKey, bytes | None] = {row: damaged.value}
            rows[home] = fixed[1]
            if home != row:
                expected[home] = None
            return edits.amend(view, rows, expected)

        return Finding(
            "check_ref_is_readable",
            ERROR,
            "a byte of the index's record of this chunk is wrong: reads give EIO until it is put "
            "right; which byte is known",
            path,
            ino,
            chunk,
            remedy=put_right,
        )

    def _path_of(self, ino: int) -> bytes:
        with self._view.snapshot() as transaction:
            return Owners(Snapshot(transaction), 1).of(ino).path

    # Missing rows.

    def explains(self, place: Place, copy: Copy, owner: Owner) -> bool:
        """Whether an unknown image may be of a chunk whose ref is damaged or missing: then it is
        no orphan.  Remembers it."""
        facts = self._facts
        spot = place.spot
        if spot in facts.moved or place.key(copy.generation) in facts.moved_garbage:
            return True
        damaged = facts.damaged.get(spot) if place.is_damaged else None
        if owner.is_damaged or (place.is_damaged and not (damaged and damaged.is_elsewhere)):
            return True
        if facts.deficits.get(place.inode, 0) <= 0 and place.inode not in facts.unsure:
            return False
        if place.ref is not None:
            return False
        ref = newest([copy], self._table)
        is_inside = place.chunk * owner.chunk_size < (
            owner.record.stable_size if owner.record else 0
        )
        if ref is not None and is_inside and self._count < FACTS_MAX:
            held = self._candidates[place.inode].get(place.chunk)
            if held is not None and held._replace(stores=()) == ref._replace(stores=()):
                both = {*held.stores, *ref.stores}
                ref = ref._replace(stores=tuple(s for s in self._table if s in both))
            if held is None or held.generation <= ref.generation:
                self._candidates[place.inode][place.chunk] = ref
                self._count += held is None
        return True

    def of_deficits(self) -> Iterator[Finding]:
        """Inodes that count more bytes than their refs have, once all places were seen."""
        for ino, deficit in sorted(self._facts.deficits.items()):
            if deficit > 0 and ino not in self._facts.unsure:
                yield from self._of_deficit(ino)

    def _of_deficit(self, ino: int) -> Iterator[Finding]:
        view = self._view
        found = self._candidates.get(ino, {})
        with view.snapshot() as transaction:
            owner = Owners(Snapshot(transaction), view.geometry.chunk_size).of(ino)
            record = owner.record
            if record is None:
                return
            refs = refs_of(transaction, record, self._facts)
        if refs is None or record.bytes_stored <= refs.total:
            return  # repaired or changed meanwhile
        deficit = record.bytes_stored - refs.total
        free = {chunk: ref for chunk, ref in found.items() if chunk not in refs.chunks}
        holes = refs.holes(record, 2)
        candidates = [Candidate(chunk, ref) for chunk, ref in sorted(free.items())]
        confirmed = {c.chunk for c in candidates if self._is_in_copy(ino, c)}
        chosen = explain_deficit(deficit, candidates, confirmed)
        for chunk, ref in chosen:
            yield self._missing(owner, chunk, ref)
        if not chosen:
            yield Finding(
                "check_no_ref_is_missing",
                LOST,
                f"{deficit:,} bytes of the file are recorded nowhere any more: they are lost; the "
                "parts of the file that no record tells of give EIO, the others can be read",
                owner.path,
                ino,
                holes[0] if len(holes) == 1 else None,
            )

    def _missing(self, owner: Owner, chunk: int, ref: ChunkRef) -> Finding:
        return Finding(
            "check_no_ref_is_missing",
            ERROR,
            f"the index has no record of {owner.byte_range(chunk, ref.length)} of the file, but "
            "the chunk is stored: reads give EIO until it is repaired",
            owner.path,
            owner.ino,
            chunk,
            remedy=lambda: edits.restore_ref(self._view, owner.ino, chunk, ref, None),
        )

    def _is_in_copy(self, ino: int, candidate: Candidate) -> bool:
        row = edits.ref_row(ino, candidate.chunk)
        old = edits.decode_ref(row, self._view.copy_row(*row))
        return old is not None and old.generation == candidate.ref.generation
