"""Every record of the index can be read (refs and garbage are looked at with the chunks).

A record whose guard is wrong has usually one wrong byte, in its value or in its key, and the guard
finds it.  What cannot be mended that way is mended from other records, by the check that knows
them: inodes by check_inodes_exist, limits and totals by check_totals; the others here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from mpifs.core import records
from mpifs.core.checksum import Buffer, guard64
from mpifs.core.errors import DamageError
from mpifs.core.limits import MENDED_KEPT_MAX
from mpifs.core.mending import correct_record
from mpifs.core.records import DENTRIES, FLAG_XATTRS, INODES, META, ORPHANS, XATTRS, InodeRecord
from mpifs.index.amendment import Amendment, RowKey
from mpifs.repair.findings import ERROR, LOST, Finding, Progress
from mpifs.repair.paths import entry_path, path_of
from mpifs.repair.snapshot import Snapshot, is_name_key
from mpifs.repair.tree_edit import TreeEdit, kind_of
from mpifs.repair.volume import VolumeView

_GUARD = struct.Struct("<Q")
_ORDER = (META, INODES, DENTRIES, XATTRS, ORPHANS)
_CHECK = "check_records_readable"
_STEP = 4096


@dataclass(slots=True)
class _Damaged:
    """A damaged row, and the one that it was (`key` and `amendment`) if that is known."""

    database: str
    row_key: bytes
    value: bytes
    key: bytes
    amendment: Amendment | None
    is_double: bool = False


def check_records_readable(
    view: VolumeView, snapshot: Snapshot, progress: Progress
) -> Iterator[Finding]:
    """Guards are right and the fields possible, in every database but refs and garbage."""
    kept: list[_Damaged] = []
    # All corrections are planned before the first path is asked for: paths need them.
    for database in _ORDER:
        for damaged in _damaged_rows(snapshot, database, progress):
            _correct(snapshot, damaged)
            kept.append(damaged)
            if len(kept) >= MENDED_KEPT_MAX:
                yield from _findings(view, snapshot, kept)
                kept = []
    yield from _findings(view, snapshot, kept)


def _decode_meta(key: Buffer, value: Buffer) -> None:
    name = bytes(key)
    if name == records.KEY_COUNTERS:
        records.decode_counters(value)
    elif name == records.KEY_STORES:
        records.decode_stores(value)
    elif name in (records.KEY_INODE_LIMIT, records.KEY_GENERATION_LIMIT):
        records.decode_number(name, value)
    elif len(value) < _GUARD.size or _guard_of(name, bytes(value[:-8])) != bytes(value[-8:]):
        raise DamageError(f"index: meta record {name.hex()} fails its own checksum")


def _guard_of(key: bytes, body: bytes) -> bytes:
    return _GUARD.pack(guard64(key + body))


def _decode_inode(key: Buffer, value: Buffer) -> None:
    records.decode_inode(key, value, InodeRecord)


def _decode_dentry(key: Buffer, value: Buffer) -> None:
    records.decode_name_key(DENTRIES, key)
    records.decode_dentry(key, value)


def _decode_xattr(key: Buffer, value: Buffer) -> None:
    records.decode_name_key(XATTRS, key)
    records.decode_xattr(key, value)


_DECODERS: dict[str, Callable[[Buffer, Buffer], object]] = {
    META: _decode_meta,
    INODES: _decode_inode,
    DENTRIES: _decode_dentry,
    XATTRS: _decode_xattr,
    ORPHANS: records.decode_orphan,
}


def _damaged_rows(snapshot: Snapshot, database: str, progress: Progress) -> Iterator[_Damaged]:
    decode = _DECODERS[database]
    for number, (key, value) in enumerate(snapshot.transaction.scan(database)):
        if not number % _STEP:
            progress.check()
            if database == INODES:
                progress.inodes = number
        try:
            decode(key, value)
        except DamageError:
            yield _Damaged(database, bytes(key), bytes(value), bytes(key), None)
    if database == INODES:
        progress.inodes = snapshot.transaction.count(INODES)


def _correct(snapshot: Snapshot, damaged: _Damaged) -> None:
    """Plans the row as it was, if one changed byte explains it."""
    database, row_key = damaged.database, damaged.row_key
    decode = _DECODERS[database]

    def is_right(key: bytes, value: bytes) -> bool:
        try:
            decode(key, value)
        except DamageError:
            return False
        return True

    fixed = correct_record(row_key, damaged.value, is_right)
    if fixed is None:
        return
    key, value = fixed
    rows: dict[RowKey, bytes | None] = {RowKey(database, row_key): None}
    if key != row_key and snapshot.get(database, key) is not None:
        damaged.is_double = True  # that place is taken: this row is a stale double of it
    else:
        rows[RowKey(database, key)] = value
    damaged.key = key
    damaged.amendment = snapshot.change(rows)


def _findings(view: VolumeView, snapshot: Snapshot, kept: list[_Damaged]) -> Iterator[Finding]:
    """What is corrected or is to be dealt with here; meta and inodes have checks of their own."""
    own_names = _own_names(snapshot, kept)
    for damaged in kept:
        if damaged.amendment is not None:
            yield _corrected(view, snapshot, damaged)
        elif not _has_possible_key(damaged):
            yield _foreign(view, snapshot, damaged)
        elif damaged.database == DENTRIES:
            yield _lost_entry(view, snapshot, damaged, own_names.get(damaged.row_key))
        elif damaged.database == XATTRS:
            yield _lost_xattr(view, snapshot, damaged)
        elif damaged.database == ORPHANS:
            yield _lost_orphan(view, snapshot, damaged)


def _has_possible_key(damaged: _Damaged) -> bool:
    length = len(damaged.row_key)
    if damaged.database in (INODES, ORPHANS):
        return length == 8
    if damaged.database == META:
        return damaged.row_key in (
            records.KEY_COUNTERS,
            records.KEY_STORES,
            records.KEY_INODE_LIMIT,
            records.KEY_GENERATION_LIMIT,
        )
    return is_name_key(damaged.row_key)


def _place(snapshot: Snapshot, database: str, key: bytes) -> tuple[bytes | None, int | None]:
    """Path and inode that a row is about."""
    if database == META or len(key) < 8:
        return None, None
    ino = int.from_bytes(key[:8], "big")
    if database != DENTRIES:
        return path_of(snapshot, ino), ino
    try:
        found = snapshot.dentry(ino, key[8:])
    except DamageError:
        found = None
    return entry_path(snapshot, ino, key[8:]), found[0] if found is not None else None


def _finding(snapshot: Snapshot, damaged: _Damaged, severity: str, detail: str) -> Finding:
    path, ino = _place(snapshot, damaged.database, damaged.key)
    return Finding(_CHECK, severity, detail, path=path, inode=ino)


def _corrected(view: VolumeView, snapshot: Snapshot, damaged: _Damaged) -> Finding:
    what = f"a byte of its record in {damaged.database!r} is wrong"
    if damaged.key != damaged.row_key:
        what = f"its record in {damaged.database!r} stands under a damaged key"
    if damaged.database == META:
        what += f" ({damaged.key.decode('ascii', 'backslashreplace')})"
    what += ", and is not needed" if damaged.is_double else "; its checksum tells the right one"
    finding = _finding(snapshot, damaged, ERROR, what)
    assert damaged.amendment is not None, "only what is corrected comes here"
    finding.remedy = partial(view.amend, damaged.amendment)
    return finding


def _foreign(view: VolumeView, snapshot: Snapshot, damaged: _Damaged) -> Finding:
    key = damaged.row_key.hex()
    detail = f"a row of {damaged.database!r} has an impossible key ({key}): nothing can use it"
    amendment = snapshot.change({RowKey(damaged.database, damaged.row_key): None})
    return Finding(_CHECK, ERROR, detail, remedy=partial(view.amend, amendment))


def _own_names(snapshot: Snapshot, kept: list[_Damaged]) -> dict[bytes, InodeRecord]:
    """Of entries that cannot be corrected: the inode whose record tells that it has this name."""
    wanted = {each.row_key for each in kept if each.database == DENTRIES and each.amendment is None}
    found: dict[bytes, InodeRecord] = {}
    if wanted:
        for row in snapshot.inodes():
            if row.record is not None and row.record.parent:
                key = records.name_key(row.record.parent, row.record.name)
                if key in wanted:
                    found[key] = row.record
    return found


def _lost_entry(
    view: VolumeView, snapshot: Snapshot, damaged: _Damaged, owner: InodeRecord | None
) -> Finding:
    """An entry beyond correction: an inode that says it has this name has it; else the copy."""
    key = damaged.row_key
    parent, name = int.from_bytes(key[:8], "big"), key[8:]
    detail = "the directory's entry is damaged beyond correction"
    edit = TreeEdit(snapshot)
    if owner is not None:
        edit.add_entry(parent, name, owner.ino, kind_of(owner))
        detail += f"; inode {owner.ino} tells that it has this name"
        severity = ERROR
    else:
        copied = _copied_entry(view, snapshot, key)
        if copied is not None:
            edit.add_entry(parent, name, *copied)
            detail += f"; the copy of the index tells that it led to inode {copied[0]}"
            severity = ERROR
        else:
            edit.remove_entry(parent, name)
            detail += "; what it led to, if it has no other name, goes to lost+found"
            severity = LOST
    amendment = edit.plan()
    finding = _finding(snapshot, damaged, severity, detail)
    finding.remedy = partial(view.amend, amendment)
    return finding


def _copied_entry(view: VolumeView, snapshot: Snapshot, key: bytes) -> tuple[int, int] | None:
    """(inode, type) of an entry in the copy, if that inode is still there and fits."""
    value = view.copy_row(DENTRIES, key)
    if value is None:
        return None
    try:
        ino, kind = records.decode_dentry(key, value)
        record = snapshot.inode(ino)
    except DamageError:
        return None
    # An inode that tells another name may have been renamed since the copy was made.
    is_free = record is not None and (not record.parent or record.nlink > 1)
    return (ino, kind) if is_free and record is not None and kind_of(record) == kind else None


def _lost_xattr(view: VolumeView, snapshot: Snapshot, damaged: _Damaged) -> Finding:
    key = damaged.row_key
    ino, name = int.from_bytes(key[:8], "big"), key[8:]
    shown = name.decode("utf-8", "backslashreplace")
    detail = f"extended attribute {shown} is damaged beyond correction"
    rows: dict[RowKey, bytes | None] = {RowKey(XATTRS, key): None}
    severity = LOST
    value = view.copy_row(XATTRS, key)
    if value is not None:
        try:
            records.decode_xattr(key, value)
            rows[RowKey(XATTRS, key)] = value
            detail += "; the copy of the index has its value"
            severity = ERROR
        except DamageError:
            value = None
    also: list[RowKey] = []
    if value is None:
        detail += "; its value is lost, and the attribute goes"
        others = (row for row in snapshot.xattrs(ino, ino + 1) if row.key != key)
        if next(others, None) is None:
            _clear_flag(snapshot, ino, rows)
    amendment = snapshot.change(rows, also)
    finding = _finding(snapshot, damaged, severity, detail)
    finding.remedy = partial(view.amend, amendment)
    return finding


def _clear_flag(snapshot: Snapshot, ino: int, rows: dict[RowKey, bytes | None]) -> None:
    try:
        record = snapshot.inode(ino)
    except DamageError:
        return
    if record is not None and record.flags & FLAG_XATTRS:
        bare = replace(record, flags=record.flags & ~FLAG_XATTRS)
        rows[RowKey(INODES, records.inode_key(ino))] = records.encode_inode(bare)


def _lost_orphan(view: VolumeView, snapshot: Snapshot, damaged: _Damaged) -> Finding:
    """The key says it all: whether the row belongs there is check_orphans' matter."""
    key = damaged.row_key
    amendment = snapshot.change({RowKey(ORPHANS, key): records.encode_orphan(key)})
    detail = "its row in the table of removed files is damaged beyond correction"
    finding = _finding(snapshot, damaged, ERROR, detail)
    finding.remedy = partial(view.amend, amendment)
    return finding
