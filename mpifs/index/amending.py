"""Repair of a live index: committed states to look at, and rows amended under everybody's feet.

An amendment goes straight to disk, in a transaction of its own between two commits, and the caches
follow it.  So it may change only rows that nobody is changing: a row with uncommitted changes
counts as changed.
"""

from __future__ import annotations

import threading
from dataclasses import fields

from mpifs.core import records
from mpifs.core.checksum import Buffer
from mpifs.core.records import InodeRecord
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.index.amendment import Amendment, RowKey
from mpifs.index.batch import Batch
from mpifs.index.garbage import Garbage
from mpifs.index.memtable import UNKNOWN
from mpifs.index.namespace import Namespace
from mpifs.index.orphans import Orphans
from mpifs.index.raw import add, add_to_counters, estimate_bytes, is_as_expected, write_rows
from mpifs.kv import ReadTransaction

_RECORD_FIELDS = tuple(field.name for field in fields(InodeRecord))
_COUNTERS_ROW = RowKey(records.META, records.KEY_COUNTERS)
_LIMITS = (records.KEY_INODE_LIMIT, records.KEY_GENERATION_LIMIT)


class Amending(Namespace, Orphans, Garbage):
    """What verify and repair ask of a live index.  Any thread that holds no lock of it."""

    _commit_lock: threading.Lock
    _batch: Batch | None

    def snapshot(self) -> ReadTransaction:
        """The committed state as of now, for a `with` block."""
        return self._env.read()

    def ref_of(self, ino: int, chunk: int) -> ChunkRef | None:
        """The ref of a chunk, whatever is known of its inode.  Raises DamageError."""
        with self.lock:
            return self._ref(ino, chunk)

    def is_garbage(self, key: ChunkKey) -> bool:
        """Whether a chunk is listed for deletion, uncommitted changes included."""
        with self.lock:
            found = self._garbage.find(0, key)
            if found is not UNKNOWN:
                return found is not None
            with self._env.read() as transaction:
                return transaction.get(records.GARBAGE, records.garbage_key(key)) is not None

    def remembered_inode(self, ino: int) -> bytes | None:
        """The record of an inode as it is in memory; None if it is not there."""
        with self.lock:
            live = self._cache.get(ino) or self._evicted.get(ino)
            return None if live is None or live.reaped else records.encode_inode(live)

    def amend(self, amendment: Amendment) -> bool:
        """Applies it durably.  False (nothing done) if an expected row is another one now, or a
        row concerned has changes that are not committed: commit, and try again.

        The totals are those in memory: a `counters` row in the amendment is written from them.
        Others wait for the disk meanwhile.  Raises FullError, DamageError: then nothing is done.
        """
        with self._commit_lock, self.lock:
            if any(map(self._is_pending, (*amendment.rows, *amendment.expected))):
                return False
            self._env.preallocate_ahead(estimate_bytes(amendment))
            with self._env.write() as transaction:
                if not is_as_expected(transaction, amendment):
                    return False
                write_rows(transaction, amendment)
                if _COUNTERS_ROW in amendment.rows:
                    totals = records.encode_counters(add(self.counters(), amendment))
                    transaction.put(records.META, records.KEY_COUNTERS, totals)
                else:
                    add_to_counters(transaction, amendment)
            self._follow_counters(amendment)
            for row, value in amendment.rows.items():
                self._follow(row, value)
            return True

    def _is_pending(self, row: RowKey) -> bool:
        """Whether the row has a change that is not on disk."""
        database, key = row
        if database == records.META:
            batch = self._batch
            is_sealed = batch is not None and records.KEY_STORES in batch.meta
            return key == records.KEY_STORES and (self._stores_changed or is_sealed)
        if len(key) < 8:
            return False
        ino = int.from_bytes(key[:8], "big")
        if database == records.INODES:
            return ino in self._dirty or ino in self._sealed_inodes
        if database == records.DENTRIES:
            return self._dentries.find(ino, key[8:]) is not UNKNOWN
        if database == records.XATTRS:
            return self._xattrs.find(ino, key[8:]) is not UNKNOWN
        if database == records.ORPHANS:
            return self._orphans.find(0, ino) is not UNKNOWN
        if database == records.REFS and len(key) == 16:
            return self._refs.find(*records.decode_ref_key(key)) is not UNKNOWN
        if database == records.GARBAGE and len(key) == 24:
            return self._garbage.find(0, records.decode_garbage_key(key)) is not UNKNOWN
        return False

    def _follow_counters(self, amendment: Amendment) -> None:
        """The totals in memory, and those that wait to be committed, get the deltas."""
        self._file_count, self._directory_count, self._payload_bytes, self._orphan_count = add(
            self.counters(), amendment
        )
        if self._batch is not None:
            self._batch.counters = add(self._batch.counters, amendment)

    def _follow(self, row: RowKey, value: bytes | None) -> None:
        """The caches follow a row that is on disk now."""
        database, key = row
        if database == records.INODES and len(key) == 8:
            self._follow_inode(key, value)
        elif database == records.REFS and len(key) == 16:
            ino = int.from_bytes(key[:8], "big")
            live = self._cache.get(ino) or self._evicted.get(ino)
            if live is not None:
                live.forget_trust()
        elif database == records.DENTRIES and len(key) > 8:
            parent = int.from_bytes(key[:8], "big")
            self._names.pop((parent, key[8:]), None)
            self._complete.discard(parent)
        elif database == records.META and value is not None:
            if key == records.KEY_STORES:
                self._stores = records.decode_stores(value)
            elif key in _LIMITS:
                # Numbers below the new limit are the amendment's; the rest of the range is left.
                limit = records.decode_number(key, value)
                numbers = self._numbers[key]
                numbers.next = max(numbers.next, limit)
                numbers.settle(limit)

    def _follow_inode(self, key: bytes, value: Buffer | None) -> None:
        ino = int.from_bytes(key, "big")
        live = self._cache.get(ino) or self._evicted.get(ino)
        if value is None:
            self._cache.pop(ino, None)
            self._evicted.pop(ino, None)
            self._reaping.pop(ino, None)
            if live is not None:
                live.reaped = True
            return
        if live is None:
            return
        record = records.decode_inode(key, value, InodeRecord)
        has_unwritten = live.size != live.stable_size
        for name in _RECORD_FIELDS:
            setattr(live, name, getattr(record, name))
        live.size = max(live.size, live.stable_size) if has_unwritten else live.stable_size
        live.forget_trust()
