"""Stored images that the index does not know: orphans, or witnesses of what it has lost.

An orphan is deleted only if nothing explains it: no damaged or missing ref or garbage row, no image
under a wrong key, no file that misses bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mpifs.core.chunk_report import Fault
from mpifs.core.errors import DamageError
from mpifs.repair import chunk_words as words
from mpifs.repair.chunk_case import Case
from mpifs.repair.chunk_words import Owner
from mpifs.repair.findings import LEFTOVER, Finding
from mpifs.repair.heal import Drop
from mpifs.repair.place_rules import Copy, Place, check_every_generation_is_known
from mpifs.repair.strays import Strays


class UnknownChunks:
    """Judges what of a place no ref and no garbage row accounts for."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._strays = Strays(case)

    def of(self, place: Place) -> Iterator[Finding]:
        """Findings of one place; call it after all places of the batch were judged by their refs,
        so that it is known which images are needed elsewhere."""
        owner = self._case.owners.of(place.inode)
        unknown = check_every_generation_is_known(place)
        for copy in place.copies:
            own = place.ref is not None and copy.generation == place.ref.generation
            if copy.faults & Fault.WRONG_KEY:
                must_stay, finding = self._strays.rescue(place, copy)
                if finding is not None:
                    yield finding
                if must_stay or own:
                    continue
            if copy not in unknown:
                continue
            if copy.faults & Fault.NO_IMAGE:
                yield self._empty_row(place, copy, owner)
            elif not self._is_explained(place, copy, owner):
                yield self._orphan(place, copy, owner)

    def _is_explained(self, place: Place, copy: Copy, owner: Owner) -> bool:
        judgement = self._case.judgement
        if judgement.lost_refs.explains(place, copy, owner):
            return True
        adoption = judgement.adoption
        return adoption is not None and adoption.takes(place, copy, owner)

    def at_end(self) -> Iterator[Finding]:
        """What the whole batch gives."""
        if self._case.judgement.adoption is not None:
            yield from self._case.judgement.adoption.of_batch(self._case.owners)

    def _orphan(self, place: Place, copy: Copy, owner: Owner) -> Finding:
        may_explain = self._case.judgement.facts.is_full
        drop = Drop(copy.store, place.key(copy.generation), self._is_unknown(place, copy))
        return Finding(
            "check_every_chunk_is_known",
            LEFTOVER,
            words.of_orphan(copy, owner),
            owner.path,
            place.inode,
            place.chunk,
            copy.store,
            None if may_explain else self._case.healing.drop(drop),
        )

    def _empty_row(self, place: Place, copy: Copy, owner: Owner) -> Finding:
        drop = Drop(copy.store, place.key(copy.generation), self._is_unknown(place, copy))
        return Finding(
            "check_every_chunk_is_known",
            LEFTOVER,
            f"worker {copy.store} lists a chunk (generation {copy.generation}) that it does not "
            "hold and nothing needs",
            owner.path,
            place.inode,
            place.chunk,
            copy.store,
            self._case.healing.drop(drop),
        )

    def _is_unknown(self, place: Place, copy: Copy) -> Callable[[], bool]:
        view, key = self._case.view, place.key(copy.generation)

        def may_go() -> bool:
            try:
                ref = view.current_ref(*place.spot)
            except DamageError:
                return False
            is_used = ref is not None and ref.generation == copy.generation
            return not is_used and not view.current_garbage(key)

        return may_go
