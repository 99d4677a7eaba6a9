"""The index against all stores: one streaming merge in the order of the chunk keys.

Windows of reports (streams) meet the refs and garbage rows of the same range of places.  A place
where all agrees costs a few microseconds (`_join`); any other one becomes a suspect, and suspects
are judged in batches (chunk_findings), at the end or when SUSPECTS_MAX are waiting.  Nothing is
held but suspects; each window reads the index in a snapshot of its own, so that a long check of a
mounted volume keeps no freed page from being reused.

Mounted: why what changes meanwhile is no finding.  The merge may be wrong in both directions,
because a window's reports are older than its snapshot, or (read ahead) younger than the snapshot
before; so it only picks suspects.  A suspect place is read anew in this order:

1. `settle`: every chunk that was stored before is now named by a ref, listed as garbage, or an
   orphan for good; a generation is never used twice, so that stays so.
2. The live ref and the live garbage rows of the generations that the merge saw.
3. The stores.
4. The live ref again: if it is another one than in 2, the place is being changed: no finding.

A copy that the ref of 2 and 4 names was durable before the ref was set, and is deleted only after
a commit without the ref; so if 3 misses it, or finds it bad, it is missing or bad.  A generation
that the merge saw, that neither ref nor garbage named at 2 and that is still stored at 3, is an
orphan: had it been garbage before, it was forgotten only after it was deleted, and 3 would not see
it; a chunk in flight at the merge was settled by 1; one stored since is not among the generations
asked about.  Removed files: their refs became garbage, which 2 sees, until it is deleted.  Garbage
rows are no finding while mounted.  A remedy looks at the live ref once more before it deletes.

What a commit must keep in step (refs, sums, counters) is judged in one snapshot each (check_refs).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.image import encode_key
from mpifs.core.limits import SUSPECTS_MAX
from mpifs.core.records import decode_ref, decode_ref_key, ref_key
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.kv import ReadTransaction
from mpifs.repair.adopt import Adoption
from mpifs.repair.check_garbage import check_generations_are_below_their_limit
from mpifs.repair.check_refs import RefChecks
from mpifs.repair.check_stores import check_stores_are_listed
from mpifs.repair.chunk_case import Judgement
from mpifs.repair.chunk_findings import ChunkFindings
from mpifs.repair.facts import known_stores, placement_order
from mpifs.repair.findings import DAMAGE, Finding, Progress
from mpifs.repair.lost_refs import LostRefs
from mpifs.repair.place_rules import Copy, Place, is_sound, is_whole
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.stores import StoreAccess
from mpifs.repair.streams import Row, Spot, Streams, Window
from mpifs.repair.volume import VolumeView

_CHECK_EVERY = 4096  # places between two looks at whether the run is cancelled


def check_chunks(
    view: VolumeView,
    stores: StoreAccess,
    *,
    data: bool,
    progress: Progress,
    start: bytes = b"",
    pace: Callable[[int], None] | None = None,
    on_position: Callable[[bytes], None] | None = None,
    adopt: bool = False,
) -> Iterator[Finding]:
    """Everything that is wrong with refs and stored chunks.

    `data` false: stored headers stand for the payloads.  `start`: an encoded chunk key to go on
    from (its place is looked at again); `on_position` hears of such keys when everything before
    them was judged; `pace` hears of payload bytes read and may wait.  `adopt`: the index was
    recovered, unknown chunks come back.  Remedies may be called while this goes on.
    """
    return _ChunkCheck(view, stores, progress, data=data, adopt=adopt).run(start, pace, on_position)


class _ChunkCheck:
    """One run over all places."""

    def __init__(
        self,
        view: VolumeView,
        stores: StoreAccess,
        progress: Progress,
        *,
        data: bool,
        adopt: bool,
    ) -> None:
        self._view = view
        self._stores = stores
        self._progress = progress
        self._data = data
        self._adopt = adopt
        self._table = placement_order(view, stores)
        self._suspects: list[Place] = []
        self._highest = 0
        self._few: set[Spot] = set()

    def run(
        self,
        start: bytes,
        pace: Callable[[int], None] | None,
        on_position: Callable[[bytes], None] | None,
    ) -> Iterator[Finding]:
        """See check_chunks."""
        view, progress = self._view, self._progress
        progress.chunks = progress.bytes = 0
        with view.snapshot() as transaction:
            yield from check_stores_are_listed(view, self._stores)
            known = known_stores(view, self._stores)
            snapshot = Snapshot(transaction)
            refs = RefChecks(view, snapshot, progress, known, adopt=self._adopt)
            yield from refs.run()
        facts = refs.facts
        progress.total_bytes = facts.stored_bytes if self._data else 0
        self._few, self._highest = facts.few, facts.highest
        lost_refs = LostRefs(view, facts, self._table)
        adoption = Adoption(view, facts, self._table) if self._adopt else None
        judgement = Judgement(facts, lost_refs, adoption)
        self._judge = ChunkFindings(
            view, self._stores, judgement, self._table, known, data=self._data
        )
        streams = Streams(self._stores, progress, data=self._data, start=start, pace=pace)
        told = set(self._stores.silent)
        for window in streams.windows():
            with view.snapshot() as transaction:
                self._join(window, transaction)
            yield from self._silence(told)
            if len(self._suspects) >= SUSPECTS_MAX or (on_position and self._suspects):
                yield from self._judge_suspects()
            if on_position is not None and window.high is not None and not self._suspects:
                on_position(encode_key(ChunkKey(*window.high, 0)))
        yield from self._judge_suspects()
        yield from self._silence(told)
        yield from lost_refs.of_deficits()
        yield from self._check_limit()

    def _judge_suspects(self) -> Iterator[Finding]:
        while self._suspects:
            batch = self._suspects[:SUSPECTS_MAX]
            self._suspects = self._suspects[SUSPECTS_MAX:]
            self._progress.check()
            yield from self._judge.of(batch)

    def _silence(self, told: set[int]) -> Iterator[Finding]:
        """A store that failed on the way: one finding, whatever it holds."""
        for store in sorted(self._stores.silent.keys() - told):
            told.add(store)
            yield Finding(
                "check_store_answers",
                DAMAGE,
                f"worker {store} failed while it was checked ({self._stores.silent[store]}): "
                "what it holds behind that place was not looked at",
                worker=store,
            )

    def _check_limit(self) -> Iterator[Finding]:
        """Read last: a mounted volume raises it before it hands out a number."""
        with self._view.snapshot() as transaction:
            try:
                limit = Snapshot(transaction).number(records.KEY_GENERATION_LIMIT)
            except DamageError:
                return
        yield from check_generations_are_below_their_limit(self._view, self._highest, limit)

    # The merge.

    def _join(self, window: Window, transaction: ReadTransaction) -> None:
        """Compares a window's reports with the index; what differs becomes a suspect.

        The loop is the hot path: 100,000 chunks go through it in well under a second.
        """
        rows = window.rows
        end = None if window.high is None else ref_key(*window.high)
        garbage = _GarbageRows(transaction, window)
        few = self._few
        at, count = 0, len(rows)
        steps = 0
        for raw_key, value in transaction.scan(records.REFS, ref_key(*window.low), end):
            if len(raw_key) != 16:
                continue
            steps += 1
            if not steps % _CHECK_EVERY:
                self._progress.check()
                self._progress.chunks += _CHECK_EVERY
            spot = decode_ref_key(raw_key)
            if at < count and rows[at][:2] < spot:
                at = self._unnamed(rows, at, spot, garbage)
            if garbage.next_spot < spot:
                self._garbage_only(garbage, spot)
            first = at
            while at < count and rows[at][:2] == spot:
                at += 1
            try:
                ref = decode_ref(raw_key, value)
            except DamageError:
                self._suspect(spot, None, rows[first:at], garbage, is_damaged=True)
                continue
            if (
                garbage.next_spot == spot
                or (few and spot in few)
                or not _agrees(ref, rows, first, at)
            ):
                self._suspect(spot, ref, rows[first:at], garbage)
        if at < count:
            self._unnamed(rows, at, window.high, garbage)
        self._garbage_only(garbage, window.high)
        self._progress.chunks += steps % _CHECK_EVERY

    def _unnamed(self, rows: list[Row], at: int, until: Spot | None, garbage: _GarbageRows) -> int:
        """Rows of places without a ref, up to the place `until`; where to go on."""
        count = len(rows)
        while at < count and (until is None or rows[at][:2] < until):
            spot = rows[at][:2]
            if garbage.next_spot < spot:
                self._garbage_only(garbage, spot)
            first = at
            while at < count and rows[at][:2] == spot:
                at += 1
            self._suspect(spot, None, rows[first:at], garbage)
        return at

    def _garbage_only(self, garbage: _GarbageRows, until: Spot | None) -> None:
        """Garbage rows of places where nothing else is, below `until`."""
        while garbage.next_spot < (until or _END):
            self._suspect(garbage.next_spot, None, [], garbage)

    def _suspect(
        self,
        spot: Spot,
        ref: ChunkRef | None,
        rows: list[Row],
        garbage: _GarbageRows,
        *,
        is_damaged: bool = False,
    ) -> None:
        """A place that is looked at closely; kept if something is to be said of it."""
        copies = [Copy(r[9], r[2], r[3], r[4], r[8], ChunkKey(r[5], r[6], r[7])) for r in rows]
        place = Place(*spot, ref, is_damaged, garbage.take(spot), copies)
        for copy in copies:
            if is_whole(copy):  # else its key may be wrong
                self._highest = max(self._highest, copy.generation)
        has_garbage_to_tell = bool(place.garbage) and not self._view.is_live
        wanted = len(self._table) + 1 if spot in self._few else 0
        if has_garbage_to_tell or not is_sound(place, self._judge.reach(), wanted):
            self._suspects.append(place)


def _agrees(ref: ChunkRef, rows: list[Row], first: int, end: int) -> bool:
    """Whether the reports of a place are exactly the good copies that the ref names."""
    generation, length, checksum, stores = ref
    if end - first != len(stores) or not stores:
        return False
    for at in range(first, end):
        row = rows[at]
        if (
            row[2] != generation
            or row[3]
            or row[4] != length
            or row[8] != checksum
            or row[9] not in stores
        ):
            return False
    return True


_END: Spot = (1 << 64, 0)


class _GarbageRows:
    """The garbage rows of a window, by place; `next_spot` is behind all places at the end."""

    def __init__(self, transaction: ReadTransaction, window: Window) -> None:
        end = None if window.high is None else records.garbage_key(ChunkKey(*window.high, 0))
        start = records.garbage_key(ChunkKey(*window.low, 0))
        self._rows = transaction.scan(records.GARBAGE, start, end)
        self._next: tuple[ChunkKey, tuple[int, ...] | None] | None = None
        self.next_spot = _END
        self._advance()

    def _advance(self) -> None:
        self._next, self.next_spot = None, _END
        for key, value in self._rows:
            if len(key) != 24:
                continue
            chunk_key = records.decode_garbage_key(key)
            stores: tuple[int, ...] | None = None
            with contextlib.suppress(DamageError):
                stores = records.decode_garbage(key, value)
            self._next, self.next_spot = (chunk_key, stores), chunk_key[:2]
            return

    def take(self, spot: Spot) -> dict[int, tuple[int, ...] | None]:
        """The rows of a place, which must not lie behind the next one: generation → stores."""
        found: dict[int, tuple[int, ...] | None] = {}
        while self._next is not None and self.next_spot == spot:
            found[self._next[0].generation] = self._next[1]
            self._advance()
        return found
