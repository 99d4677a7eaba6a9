"""The index as one run sees it: a committed state, typed, with the repairs planned so far.

Rows are streamed in key order and never held.  A damaged row comes as a row whose `record` (`ref`,
`ino`, …) says so, not as an exception: it counts as existing.  Rows whose key has the wrong length
belong to nobody; the streams leave them out (check_records finds them).

A check that knows the repair of what it has found plans it here (`change`), whether or not the run
repairs.  From then on every later check sees the index as the repair leaves it, so one fault is
one finding.  Rows planned while a stream runs are seen by streams that begin later.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import NamedTuple

from mpifs.core import records
from mpifs.core.checksum import Buffer
from mpifs.core.errors import DamageError
from mpifs.core.limits import NAME_BYTES_MAX, PLANNED_ROWS_MAX
from mpifs.core.records import Counters, InodeRecord
from mpifs.core.types import ChunkKey, ChunkRef, StoreEntry
from mpifs.index.amendment import Amendment, RowKey
from mpifs.kv import ReadTransaction
from mpifs.repair.tally import Tallies, end_of, is_directory_record


class InodeRow(NamedTuple):
    """`record` is None if it is damaged."""

    ino: int
    record: InodeRecord | None
    key: bytes


class DentryRow(NamedTuple):
    """`ino` (and `kind`, which is mode >> 12) are 0 if the row is damaged."""

    parent: int
    name: bytes
    ino: int
    kind: int
    key: bytes


class RefRow(NamedTuple):
    """`ref` is None if it is damaged."""

    ino: int
    chunk: int
    ref: ChunkRef | None
    key: bytes


class XattrRow(NamedTuple):
    """`is_readable` tells whether the value is whole; it is not kept."""

    ino: int
    name: bytes
    is_readable: bool
    key: bytes


class GarbageRow(NamedTuple):
    """`stores` is None if the row is damaged."""

    chunk_key: ChunkKey
    stores: tuple[int, ...] | None
    key: bytes


class Snapshot:
    """A read transaction with planned rows over it.  One thread; ends with the transaction.

    Bounded: at most PLANNED_ROWS_MAX rows are planned; beyond that `change` still gives the
    amendment, and later checks may report what it would have mended.
    """

    def __init__(self, transaction: ReadTransaction) -> None:
        self.transaction = transaction
        self._planned: dict[str, dict[bytes, bytes | None]] = {
            name: {} for name in records.DATABASES
        }
        self._planned_count = 0
        self._deltas = Counters(0, 0, 0, 0)
        self.tallies = Tallies(self.scan, self.counters)
        self.names_elsewhere: dict[int, tuple[int, bytes]] | None = None
        """Owned by paths.py: names of inodes whose record does not tell one."""

    # Raw rows.

    def get(self, database: str, key: bytes) -> bytes | None:
        """The row, None if there is none."""
        planned = self._planned[database]
        if planned and key in planned:
            return planned[key]
        value = self.transaction.get(database, key)
        return None if value is None else bytes(value)

    def scan(
        self, database: str, start: bytes = b"", end: bytes | None = None
    ) -> Iterator[tuple[Buffer, Buffer]]:
        """Rows from `start` (included) to `end` (excluded); each valid until the next is taken."""
        rows = self.transaction.scan(database, start, end)
        planned = self._planned[database]
        if not planned:
            return rows
        keys = sorted(key for key in planned if key >= start and (end is None or key < end))
        return self._merged(rows, planned, keys)

    def _merged(
        self,
        rows: Iterator[tuple[Buffer, Buffer]],
        planned: Mapping[bytes, bytes | None],
        keys: list[bytes],
    ) -> Iterator[tuple[Buffer, Buffer]]:
        last = b""
        above = ((key, True, b"") for key in keys)
        below = ((bytes(key), False, value) for key, value in rows)
        both: Iterator[tuple[bytes, bool, Buffer]] = heapq.merge(above, below, key=itemgetter(0))
        for key, is_planned, value in both:  # stable: of equal keys the planned one comes first
            if key == last:
                continue
            last = key
            if not is_planned:
                yield key, value
                continue
            row = planned.get(key)
            if row is not None:
                yield key, row

    def change(
        self,
        rows: Mapping[RowKey, bytes | None],
        also_expected: Iterable[RowKey] = (),
        *,
        files: int = 0,
        directories: int = 0,
        payload_bytes: int = 0,
        orphans: int = 0,
    ) -> Amendment:
        """Plans new rows; gives the amendment that makes them, computed from what is planned
        before: amendments succeed in the order of the calls.  `also_expected` names rows that are
        not written and must be as they are."""
        expected = {row: self.get(*row) for row in (*rows, *also_expected)}
        if self._planned_count <= PLANNED_ROWS_MAX:
            for row, value in rows.items():
                self._planned_count += row.key not in self._planned[row.database]
                self._planned[row.database][row.key] = value
        old = self._deltas
        self._deltas = Counters(
            old.files + files,
            old.directories + directories,
            old.payload_bytes + payload_bytes,
            old.orphans + orphans,
        )
        return Amendment(dict(rows), expected, files, directories, payload_bytes, orphans)

    def forget_deltas(self) -> None:
        """The totals are planned anew, with everything that was planned before counted in."""
        self._deltas = Counters(0, 0, 0, 0)

    def last_key(self, database: str) -> bytes | None:
        """The greatest key, planned rows included; None if there is none."""
        found = self.transaction.last(database)
        keys = [key for key, value in self._planned[database].items() if value is not None]
        if found is not None and bytes(found[0]) not in self._planned[database]:
            keys.append(bytes(found[0]))
        elif found is not None:  # it is planned away or anew: look at what is left
            keys.extend(bytes(key) for key, _ in self.scan(database))
        return max(keys, default=None)

    # Single rows.  All raise DamageError for a damaged one.

    def inode(self, ino: int) -> InodeRecord | None:
        """The record of an inode, None if there is none."""
        key = records.inode_key(ino)
        value = self.get(records.INODES, key)
        return None if value is None else records.decode_inode(key, value, InodeRecord)

    def dentry(self, parent: int, name: bytes) -> tuple[int, int] | None:
        """(inode, type) of a name, None if there is none."""
        key = records.name_key(parent, name)
        value = self.get(records.DENTRIES, key)
        return None if value is None else records.decode_dentry(key, value)

    def ref(self, ino: int, chunk: int) -> ChunkRef | None:
        """The ref of a chunk, None if there is none."""
        key = records.ref_key(ino, chunk)
        value = self.get(records.REFS, key)
        return None if value is None else records.decode_ref(key, value)

    def counters(self) -> Counters | None:
        """The totals with all planned deltas; None if there is no record."""
        value = self.get(records.META, records.KEY_COUNTERS)
        if value is None:
            return None
        found = records.decode_counters(value)
        return Counters(*(a + b for a, b in zip(found, self._deltas, strict=True)))

    def number(self, key: bytes) -> int | None:
        """A limit (records.KEY_INODE_LIMIT, KEY_GENERATION_LIMIT), None if there is no record."""
        value = self.get(records.META, key)
        return None if value is None else records.decode_number(key, value)

    def stores(self) -> list[StoreEntry] | None:
        """The table of stores, None if there is no record."""
        value = self.get(records.META, records.KEY_STORES)
        return None if value is None else records.decode_stores(value)

    # Streams, in the order of the keys.

    def inodes(self, first: int = 0, end: int | None = None) -> Iterator[InodeRow]:
        """Inodes with numbers from `first` on, below `end`."""
        for raw, value in self.scan(records.INODES, *_bounds(first, end)):
            key = bytes(raw)
            if len(key) != 8:
                continue
            try:
                record = records.decode_inode(key, value, InodeRecord)
            except DamageError:
                yield InodeRow(int.from_bytes(key, "big"), None, key)
                continue
            yield InodeRow(record.ino, record, key)

    def directories(self) -> Iterator[InodeRecord]:
        """The readable records of directories.  Cheaper than `inodes`: the others are left at one
        byte of theirs, right or wrong."""
        for key, value in self.scan(records.INODES):
            if is_directory_record(value):
                try:
                    yield records.decode_inode(key, value, InodeRecord)
                except DamageError:
                    continue

    def dentries(self, first: int = 0, end: int | None = None) -> Iterator[DentryRow]:
        """Entries of the directories with numbers from `first` on, below `end`."""
        for raw, value in self.scan(records.DENTRIES, *_bounds(first, end)):
            key = bytes(raw)
            if not is_name_key(key):
                continue
            try:
                ino, kind = records.decode_dentry(key, value)
            except DamageError:
                ino = kind = 0
            yield DentryRow(int.from_bytes(key[:8], "big"), key[8:], ino, kind, key)

    def refs(
        self, first: int = 0, first_chunk: int = 0, end: int | None = None
    ) -> Iterator[RefRow]:
        """Refs from (inode, chunk) on, of inodes below `end`."""
        start = records.ref_key(first, first_chunk)
        for raw, value in self.scan(records.REFS, start, _bounds(0, end)[1]):
            key = bytes(raw)
            if len(key) != 16:
                continue
            ino, chunk = records.decode_ref_key(key)
            try:
                yield RefRow(ino, chunk, records.decode_ref(key, value), key)
            except DamageError:
                yield RefRow(ino, chunk, None, key)

    def xattrs(self, first: int = 0, end: int | None = None) -> Iterator[XattrRow]:
        """Extended attributes of the inodes with numbers from `first` on, below `end`."""
        for raw, value in self.scan(records.XATTRS, *_bounds(first, end)):
            key = bytes(raw)
            if not is_name_key(key):
                continue
            try:
                records.decode_xattr(key, value)
                is_readable = True
            except DamageError:
                is_readable = False
            yield XattrRow(int.from_bytes(key[:8], "big"), key[8:], is_readable, key)

    def garbage(self, after: ChunkKey | None = None) -> Iterator[GarbageRow]:
        """Chunks listed for deletion, those greater than `after`."""
        start = b"" if after is None else records.garbage_key(after) + b"\0"
        for raw, value in self.scan(records.GARBAGE, start):
            key = bytes(raw)
            if len(key) != 24:
                continue
            chunk_key = records.decode_garbage_key(key)
            try:
                yield GarbageRow(chunk_key, records.decode_garbage(key, value), key)
            except DamageError:
                yield GarbageRow(chunk_key, None, key)

    def owners(self, database: str, first: int = 0, end: int | None = None) -> Iterator[int]:
        """The inode numbers (`first` ≤ number < `end`) that keys of a database begin with, each
        once, in order.  Skips over long runs (the refs of a large file)."""
        ino = first - 1
        limit = None if end is None else end_of(end)
        while ino < 2**64 - 1:
            steps = 0
            for raw, _ in self.scan(database, records.inode_key(ino + 1), limit):
                if len(raw) < 8:
                    continue
                found = int.from_bytes(raw[:8], "big")
                if found != ino:
                    ino = found
                    steps = 0
                    yield ino
                else:
                    steps += 1
                    if steps > _RUN_ROWS:
                        break
            else:
                return


_RUN_ROWS = 16  # rows of one inode that are walked before a new search, which costs as much


def is_name_key(key: Buffer) -> bool:
    """Whether a key of `dentries` or `xattrs` has a possible length."""
    return 8 < len(key) <= 8 + NAME_BYTES_MAX


def _bounds(first: int, end: int | None) -> tuple[bytes, bytes | None]:
    """Keys of inode numbers; a start of b"" begins at the first row of all."""
    start = records.inode_key(first) if first else b""
    return start, None if end is None else end_of(end)
