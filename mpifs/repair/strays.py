"""Intact images that stand under a foreign key: who needs them.

An image is never deleted or overwritten while the chunk that it names has no other copy on that
store: first it goes home.
"""

from __future__ import annotations

from mpifs.core.chunk_report import ChunkReport
from mpifs.core.errors import DamageError
from mpifs.repair import chunk_words as words
from mpifs.repair.chunk_case import Case
from mpifs.repair.findings import DAMAGE, Finding
from mpifs.repair.heal import Cure
from mpifs.repair.place_rules import READABLE, Copy, Place, State, has_payload_of, state_of


class Strays:
    """Looks after the images that name another chunk than their key does."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def rescue(self, place: Place, copy: Copy) -> tuple[bool, Finding | None]:
        """Whether the image must stay for now, and the finding that brings it home, if there is
        not one already."""
        case, home = self._case, copy.named
        if (copy.store, home) in case.judgement.claimed:
            return True, None
        try:
            ref = case.view.current_ref(home.inode, home.chunk)
        except DamageError:
            return True, None
        wants = ref is not None and ref.generation == home.generation and copy.store in ref.stores
        if ref is None or not wants or not has_payload_of(copy, ref):
            facts = case.judgement.facts
            is_missed = facts.deficits.get(home.inode, 0) > 0 or home.inode in facts.unsure
            return ref is None and is_missed, None
        state = self._state_at_home(copy, ref.generation)
        if state in READABLE:
            return False, None
        case.judgement.claimed.add((copy.store, home))
        cure = Cure(home, ref, mends={copy.store: place.key(copy.generation)})
        owner = case.owners.of(home.inode)
        return True, Finding(
            words.check_name(State.FOREIGN),
            DAMAGE,
            f"the copy on worker {copy.store} stands under a wrong key: "
            f"{owner.byte_range(home.chunk, ref.length)} of the file cannot be read from it "
            "until it is put back",
            owner.path,
            home.inode,
            home.chunk,
            copy.store,
            case.healing.cure(cure, copy.store),
        )

    def _state_at_home(self, copy: Copy, generation: int) -> State:
        case, spot = self._case, (copy.named.inode, copy.named.chunk)
        ref = case.view.current_ref(*spot)
        found: ChunkReport | None = None
        for store, report in case.stores.look([spot], case.data)[spot]:
            if store == copy.store and report.key.generation == generation:
                found = report
        if ref is None or found is None:
            return State.MISSING
        mine = Copy(copy.store, generation, found.faults, found.length, found.checksum, found.named)
        return state_of(ref, mine)
