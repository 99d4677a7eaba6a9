"""Which chunks go from which store to which: for stores that are being drained, and to even out.

Decided from the index alone, in key order, a few thousand refs in one snapshot each.  A plan is a
list of cures (heal): the copy is made, the ref changed if it is still the same, the old copy
dropped.  Nothing is remembered: what is left to do is what the refs say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.limits import MOVE_BATCH_BYTES, MOVE_BATCH_COUNT, MOVE_SCAN_COUNT
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.repair.findings import Progress
from mpifs.repair.heal import Cure
from mpifs.repair.volume import VolumeView


@dataclass(slots=True)
class Targets:
    """The stores that take chunks, in the order of placement, and what each can still take."""

    order: list[int]
    free: dict[int, int]
    sources: frozenset[int] = frozenset()
    """Stores that can be read."""
    full: set[int] = field(default_factory=set)
    """Stores that have refused for want of room."""

    def choose(self, key: ChunkKey, ref: ChunkRef) -> int | None:
        """The store for one more copy of a chunk: the next one round-robin that has none."""
        count = len(self.order)
        first = key.inode + key.chunk
        for step in range(count):
            store = self.order[(first + step) % count]
            if store not in ref.stores and self.has_room(store, ref.length):
                return store
        return None

    def has_room(self, store: int, length: int) -> bool:
        """Whether the store can take so many bytes more, as far as is known."""
        return store not in self.full and self.free.get(store, 0) >= length

    def move(self, key: ChunkKey, ref: ChunkRef, old: int, new: int) -> Cure:
        """The cure that puts a copy on `new` in the place of the one on `old`."""
        self.free[new] -= ref.length
        return Cure(
            key,
            ref,
            sources=[store for store in ref.stores if store in self.sources],
            copies=[new],
            stores=tuple(new if store == old else store for store in ref.stores),
            leaving=(old,),
        )


def refs_of_volume(
    view: VolumeView, progress: Progress
) -> Iterator[list[tuple[ChunkKey, ChunkRef]]]:
    """All refs that can be read, in key order, in lists of which each is one snapshot's."""
    after = b""
    while True:
        progress.check()
        found: list[tuple[ChunkKey, ChunkRef]] = []
        count = 0
        with view.snapshot() as transaction:
            for raw_key, value in transaction.scan(records.REFS, after):
                key = bytes(raw_key)
                after = key + b"\0"
                count += 1
                if len(key) == 16:
                    try:
                        ref = records.decode_ref(key, value)
                    except DamageError:
                        continue
                    found.append((ChunkKey(*records.decode_ref_key(key), ref.generation), ref))
                if count >= MOVE_SCAN_COUNT:
                    break
        yield found
        if count < MOVE_SCAN_COUNT:
            return


@dataclass(slots=True)
class Departure:
    """Empties `leaving`.  Filled by `plan`: chunks that a ref still has there, and those of them
    that cannot go anywhere."""

    leaving: frozenset[int]
    targets: Targets
    chunks: int = 0
    stuck: int = 0

    def plan(self, view: VolumeView, progress: Progress) -> Iterator[list[Cure]]:
        """One pass over all refs, in batches to be carried out one after the other."""
        return _in_batches(self._moves(view, progress))

    def _moves(self, view: VolumeView, progress: Progress) -> Iterator[Cure]:
        for refs in refs_of_volume(view, progress):
            for key, ref in refs:
                old = next((store for store in ref.stores if store in self.leaving), None)
                if old is None:
                    continue
                self.chunks += 1
                new = self.targets.choose(key, ref)
                if new is None or not self.targets.sources.intersection(ref.stores):
                    self.stuck += 1
                else:
                    yield self.targets.move(key, ref, old, new)


@dataclass(slots=True)
class Evening:
    """Moves chunks from stores with more bytes than the mean to stores with less; a chunk goes only
    if that brings both nearer to the mean, so no more is moved than is needed."""

    used: dict[int, int]
    """Payload bytes that refs name on each store that takes chunks."""
    targets: Targets
    slack: int = 0
    """So many bytes above the mean are even enough: half a chunk, which a store that took the last
    chunk may be above it; without it a second run would move crumbs back and forth."""

    def mean(self) -> int:
        """What each store should hold."""
        return sum(self.used.values()) // max(1, len(self.used))

    def excess(self) -> int:
        """Bytes that are to be moved."""
        mean = self.mean()
        return sum(max(0, used - mean) for used in self.used.values())

    def plan(self, view: VolumeView, progress: Progress) -> Iterator[list[Cure]]:
        """As Departure.plan."""
        return _in_batches(self._moves(view, progress))

    def _moves(self, view: VolumeView, progress: Progress) -> Iterator[Cure]:
        mean = self.mean()
        for refs in refs_of_volume(view, progress):
            for key, ref in refs:
                step = self._step(ref, mean)
                if step is not None:
                    yield self.targets.move(key, ref, *step)

    def _step(self, ref: ChunkRef, mean: int) -> tuple[int, int] | None:
        """(from, to), None if the chunk had better stay."""
        half = (ref.length + 1) // 2
        least = max(half, self.slack + 1)
        heavy = [store for store in ref.stores if self.used.get(store, 0) - mean >= least]
        if not heavy:
            return None
        light = [
            store
            for store, used in self.used.items()
            if mean - used >= half
            and store not in ref.stores
            and self.targets.has_room(store, ref.length)
        ]
        if not light:
            return None
        old = max(heavy, key=self.used.__getitem__)
        new = min(light, key=self.used.__getitem__)
        self.used[old] -= ref.length
        self.used[new] += ref.length
        return old, new


def _in_batches(cures: Iterable[Cure]) -> Iterator[list[Cure]]:
    """Lists of cures that are carried out together, before the next ones are planned."""
    batch: list[Cure] = []
    size = 0
    for cure in cures:
        batch.append(cure)
        size += cure.ref.length
        if size >= MOVE_BATCH_BYTES or len(batch) >= MOVE_BATCH_COUNT:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
