"""Repairs of stored chunks, many at once: mending in place, copying from good ones, deleting.

The findings of a batch share one `Healing`: the first remedy that is called carries out all of it,
in an order in which every step is durable by itself and leaves nothing worse if the run is killed
behind it: images are mended where they are; bad ones are replaced from verified good ones (carry);
refs are changed only when what they name is stored; only then goes what is too much.  Mounted, a
chunk that was rewritten meanwhile is left alone, and a copy that came too late is taken back.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mpifs import faultpoint
from mpifs.core.errors import DamageError, MpifsError
from mpifs.core.limits import HEAL_BYTES_MAX, HEAL_COUNT_MAX, MOVED_GRACE_S
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.index.amendment import RowKey
from mpifs.repair import index_edits as edits
from mpifs.repair.carry import Carrier, Wish
from mpifs.repair.stores import MendWish, StoreAccess
from mpifs.repair.volume import VolumeView


@dataclass(slots=True, eq=False)
class Cure:
    """What is to be done for one chunk that a ref names.

    `mends`: store → key under which the image stands there.  `copies`: stores that are to get the
    chunk from `sources`; what they hold of it is deleted before.  `stores`: the ref's stores from
    then on, if they change.
    """

    key: ChunkKey
    ref: ChunkRef
    mends: dict[int, ChunkKey] = field(default_factory=dict)
    sources: list[int] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    stores: tuple[int, ...] | None = None
    leaving: tuple[int, ...] = ()
    """Stores that `stores` lacks and that shall not keep their good copy."""
    done: set[int] = field(default_factory=set)
    """Stores whose copy is whole now."""
    is_named: bool = True
    """Whether the ref names what it should."""
    error: MpifsError | None = None

    @property
    def spot(self) -> tuple[int, int]:
        """(inode, chunk)."""
        return self.key.inode, self.key.chunk


@dataclass(slots=True, eq=False)
class Drop:
    """A stored image that is to be deleted from one store, if `may_go` still says so."""

    store: int
    key: ChunkKey
    may_go: Callable[[], bool]
    is_gone: bool = False
    error: MpifsError | None = None


@dataclass(slots=True, eq=False)
class Disposal:
    """A garbage row of a volume at rest: its chunk is deleted everywhere, then it is forgotten."""

    key: ChunkKey
    stores: tuple[int, ...]
    is_done: bool = False
    error: MpifsError | None = None


class Healing:
    """The repairs of one batch of places.  Used by the one thread of a run."""

    def __init__(self, view: VolumeView, stores: StoreAccess) -> None:
        self._view = view
        self._stores = stores
        self._cures: list[Cure] = []
        self._drops: list[Drop] = []
        self._disposals: list[Disposal] = []
        self._has_run = False
        self._moved: list[Cure] = []
        self._moved_s = 0.0

    def cure(self, cure: Cure, store: int | None) -> Callable[[], bool]:
        """Adds a cure; the remedy of its finding about `store` (None: about the ref)."""
        if cure not in self._cures:
            self._cures.append(cure)

        def remedy() -> bool:
            self._run()
            if cure.error is not None:
                raise cure.error
            if store is None or (cure.stores is not None and store not in cure.stores):
                return cure.is_named
            return store in cure.done

        return remedy

    def drop(self, drop: Drop) -> Callable[[], bool]:
        """Adds a deletion; the remedy of its finding."""
        self._drops.append(drop)

        def remedy() -> bool:
            self._run()
            if drop.error is not None:
                raise drop.error
            return drop.is_gone

        return remedy

    def run(self, cures: Iterable[Cure]) -> None:
        """Carries out cures that are nobody's finding.  Once."""
        self._cures += cures
        self._run()

    def dispose(self, disposal: Disposal) -> Callable[[], bool]:
        """Adds a garbage row to be finished; the remedy of its finding."""
        self._disposals.append(disposal)

        def remedy() -> bool:
            self._run()
            if disposal.error is not None:
                raise disposal.error
            return disposal.is_done

        return remedy

    def _run(self) -> None:
        if self._has_run:
            return
        self._has_run = True
        self._mend()
        waiting = [cure for cure in self._cures if self._needs_more(cure)]
        try:
            for group in _groups(waiting):
                self._copy(group)
        finally:
            self._drop_moved()
        self._delete()
        self._finish_garbage()

    # Where they are.

    def _mend(self) -> None:
        wishes: dict[int, list[tuple[Cure, MendWish]]] = defaultdict(list)
        for cure in self._cures:
            for store, found in cure.mends.items():
                wishes[store].append((cure, MendWish(cure.key, found, cure.ref)))
        for store, mine in wishes.items():
            faultpoint.reach("repair.commit")
            whole = self._stores.mend(store, [wish for _, wish in mine])
            for (cure, _), is_whole in zip(mine, whole, strict=True):
                if is_whole:
                    cure.done.add(store)

    def _needs_more(self, cure: Cure) -> bool:
        """Whether images must travel or the ref must change; what could not be mended travels."""
        failed = [store for store in cure.mends if store not in cure.done]
        for store in failed:
            if store not in cure.copies and any(source != store for source in cure.sources):
                cure.copies.append(store)
        return bool(cure.copies) or cure.stores is not None

    # From store to store.

    def _copy(self, group: list[Cure]) -> None:
        """Has the copies made, then changes the refs, then drops what has moved away."""
        fresh = [cure for cure in group if not self._is_outdated(cure)]
        # Never from a store whose copy is replaced.
        wishes = [
            (cure, Wish(cure.key, cure.ref, [s for s in cure.sources if s not in cure.copies], to))
            for cure in fresh
            for to in cure.copies
        ]
        carrier = Carrier(self._stores, self._stores.can_talk)
        put: list[tuple[Cure, int]] = []
        for (cure, wish), outcome in zip(
            wishes, carrier.bring([wish for _, wish in wishes]), strict=True
        ):
            if outcome.is_there:
                cure.done.add(wish.target)
                put.append((cure, wish.target))
            elif outcome.error is not None:
                cure.error = outcome.error
        self._change_refs(fresh)
        self._take_back(put)
        self._moved += [cure for cure in fresh if cure.leaving and cure.is_named and cure.stores]
        self._moved_s = time.monotonic()
        self._stores.on_copied(sum(cure.ref.length for cure, _ in put))

    def _drop_moved(self) -> None:
        """Copies that a ref does not name any more; readers that still hold the old ref get a
        moment to be done with it (they would look again, but that costs them a request)."""
        moved, self._moved = self._moved, []
        if not moved:
            return
        if self._view.is_live:
            time.sleep(max(0.0, self._moved_s + MOVED_GRACE_S - time.monotonic()))
        going: dict[int, list[ChunkKey]] = defaultdict(list)
        for cure in moved:
            for store in cure.leaving:
                if store in self._stores.available and self._is_unasked(cure, store):
                    going[store].append(cure.key)
        if going:
            faultpoint.reach("repair.commit")
            self._stores.delete(going)

    def _is_unasked(self, cure: Cure, store: int) -> bool:
        """Whether no ref names this copy."""
        try:
            ref = self._view.current_ref(*cure.spot)
        except DamageError:
            return False
        return ref is None or ref.generation != cure.key.generation or store not in ref.stores

    def _is_outdated(self, cure: Cure) -> bool:
        """Whether the ref is another one now."""
        try:
            return self._view.current_ref(*cure.spot) != cure.ref
        except DamageError:
            return True

    def _change_refs(self, cures: Iterable[Cure]) -> None:
        changes = {}
        changing = [cure for cure in cures if cure.stores is not None and cure.error is None]
        for cure in changing:
            assert cure.stores is not None
            cure.is_named = False
            new = [s for s in cure.stores if s not in cure.ref.stores]
            if all(store in cure.done or store in cure.sources for store in new):
                changes[cure.spot] = (cure.ref, cure.ref._replace(stores=cure.stores))
        if changes:
            named = edits.replace_stores(self._view, changes)
            for cure in changing:
                cure.is_named = cure.spot in named

    def _take_back(self, put: list[tuple[Cure, int]]) -> None:
        """Copies of chunks that were rewritten while they were made belong to nothing now."""
        if not self._view.is_live:
            return
        late: dict[int, list[ChunkKey]] = defaultdict(list)
        for cure, store in put:
            try:
                ref = self._view.current_ref(*cure.spot)
            except DamageError:
                continue
            if ref is None or ref.generation != cure.key.generation or store not in ref.stores:
                late[store].append(cure.key)
                cure.done.discard(store)
        if late:
            self._stores.delete(late)

    # What is too much.

    def _delete(self) -> None:
        going: dict[int, list[Drop]] = defaultdict(list)
        for drop in self._drops:
            if drop.may_go():
                going[drop.store].append(drop)
        if not going:
            return
        faultpoint.reach("repair.commit")
        failed = self._stores.delete(
            {store: [drop.key for drop in drops] for store, drops in going.items()}
        )
        for store, drops in going.items():
            for drop in drops:
                drop.error = failed.get(store)
                drop.is_gone = drop.error is None

    def _finish_garbage(self) -> None:
        known = {entry.store for entry in self._view.stores()}
        for first in range(0, len(self._disposals), HEAL_COUNT_MAX):
            group = self._disposals[first : first + HEAL_COUNT_MAX]
            going: dict[int, list[ChunkKey]] = defaultdict(list)
            for disposal in group:
                for store in known.intersection(disposal.stores):
                    going[store].append(disposal.key)
            faultpoint.reach("repair.commit")
            failed = self._stores.delete(going)
            self._forget([d for d in group if not failed.keys() & set(d.stores)])
            for disposal in group:
                errors = [failed[store] for store in disposal.stores if store in failed]
                disposal.error = errors[0] if errors else None

    def _forget(self, disposals: Sequence[Disposal]) -> None:
        rows: dict[RowKey, bytes | None] = {}
        expected: dict[RowKey, bytes | None] = {}
        with self._view.snapshot() as snapshot:
            for disposal in disposals:
                row = edits.garbage_row(disposal.key)
                rows[row], expected[row] = None, edits.raw(snapshot, row)
        is_done = not rows or edits.amend(self._view, rows, expected)
        for disposal in disposals:
            disposal.is_done = is_done


def _groups(cures: list[Cure]) -> Iterable[list[Cure]]:
    """Cures whose images fit into memory together."""
    group: list[Cure] = []
    size = 0
    for cure in cures:
        size += cure.ref.length if cure.copies else 0
        if group and (size > HEAL_BYTES_MAX or len(group) >= HEAL_COUNT_MAX):
            yield group
            group, size = [], cure.ref.length
        group.append(cure)
    if group:
        yield group
