"""The refs of one file as they will be once damaged rows are corrected."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpifs.core import records
from mpifs.core.layout import chunk_count
from mpifs.core.records import InodeRecord
from mpifs.index.amendment import RowKey
from mpifs.kv import ReadTransaction
from mpifs.repair import index_edits as edits
from mpifs.repair.facts import Facts


@dataclass(slots=True)
class RefsOfFile:
    """Their bytes, and the chunks that have one (8 bytes each, of a file that misses some)."""

    total: int = 0
    chunks: set[int] = field(default_factory=set)

    def holes(self, record: InodeRecord, limit: int) -> list[int]:
        """The first chunks of the file without a ref, at most `limit`."""
        found: list[int] = []
        for chunk in range(chunk_count(record.stable_size, record.chunk_size)):
            if chunk not in self.chunks:
                found.append(chunk)
                if len(found) == limit:
                    break
        return found


def refs_of(transaction: ReadTransaction, record: InodeRecord, facts: Facts) -> RefsOfFile | None:
    """None if a ref is damaged beyond correction, or in another way than when facts were noted."""
    ino = record.ino
    refs = RefsOfFile()
    start, end = records.ref_key(ino, 0), records.inode_key(ino + 1)
    for key, value in transaction.scan(records.REFS, start, end):
        row = RowKey(records.REFS, bytes(key))
        ref = edits.decode_ref(row, bytes(value))
        spot = records.decode_ref_key(key)
        if ref is None:
            damaged = facts.damaged.get(spot)
            if damaged is None or damaged.fixed is None or damaged.value != value:
                return None
            if damaged.is_elsewhere:
                continue
            ref = edits.decode_ref(row, damaged.fixed[1])
        refs.total += ref.length if ref is not None else 0
        refs.chunks.add(spot[1])
    for (owner, chunk), damaged in facts.moved.items():
        if owner == ino and chunk not in refs.chunks and damaged.fixed is not None:
            ref = edits.decode_ref(edits.ref_row(owner, chunk), damaged.fixed[1])
            refs.total += ref.length if ref is not None else 0
            refs.chunks.add(chunk)
    return refs
