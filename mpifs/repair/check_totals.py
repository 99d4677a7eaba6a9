"""The database `meta`: limits of numbers, the table of stores, the totals of the volume."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.limits import RESTORE_NUMBER_GAP
from mpifs.core.records import (
    INODES,
    KEY_COUNTERS,
    KEY_GENERATION_LIMIT,
    KEY_INODE_LIMIT,
    KEY_STORES,
    META,
    ORPHANS,
    Counters,
)
from mpifs.index.amendment import RowKey
from mpifs.repair.findings import ERROR, LOST, Finding, Progress
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.tally import count_inodes
from mpifs.repair.volume import VolumeView

_STEP = 4096


def check_inode_limit(
    view: VolumeView, snapshot: Snapshot, progress: Progress
) -> Iterator[Finding]:
    """Every inode number is below the limit of numbers used.  Repair: a limit far above all that
    are known, so that none is ever used again."""
    progress.check()
    key = snapshot.last_key(INODES)
    highest = int.from_bytes(key[:8], "big") if key is not None and len(key) == 8 else 1
    try:
        limit = snapshot.number(KEY_INODE_LIMIT)
        detail = "the limit of inode numbers is missing"
    except DamageError:
        limit = None
        detail = "the limit of inode numbers is damaged beyond correction"
    if limit is not None:
        if highest < limit:
            return
        detail = f"inode {highest} is not below the limit of numbers, {limit}: it could come twice"
    yield _raise(view, snapshot, "check_inode_limit", KEY_INODE_LIMIT, highest, detail)


def check_generation_limit(
    view: VolumeView, snapshot: Snapshot, progress: Progress
) -> Iterator[Finding]:
    """The limit of generations can be read (whether it is high enough, check_chunks knows)."""
    try:
        if snapshot.number(KEY_GENERATION_LIMIT) is not None:
            return
        detail = "the limit of generations is missing"
    except DamageError:
        detail = "the limit of generations is damaged beyond correction"
    highest = 0
    for number, row in enumerate(snapshot.refs()):
        if not number % _STEP:
            progress.check()
        if row.ref is not None:
            highest = max(highest, row.ref.generation)
    for garbage in snapshot.garbage():
        highest = max(highest, garbage.chunk_key.generation)
    yield _raise(view, snapshot, "check_generation_limit", KEY_GENERATION_LIMIT, highest, detail)


def _raise(
    view: VolumeView, snapshot: Snapshot, check: str, key: bytes, highest: int, detail: str
) -> Finding:
    """A limit above the highest number known and the copy's limit, with room for what is not."""
    copied = view.copy_row(META, key)
    if copied is not None:
        try:
            highest = max(highest, records.decode_number(key, copied))
        except DamageError:
            copied = None
    limit = min(highest + 1 + RESTORE_NUMBER_GAP, 2**63)
    amendment = snapshot.change({RowKey(META, key): records.encode_number(key, limit)})
    return Finding(check, ERROR, detail, remedy=partial(view.amend, amendment))


def check_stores_table(
    view: VolumeView, snapshot: Snapshot, progress: Progress
) -> Iterator[Finding]:
    """The table of stores can be read and has one.  Repair: the copy's; else only the stores
    themselves tell, which a recovery of the index asks."""
    progress.check()
    try:
        stores = snapshot.stores()
        detail = "the table of stores is missing" if stores is None else "there are no stores"
    except DamageError:
        stores = None
        detail = "the table of stores is damaged beyond correction"
    if stores:
        return
    finding = Finding("check_stores_table", ERROR, detail)
    value = view.copy_row(META, KEY_STORES)
    if value is not None:
        try:
            if records.decode_stores(value):
                amendment = snapshot.change({RowKey(META, KEY_STORES): value})
                finding.remedy = partial(view.amend, amendment)
                finding.detail += "; the copy of the index has it"
        except DamageError:
            value = None
    if finding.remedy is None:
        finding.severity = LOST
    yield finding


def check_counters(view: VolumeView, snapshot: Snapshot, progress: Progress) -> Iterator[Finding]:
    """The totals are the numbers of files, directories and removed files.  (Whether the bytes add
    up, check_chunks knows.)"""
    progress.check()
    files, directories = count_inodes(snapshot.scan)
    orphans = sum(1 for _ in snapshot.scan(ORPHANS))
    try:
        told = snapshot.counters()
        detail = "the record of the volume's totals is missing"
    except DamageError:
        told = None
        detail = "the record of the volume's totals is damaged beyond correction"
    if told is None:
        payload = sum(row.record.bytes_stored for row in snapshot.inodes() if row.record)
        counted = Counters(files, directories, payload, orphans)
        rows: dict[RowKey, bytes | None] = {
            RowKey(META, KEY_COUNTERS): records.encode_counters(counted)
        }
        snapshot.forget_deltas()
        remedy = partial(view.amend, snapshot.change(rows))
        yield Finding("check_counters", ERROR, detail, remedy=remedy)
        return
    for what, before, count, deltas in (
        ("files", told.files, files, (1, 0, 0)),
        ("directories", told.directories, directories, (0, 1, 0)),
        ("removed files", told.orphans, orphans, (0, 0, 1)),
    ):
        if before != count:
            detail = f"the volume's total of {what} is {before}, but there are {count}"
            more_files, more_directories, more_orphans = (
                each * (count - before) for each in deltas
            )
            amendment = snapshot.change(
                {}, files=more_files, directories=more_directories, orphans=more_orphans
            )
            yield Finding("check_counters", ERROR, detail, remedy=partial(view.amend, amendment))
