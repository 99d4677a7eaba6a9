"""Finishing the removal of a file that has no name any more."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.limits import DROP_COUNT_MAX
from mpifs.core.records import GARBAGE, INODES, ORPHANS, REFS, XATTRS, InodeRecord, inode_key
from mpifs.core.types import ChunkKey
from mpifs.index.amendment import Amendment, RowKey
from mpifs.repair.snapshot import RefRow, Snapshot
from mpifs.repair.tree_edit import DIRECTORY, kind_of
from mpifs.repair.volume import VolumeView


def finish_removal(view: VolumeView, ino: int) -> bool:
    """Refs to garbage, DROP_COUNT_MAX at a time, then attributes, record and its row in the table
    of orphans; each step is one amendment, so a kill between two of them repeats none.  False if
    something changed meanwhile.  Requires: nobody has the file open."""
    while True:
        with view.snapshot() as transaction:
            snapshot = Snapshot(transaction)
            refs = list(islice(snapshot.refs(ino, end=ino + 1), DROP_COUNT_MAX))
            amendment = _drop_refs(snapshot, ino, refs) if refs else plan_end(snapshot, ino)
        if not view.amend(amendment):
            return False
        if not refs:
            return True


def _record(snapshot: Snapshot, ino: int) -> InodeRecord | None:
    try:
        return snapshot.inode(ino)
    except DamageError:
        return None


def _drop_refs(snapshot: Snapshot, ino: int, refs: list[RefRow]) -> Amendment:
    rows: dict[RowKey, bytes | None] = {}
    stored = 0
    for row in refs:
        rows[RowKey(REFS, row.key)] = None
        if row.ref is None:
            continue  # the stored chunk, whichever it is, becomes an orphan and is found as that
        stored += row.ref.length
        if row.ref.stores:
            key = records.garbage_key(ChunkKey(ino, row.chunk, row.ref.generation))
            rows[RowKey(GARBAGE, key)] = records.encode_garbage(key, row.ref.stores)
    record = _record(snapshot, ino)
    if record is not None:
        left = replace(record, bytes_stored=max(0, record.bytes_stored - stored))
        rows[RowKey(INODES, inode_key(ino))] = records.encode_inode(left)
    return snapshot.change(rows, payload_bytes=-stored)


def plan_end(snapshot: Snapshot, ino: int) -> Amendment:
    """The last step of a removal: all but the refs goes, and is no longer counted."""
    key = inode_key(ino)
    rows: dict[RowKey, bytes | None] = {
        RowKey(XATTRS, row.key): None for row in snapshot.xattrs(ino, ino + 1)
    }
    files = directories = 0
    has_row = snapshot.get(INODES, key) is not None
    record = _record(snapshot, ino)
    is_directory = record is not None and kind_of(record) == DIRECTORY
    is_counted = has_row or snapshot.tallies.take_lost_inode()
    if has_row:
        rows[RowKey(INODES, key)] = None
    if is_counted:
        files, directories = -int(not is_directory), -int(is_directory)
    if snapshot.get(ORPHANS, key) is not None:
        rows[RowKey(ORPHANS, key)] = None
        orphans = -int(snapshot.tallies.take_orphan())
    else:
        orphans = -int(snapshot.tallies.take_lost_orphan())
    return snapshot.change(rows, files=files, directories=directories, orphans=orphans)
