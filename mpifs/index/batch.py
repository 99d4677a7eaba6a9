"""What one commit writes."""

from __future__ import annotations

from collections.abc import Iterator

from mpifs.core.limits import KIB
from mpifs.core.records import (
    INODES,
    KEY_COUNTERS,
    META,
    XATTRS,
    Counters,
    decode_number,
    encode_counters,
    encode_number,
    inode_key,
)
from mpifs.index.memtable import AnyTable
from mpifs.kv import WriteTransaction


class Batch:
    """The sealed changes: from Index.seal until Index.commit has succeeded.

    Filled with the index's lock held; while it is being committed nobody changes it, and the
    committer reads it without the lock.
    """

    __slots__ = ("counters", "inodes", "limits", "meta", "tables")

    def __init__(self, inodes: dict[int, bytes | None], tables: tuple[AnyTable, ...]) -> None:
        self.inodes = inodes
        self.tables = tables
        self.meta: dict[bytes, bytes] = {}
        self.limits: dict[bytes, int] = {}
        self.counters = Counters(0, 0, 0, 0)

    @property
    def count(self) -> int:
        """Number of records it writes or deletes."""
        return (
            len(self.inodes)
            + sum(table.count_sealed() for table in self.tables)
            + len(self.meta)
            + len(self.limits)
            + 1
        )

    def estimate_bytes(self) -> int:
        """About how much the environment may grow: records, and pages copied on their way."""
        values = 0
        for table in self.tables:
            if table.database == XATTRS:
                values += sum(
                    len(v or b"") for rows in table.sealed.values() for v in rows.values()
                )
        return self.count * 256 + values + 64 * KIB

    def write(self, transaction: WriteTransaction) -> None:
        """Puts everything into a write transaction, in the order of the keys."""
        for ino, record in sorted(self.inodes.items()):
            if record is None:
                transaction.delete(INODES, inode_key(ino))
            else:
                transaction.put(INODES, inode_key(ino), record)
        for table in self.tables:
            _write_rows(transaction, table.database, table.rows())
        for key, value in self.meta.items():
            transaction.put(META, key, value)
        for key, limit in self.limits.items():
            # A range may have been reserved out of turn since the batch was sealed: never lower.
            stored = transaction.get(META, key)
            if stored is None or decode_number(key, stored) < limit:
                transaction.put(META, key, encode_number(key, limit))
        transaction.put(META, KEY_COUNTERS, encode_counters(self.counters))


def _write_rows(
    transaction: WriteTransaction, database: str, rows: Iterator[tuple[bytes, bytes | None]]
) -> None:
    put = transaction.put
    for key, value in rows:
        if value is None:
            transaction.delete(database, key)
        else:
            put(database, key, value)
