"""What the index says of chunks, checked against itself: refs, sizes, sums, garbage, limits.

One pass over inodes, refs and garbage in one snapshot, in key order; nothing is held but what is
wrong (`Facts`, bounded).  What only the stores can decide (which generation of a chunk whose ref
is damaged, which chunk a missing ref was of) is passed on as facts to check_chunks.

Mounted, each finding is checked against the live index before it is reported.  A commit is
consistent in itself (sums, counters and refs change in one transaction), so only sizes need that:
a file's stored size follows its refs, never the other way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from stat import S_ISREG

from mpifs.core import records
from mpifs.core.checksum import Buffer
from mpifs.core.errors import DamageError
from mpifs.core.layout import chunk_count
from mpifs.core.limits import FACTS_MAX, REPLICAS_MAX
from mpifs.core.mending import correct_record
from mpifs.core.records import InodeRecord
from mpifs.core.types import ChunkRef
from mpifs.index.amendment import RowKey
from mpifs.repair import index_edits as edits
from mpifs.repair.check_garbage import check_garbage_rows
from mpifs.repair.facts import DamagedRef, Facts, draining_stores
from mpifs.repair.findings import ERROR, LEFTOVER, Finding, Progress
from mpifs.repair.paths import path_of
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.volume import VolumeView

_PARTS_MAX = 16  # files of which every choice is summed: 65,536 sums
_CHECK_EVERY = 1024  # rows between two looks at whether the run is cancelled


@dataclass(slots=True)
class _File:
    """Running sums over the refs of one inode."""

    ino: int
    record: InodeRecord | None = None
    is_known: bool = False
    """There is a record, damaged or not."""
    total: int = 0
    inside: int = 0
    """Refs below the end of the file."""
    chain: int = 0
    """The chunk up to which refs follow each other without a hole behind the end."""
    chain_size: int = 0
    chain_end: ChunkRef | None = None
    """The last ref of these."""
    is_end_stored: bool = True
    """Whether the last chunk below the end has a ref (an empty file has no such chunk)."""
    behind: list[tuple[int, ChunkRef]] = field(default_factory=list)


class RefChecks:
    """One pass; `run` yields what is wrong and fills `facts`."""

    def __init__(
        self,
        view: VolumeView,
        snapshot: Snapshot,
        progress: Progress,
        known: frozenset[int],
        *,
        adopt: bool,
    ) -> None:
        self.facts = Facts()
        self._view = view
        self._snapshot = snapshot
        self._progress = progress
        self._adopt = adopt
        self._stores = known
        self._count = len(view.stores()) - len(draining_stores(view))

    def run(self) -> Iterator[Finding]:
        """All findings of the index alone that concern chunks."""
        inodes = self._snapshot.inodes()
        row = next(inodes, None)
        current: _File | None = None
        for steps, (key, value) in enumerate(self._snapshot.scan(records.REFS)):
            if not steps % _CHECK_EVERY:
                self._progress.check()
            if len(key) != 16:
                yield from self._check_ref_key(bytes(key), bytes(value))
                continue
            ino, chunk = records.decode_ref_key(key)
            if current is None or current.ino != ino:
                if current is not None:
                    yield from self._end(current)
                while row is not None and row.ino < ino:
                    yield from self._end(_begin(row.ino, row.record, is_known=True))
                    row = next(inodes, None)
                is_known = row is not None and row.ino == ino
                record = row.record if row is not None and is_known else None
                current = _begin(ino, record, is_known=is_known)
                if is_known:
                    row = next(inodes, None)
            yield from self._take(current, chunk, bytes(key), value)
        if current is not None:
            yield from self._end(current)
        while row is not None:
            yield from self._end(_begin(row.ino, row.record, is_known=True))
            row = next(inodes, None)
        yield from check_garbage_rows(self._view, self._snapshot, self._progress, self.facts)
        self._settle_moved()
        yield from self._check_payload_counter()

    # One ref.

    def _take(self, file: _File, chunk: int, key: bytes, value: Buffer) -> Iterator[Finding]:
        facts = self.facts
        ref: ChunkRef | None
        try:
            ref = records.decode_ref(key, value)
        except DamageError:
            ref = self._note_damaged(file, chunk, key, bytes(value))
        if ref is None:
            return
        facts.highest = max(facts.highest, ref.generation)
        facts.payload_bytes += ref.length
        facts.stored_bytes += ref.length * sum(store in self._stores for store in ref.stores)
        file.total += ref.length
        record = file.record
        if record is None:
            return
        if not 0 < ref.length <= record.chunk_size:
            yield self._check_ref_length(record, chunk, ref)
        replicas = record.replicas if 1 <= record.replicas <= REPLICAS_MAX else 1
        if ref.stores and len(set(ref.stores)) < min(replicas, self._count) and facts.has_room():
            facts.few.add((file.ino, chunk))
        self._note_end(file, record, chunk, ref)

    def _note_end(self, file: _File, record: InodeRecord, chunk: int, ref: ChunkRef) -> None:
        count = chunk_count(record.stable_size, record.chunk_size)
        if chunk < count:
            file.inside += 1
            file.is_end_stored = file.is_end_stored or chunk == count - 1
        elif S_ISREG(record.mode) and record.nlink:
            if file.is_end_stored and chunk == max(file.chain, count):
                file.chain = chunk + 1
                file.chain_size = chunk * record.chunk_size + ref.length
                file.chain_end = ref
            elif len(file.behind) < FACTS_MAX:
                file.behind.append((chunk, ref))

    def _note_damaged(self, file: _File, chunk: int, key: bytes, value: bytes) -> ChunkRef | None:
        """Remembers a ref that cannot be read; gives it if it can be corrected in its place."""
        facts = self.facts
        fixed = correct_record(key, value)
        damaged = DamagedRef(key, value, fixed)
        if facts.has_room():
            facts.damaged[file.ino, chunk] = damaged
        if fixed is not None:
            ref = edits.decode_ref(RowKey(records.REFS, fixed[0]), fixed[1])
            if ref is not None and fixed[0] == key:
                return ref
            if ref is not None and len(fixed[0]) == 16:
                facts.moved[records.decode_ref_key(fixed[0])] = damaged
                facts.payload_bytes += ref.length
                facts.highest = max(facts.highest, ref.generation)
                return None
        facts.unsure.add(file.ino)
        return None

    def _check_ref_key(self, key: bytes, value: bytes) -> Iterator[Finding]:
        row = RowKey(records.REFS, key)
        yield Finding(
            "check_ref_key",
            ERROR,
            "a row of the index's chunk refs has a key of the wrong length and belongs to nothing",
            remedy=lambda: edits.change_row(self._view, row, value, None),
        )

    def _check_ref_length(self, record: InodeRecord, chunk: int, ref: ChunkRef) -> Finding:
        return Finding(
            "check_ref_length",
            ERROR,
            f"the index gives the chunk {ref.length} bytes, "
            f"but a chunk of this file has 1 to {record.chunk_size}",
            path_of(self._snapshot, record.ino),
            record.ino,
            chunk,
        )

    # One inode.

    def _end(self, file: _File) -> Iterator[Finding]:
        record = file.record
        if record is None:
            if file.is_known:
                self.facts.unsure.add(file.ino)
            return
        if file.chain:
            yield from self._check_refs_follow_the_size(file, record)
        for chunk, ref in file.behind:
            yield from self._check_refs_end_with_the_file(record, chunk, ref)
        if record.bytes_stored != file.total:
            yield from self._check_bytes_stored(file, record)

    def _check_refs_follow_the_size(self, file: _File, record: InodeRecord) -> Iterator[Finding]:
        """Chunks right behind the end were written; the size alone is too small."""
        size, ref = file.chain_size, file.chain_end
        if ref is None or not self._is_behind_the_end(record, file.chain - 1, ref):
            return
        yield Finding(
            "check_refs_follow_the_size",
            ERROR,
            f"the file has data up to byte {size:,} without a gap, but a size of "
            f"{record.stable_size:,}: what lies behind that cannot be read",
            path_of(self._snapshot, record.ino),
            record.ino,
            remedy=lambda: edits.raise_size(self._view, record.ino, size),
        )

    def _check_refs_end_with_the_file(
        self, record: InodeRecord, chunk: int, ref: ChunkRef
    ) -> Iterator[Finding]:
        """Refs that begin behind the end: a crash came between the data and the size."""
        view, ino = self._view, record.ino
        start = chunk * record.chunk_size
        if not self._is_behind_the_end(record, chunk, ref):
            return
        size = self._size_in_copy(record, chunk, ref)
        if self._adopt:
            size = max(size, start + ref.length)
        finding = Finding(
            "check_refs_end_with_the_file",
            LEFTOVER,
            f"the index lists a chunk at byte {start:,}, behind the end of the file "
            f"({record.stable_size:,}): it can never be read and only takes space",
            path_of(self._snapshot, ino),
            ino,
            chunk,
            remedy=lambda: edits.drop_ref(view, ino, chunk, ref),
        )
        if size:
            finding.severity = ERROR
            finding.detail = (
                f"the file's size of {record.stable_size:,} hides its data at byte {start:,}; "
                f"it was {size:,}"
            )
            finding.remedy = lambda: edits.raise_size(view, ino, size)
        yield finding

    def _is_behind_the_end(self, record: InodeRecord, chunk: int, ref: ChunkRef) -> bool:
        """Whether that is so now, too.  A mounted file grows before it gets the refs, and loses the
        refs before it shrinks: if the ref is there after the size was read, the size is wrong."""
        view = self._view
        if not view.is_live:
            return True
        try:
            now = view.current_size(record.ino)
            found = view.current_ref(record.ino, chunk)
        except DamageError:
            return False
        return now is not None and now <= chunk * record.chunk_size and found == ref

    def _size_in_copy(self, record: InodeRecord, chunk: int, ref: ChunkRef) -> int:
        """The file's size in the copy of the index, if that has this very ref inside it; else 0."""
        row = edits.ref_row(record.ino, chunk)
        if edits.decode_ref(row, self._view.copy_row(*row)) != ref:
            return 0
        old = edits.inode_of(self._view.copy_row(*edits.inode_row(record.ino)), record.ino)
        is_inside = old is not None and old.stable_size > chunk * record.chunk_size
        return old.stable_size if old is not None and is_inside else 0

    def _check_bytes_stored(self, file: _File, record: InodeRecord) -> Iterator[Finding]:
        """The inode's sum of its refs: too large with a hole means that a ref is missing."""
        deficit = record.bytes_stored - file.total
        count = chunk_count(record.stable_size, record.chunk_size)
        ino = file.ino
        if ino in self.facts.unsure:
            self.facts.deficits[ino] = deficit
            return
        if deficit > 0 and file.inside < count:
            if self.facts.has_room():
                self.facts.deficits[ino] = deficit
            return
        yield Finding(
            "check_bytes_stored",
            ERROR,
            f"the index counts {record.bytes_stored:,} stored bytes for this file, its chunks have "
            f"{file.total:,}: only the space shown as used is wrong",
            path_of(self._snapshot, ino),
            ino,
            remedy=lambda: edits.set_bytes_stored(self._view, ino),
        )

    # The whole.

    def _settle_moved(self) -> None:
        """A ref that stands under a damaged key explains what its file misses."""
        facts = self.facts
        for (ino, _), damaged in facts.moved.items():
            assert damaged.fixed is not None
            ref = edits.decode_ref(RowKey(records.REFS, damaged.fixed[0]), damaged.fixed[1])
            if ref is not None and ino in facts.deficits:
                facts.deficits[ino] -= ref.length
        for ino in [ino for ino, deficit in facts.deficits.items() if not deficit]:
            del facts.deficits[ino]

    def _check_payload_counter(self) -> Iterator[Finding]:
        """The total of payload bytes.  Missing refs are still counted in it: so it also tells
        whether an inode that counts more than its refs have misses one, or counts wrongly."""
        facts = self.facts
        try:
            counters = self._snapshot.counters()
        except DamageError:
            return
        is_vague = any(damaged.fixed is None for damaged in facts.damaged.values())
        if counters is None or facts.is_full or is_vague or facts.unsure & facts.deficits.keys():
            return
        missing = {ino: deficit for ino, deficit in facts.deficits.items() if deficit > 0}
        more = counters.payload_bytes - facts.payload_bytes
        if not more:
            for ino, deficit in missing.items():
                del facts.deficits[ino]
                yield self._miscounted(ino, deficit)
        elif more != sum(missing.values()) and not _is_part_of(more, list(missing.values())):
            expected = facts.payload_bytes + sum(missing.values())
            change = expected - counters.payload_bytes
            yield Finding(
                "check_payload_counter",
                ERROR,
                f"the index counts {counters.payload_bytes:,} bytes in all files, its refs have "
                f"{expected:,}: only the figures shown are wrong",
                remedy=lambda: edits.add_payload(self._view, change),
            )

    def _miscounted(self, ino: int, deficit: int) -> Finding:
        return Finding(
            "check_bytes_stored",
            ERROR,
            f"the index counts {deficit:,} stored bytes too many for this file, and not in the "
            "volume's total: none is missing, but its holes give EIO until that is put right",
            path_of(self._snapshot, ino),
            ino,
            remedy=lambda: edits.set_bytes_stored(self._view, ino, misses_none=True),
        )


def _is_part_of(total: int, parts: list[int]) -> bool:
    """Whether some of the parts have that sum; not known, so False, of too many."""
    if len(parts) > _PARTS_MAX:
        return False
    sums = {0}
    for part in parts:
        sums |= {each + part for each in sums}
    return total in sums


def _begin(ino: int, record: InodeRecord | None, *, is_known: bool) -> _File:
    if record is not None and not edits.is_possible(record):
        record = None  # nothing can be said of its chunks until that is put right
    file = _File(ino, record, is_known)
    if record is not None:
        file.is_end_stored = chunk_count(record.stable_size, record.chunk_size) == 0
    return file
