"""From places where something does not agree to findings with remedies, one batch at a time.

A batch is judged as a whole, because one fault may show at two places: an image under a damaged
key is missing at one and unknown at another; a ref under a damaged key makes its chunk unknown.

Mounted, nothing is reported as it was read: see check_chunks for the argument.  `_look_again` reads
each place anew in this order: settle; ref and garbage (live); the stores; the ref again.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpifs.core.chunk_report import Fault
from mpifs.core.errors import DamageError
from mpifs.core.limits import FACTS_MAX
from mpifs.core.types import ChunkRef
from mpifs.repair.chunk_case import Case, Judgement, Stray
from mpifs.repair.chunk_words import Owners
from mpifs.repair.copy_findings import CopyFindings
from mpifs.repair.facts import draining_stores
from mpifs.repair.findings import Finding
from mpifs.repair.heal import Healing
from mpifs.repair.place_rules import Copy, Place, Reach
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.stores import StoreAccess
from mpifs.repair.unknown_chunks import UnknownChunks
from mpifs.repair.volume import VolumeView


class ChunkFindings:
    """Judges batches of places.  `table`: the stores in the order of placement; `known`: those
    that a ref may name; `data`: payloads were summed."""

    def __init__(
        self,
        view: VolumeView,
        stores: StoreAccess,
        judgement: Judgement,
        table: list[int],
        known: frozenset[int],
        *,
        data: bool,
    ) -> None:
        self._view = view
        self._stores = stores
        self._judgement = judgement
        self._data = data
        self._table = table
        self._known = known

    def reach(self) -> Reach:
        """The stores as they are now."""
        stores = self._stores
        return Reach(self._known, frozenset(stores.available), frozenset(stores.silent))

    def of(self, places: Sequence[Place]) -> list[Finding]:
        """Everything that is wrong at these places."""
        if self._view.is_live:
            places = self._look_again(places)
        self._note_strays(places)
        with self._view.snapshot() as transaction:
            case = Case(
                self._view,
                self._stores,
                self._judgement,
                Owners(Snapshot(transaction), self._view.geometry.chunk_size),
                Healing(self._view, self._stores),
                self.reach(),
                self._table,
                self._data,
                draining_stores(self._view),
            )
            named, unknown = CopyFindings(case), UnknownChunks(case)
            findings: list[Finding] = []
            for place in places:
                findings += named.of(place)
            for place in places:
                findings += unknown.of(place)
            findings += unknown.at_end()
        return findings

    def _note_strays(self, places: Sequence[Place]) -> None:
        for place in places:
            for copy in place.copies:
                is_stray = copy.faults & Fault.WRONG_KEY and not copy.faults & Fault.SUM_WRONG
                if is_stray and len(self._judgement.strays) < FACTS_MAX:
                    stray = Stray(place.key(copy.generation), copy.length, copy.checksum)
                    self._judgement.strays[copy.store, copy.named] = stray

    def _look_again(self, places: Sequence[Place]) -> list[Place]:
        """The places as they are now, those left out that are being changed."""
        view = self._view
        view.settle()
        before: dict[tuple[int, int], Place] = {}
        seen: dict[tuple[int, int], set[int]] = {}
        for place in places:
            generations = {copy.generation for copy in place.copies} | set(place.garbage)
            fresh = Place(place.inode, place.chunk, *self._current(place))
            if fresh.is_damaged and not place.is_damaged:
                continue  # damaged this very moment: the next run tells of it
            for generation in generations:
                if view.current_garbage(place.key(generation)):
                    fresh.garbage[generation] = place.garbage.get(generation, tuple(self._table))
            before[place.spot] = fresh
            seen[place.spot] = generations
        reports = self._stores.look(list(before), self._data)
        again = []
        for spot, fresh in before.items():
            if self._current(fresh) != (fresh.ref, fresh.is_damaged):
                continue
            known = seen[spot] | ({fresh.ref.generation} if fresh.ref else set())
            fresh.copies = [
                Copy(store, r.key.generation, r.faults, r.length, r.checksum, r.named)
                for store, r in reports[spot]
                if r.key.generation in known
            ]
            again.append(fresh)
        return again

    def _current(self, place: Place) -> tuple[ChunkRef | None, bool]:
        """The live ref, and whether it cannot be read."""
        try:
            return self._view.current_ref(place.inode, place.chunk), False
        except DamageError:
            return None, True
