"""The changes of refs, garbage and sizes that repairing chunks needs, each one durable step.

Every step reads the rows that it changes anew, does nothing if the fault is gone, and is applied
only if the rows are still what was read: so it may be repeated, and a mounted volume may go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.layout import chunk_count, is_chunk_size
from mpifs.core.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
from mpifs.core.records import InodeRecord
from mpifs.core.types import ChunkKey, ChunkRef, StoreEntry, StoreState
from mpifs.index.amendment import Amendment, RowKey
from mpifs.kv import ReadTransaction
from mpifs.repair.volume import VolumeView

LIMIT_STEP = 1 << 20
"""How far above the highest number found a limit is set that was too low."""


def ref_row(ino: int, chunk: int) -> RowKey:
    """Place of a ref's row."""
    return RowKey(records.REFS, records.ref_key(ino, chunk))


def inode_row(ino: int) -> RowKey:
    """Place of an inode's row."""
    return RowKey(records.INODES, records.inode_key(ino))


def garbage_row(key: ChunkKey) -> RowKey:
    """Place of a garbage row."""
    return RowKey(records.GARBAGE, records.garbage_key(key))


def encode_ref(row: RowKey, ref: ChunkRef) -> bytes:
    """Record of a ref for its row."""
    return records.encode_ref(row.key, ref)


def raw(transaction: ReadTransaction, row: RowKey) -> bytes | None:
    """The bytes of a row now, None if there is none."""
    value = transaction.get(row.database, row.key)
    return None if value is None else bytes(value)


def is_possible(record: InodeRecord) -> bool:
    """Whether the record can be reckoned with."""
    return is_chunk_size(record.chunk_size, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)


def inode_of(value: bytes | None, ino: int) -> InodeRecord | None:
    """The record of a raw row; None if it is missing, damaged, or has an impossible chunk size."""
    if value is None:
        return None
    try:
        record = records.decode_inode(records.inode_key(ino), value, InodeRecord)
    except DamageError:
        return None
    return record if is_possible(record) else None


def decode_ref(row: RowKey, value: bytes | None) -> ChunkRef | None:
    """The ref of a raw row; None if it is missing or damaged."""
    if value is None:
        return None
    try:
        return records.decode_ref(row.key, value)
    except DamageError:
        return None


def amend(
    view: VolumeView,
    rows: Mapping[RowKey, bytes | None],
    expected: Mapping[RowKey, bytes | None],
    payload_bytes: int = 0,
) -> bool:
    """One durable step."""
    return view.amend(Amendment(dict(rows), dict(expected), payload_bytes=payload_bytes))


def sum_of_refs(transaction: ReadTransaction, record: InodeRecord) -> tuple[int, bool, bool]:
    """(bytes of an inode's refs, whether all could be read, whether they leave no hole)."""
    total = inside = 0
    count = chunk_count(record.stable_size, record.chunk_size)
    is_readable = True
    start, end = records.ref_key(record.ino, 0), records.inode_key(record.ino + 1)
    for key, value in transaction.scan(records.REFS, start, end):
        try:
            total += records.decode_ref(key, value).length
            inside += records.decode_ref_key(key)[1] < count
        except DamageError:
            is_readable = False
    return total, is_readable, inside >= count


def raise_size(view: VolumeView, ino: int, size: int) -> bool:
    """Makes a file at least `size` bytes long."""
    row = inode_row(ino)
    with view.snapshot() as snapshot:
        value = raw(snapshot, row)
    record = inode_of(value, ino)
    if record is None:
        return False
    if record.stable_size >= size:
        return True
    longer = records.encode_inode(replace(record, stable_size=size))
    return amend(view, {row: longer}, {row: value})


def drop_ref(view: VolumeView, ino: int, chunk: int, ref: ChunkRef) -> bool:
    """Makes a ref garbage: its bytes belong to nothing."""
    row, owner = ref_row(ino, chunk), inode_row(ino)
    with view.snapshot() as snapshot:
        value, owner_value = raw(snapshot, row), raw(snapshot, owner)
    record = inode_of(owner_value, ino)
    if decode_ref(row, value) != ref or record is None:
        return False
    rows: dict[RowKey, bytes | None] = {row: None}
    if ref.stores:
        place = garbage_row(ChunkKey(ino, chunk, ref.generation))
        rows[place] = records.encode_garbage(place.key, ref.stores)
    left = max(0, record.bytes_stored - ref.length)
    rows[owner] = records.encode_inode(replace(record, bytes_stored=left))
    return amend(view, rows, {row: value, owner: owner_value}, -ref.length)


def set_bytes_stored(view: VolumeView, ino: int, *, misses_none: bool = False) -> bool:
    """Makes an inode tell the bytes of its refs, if it tells less, or if it has no hole that a
    missing ref could have been in, or if it is known that it `misses_none`."""
    row = inode_row(ino)
    with view.snapshot() as snapshot:
        value = raw(snapshot, row)
        record = inode_of(value, ino)
        if record is None:
            return False
        total, is_readable, is_filled = sum_of_refs(snapshot, record)
    if record.bytes_stored == total:
        return True
    if not is_readable or (record.bytes_stored > total and not (is_filled or misses_none)):
        return False
    right = records.encode_inode(replace(record, bytes_stored=total))
    return amend(view, {row: right}, {row: value})


def restore_ref(view: VolumeView, ino: int, chunk: int, ref: ChunkRef, found: bytes | None) -> bool:
    """Writes a ref in place of the raw row `found`, damaged or (None) missing.

    The inode's and the volume's sums still count the ref that was there.  They are only raised, if
    the new one is longer: a sum that stays too large says that something is lost, and keeps holes
    from reading as zeros.
    """
    row, owner = ref_row(ino, chunk), inode_row(ino)
    rows: dict[RowKey, bytes | None] = {row: encode_ref(row, ref)}
    expected = {row: found}
    more = 0
    with view.snapshot() as snapshot:
        if raw(snapshot, row) != found:
            return False
        value = raw(snapshot, owner)
        record = inode_of(value, ino)
        if record is not None:
            total, _, _ = sum_of_refs(snapshot, record)
            more = max(0, total + ref.length - record.bytes_stored)
    if record is not None and more:
        counted = replace(record, bytes_stored=record.bytes_stored + more)
        rows[owner] = records.encode_inode(counted)
        expected[owner] = value
    return amend(view, rows, expected, more)


def adopt_refs(
    view: VolumeView, ino: int, refs: Mapping[int, ChunkRef], *, misses_some: bool
) -> bool:
    """Newer chunks of a file (an index that was recovered does not know them) take their places.

    What they replace becomes garbage; the size grows to hold them.  `misses_some`: the inode counts
    more bytes than its refs have, and these may be the missing ones; the sum is only raised then.
    """
    owner = inode_row(ino)
    rows: dict[RowKey, bytes | None] = {}
    expected: dict[RowKey, bytes | None] = {}
    with view.snapshot() as snapshot:
        value = raw(snapshot, owner)
        record = inode_of(value, ino)
        if record is None:
            return False
        change, size = 0, record.stable_size
        for chunk, ref in refs.items():
            row = ref_row(ino, chunk)
            found = raw(snapshot, row)
            old = decode_ref(row, found)
            if old is not None and old.generation >= ref.generation:
                continue
            rows[row], expected[row] = encode_ref(row, ref), found
            if old is not None and old.stores:
                place = garbage_row(ChunkKey(ino, chunk, old.generation))
                rows[place] = records.encode_garbage(place.key, old.stores)
            change += ref.length - (old.length if old else 0)
            size = max(size, chunk * record.chunk_size + ref.length)
        if misses_some:
            change = max(0, sum_of_refs(snapshot, record)[0] + change - record.bytes_stored)
    if not rows:
        return True
    grown = replace(record, bytes_stored=record.bytes_stored + change, stable_size=size)
    rows[owner], expected[owner] = records.encode_inode(grown), value
    return amend(view, rows, expected, change)


def replace_stores(
    view: VolumeView, changes: Mapping[tuple[int, int], tuple[ChunkRef, ChunkRef]]
) -> set[tuple[int, int]]:
    """Replaces refs (old, new) of the same generation; gives the places where that was done.

    All in one step if nothing has changed, else one by one.
    """
    rows: dict[RowKey, bytes | None] = {}
    expected: dict[RowKey, bytes | None] = {}
    with view.snapshot() as snapshot:
        for (ino, chunk), (old, new) in changes.items():
            row = ref_row(ino, chunk)
            value = raw(snapshot, row)
            if decode_ref(row, value) == old:
                rows[row] = encode_ref(row, new)
                expected[row] = value
    if not rows:
        return set()
    if amend(view, rows, expected):
        return {spot for spot in changes if ref_row(*spot) in rows}
    return {
        spot
        for spot in changes
        if (row := ref_row(*spot)) in rows and amend(view, {row: rows[row]}, {row: expected[row]})
    }


def change_row(view: VolumeView, row: RowKey, found: bytes | None, wanted: bytes | None) -> bool:
    """Replaces one raw row that is still `found`."""
    return amend(view, {row: wanted}, {row: found})


def add_payload(view: VolumeView, change: int) -> bool:
    """Corrects the total of payload bytes."""
    return amend(view, {}, {}, change)


def raise_generation_limit(view: VolumeView, highest: int) -> bool:
    """Sets the limit of generations above the highest one found."""
    row = RowKey(records.META, records.KEY_GENERATION_LIMIT)
    with view.snapshot() as snapshot:
        value = raw(snapshot, row)
    try:
        if value is not None and records.decode_number(row.key, value) > highest:
            return True
    except DamageError:
        return False
    return change_row(view, row, value, records.encode_number(row.key, highest + LIMIT_STEP))


def list_store(view: VolumeView, entry: StoreEntry) -> bool:
    """Adds a store to the volume's table, behind the others: placement of what is stored is in
    the refs, so nothing moves."""
    row = RowKey(records.META, records.KEY_STORES)
    with view.snapshot() as snapshot:
        value = raw(snapshot, row)
    if value is None:
        return False
    listed = records.decode_stores(value)
    if any(each.store == entry.store for each in listed):
        return True
    active = StoreEntry(entry.store, entry.uuid, StoreState.ACTIVE)
    return change_row(view, row, value, records.encode_stores([*listed, active]))
