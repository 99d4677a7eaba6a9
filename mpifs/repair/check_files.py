"""What an inode's record tells of itself is possible; attributes and removed files add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from mpifs.core.errors import DamageError
from mpifs.core.layout import is_chunk_size
from mpifs.core.limits import (
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    FILE_BYTES_MAX,
    REPLICAS_MAX,
    SYMLINK_BYTES_MAX,
)
from mpifs.core.records import (
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    FLAG_XATTRS,
    INODES,
    ORPHANS,
    REFS,
    XATTRS,
    InodeRecord,
    encode_inode,
    inode_key,
)
from mpifs.index.amendment import RowKey
from mpifs.repair.findings import ERROR, LEFTOVER, LOST, Finding, Progress
from mpifs.repair.lost_inodes import guess_chunk_size, ref_totals
from mpifs.repair.paths import path_of
from mpifs.repair.removal import finish_removal
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.tree_edit import DIRECTORY, LINK, REGULAR, kind_of
from mpifs.repair.volume import VolumeView

_FLAGS = FLAG_IMMUTABLE | FLAG_APPEND | FLAG_XATTRS


def check_inode_fields(
    view: VolumeView, snapshot: Snapshot, progress: Progress
) -> Iterator[Finding]:
    """Every field of an inode's record is possible for its type, and its flags tell whether it
    has attributes."""
    owners = snapshot.owners(XATTRS)
    owner = next(owners, None)
    for number, row in enumerate(snapshot.inodes()):
        if not number % 1024:
            progress.check()
        while owner is not None and owner < row.ino:
            owner = next(owners, None)
        record = row.record
        if record is None:
            continue
        if bool(record.flags & FLAG_XATTRS) != (owner == row.ino):
            yield _wrong_flag(view, snapshot, record)
            record = snapshot.inode(row.ino) or record
        for check in _FIELD_CHECKS:
            fault = check(view, snapshot, record)
            if fault is not None:
                detail, record = fault
                yield _wrong(view, snapshot, check.__name__, ERROR, detail, record)


Fault = tuple[str, InodeRecord]
"""What is wrong with a record, and the record as it should be."""


def check_flags(_view: VolumeView, _snapshot: Snapshot, record: InodeRecord) -> Fault | None:
    """Flags: only those that there are."""
    if not record.flags & ~_FLAGS:
        return None
    detail = f"its flags {record.flags:#x} are impossible"
    return detail, replace(record, flags=record.flags & _FLAGS)


def check_chunk_size(view: VolumeView, snapshot: Snapshot, record: InodeRecord) -> Fault | None:
    """Chunk size: a power of two within the limits."""
    if is_chunk_size(record.chunk_size, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX):
        return None
    guess = view.geometry.chunk_size
    if kind_of(record) == REGULAR and record.bytes_stored:
        guess = guess_chunk_size(ref_totals(snapshot, record.ino), guess)
    detail = f"its chunk size {record.chunk_size} is impossible; by its chunks it is {guess}"
    return detail, replace(record, chunk_size=guess)


def check_replicas(view: VolumeView, _snapshot: Snapshot, record: InodeRecord) -> Fault | None:
    """Replicas: 1 to REPLICAS_MAX."""
    if 1 <= record.replicas <= REPLICAS_MAX:
        return None
    detail = f"its number of replicas {record.replicas} is impossible"
    return detail, replace(record, replicas=view.geometry.replicas)


def check_target(_view: VolumeView, _snapshot: Snapshot, record: InodeRecord) -> Fault | None:
    """Target: a symbolic link has one, and nothing else has."""
    if kind_of(record) == LINK:
        if 0 < len(record.target) <= SYMLINK_BYTES_MAX:
            return None
        kept = record.target[:SYMLINK_BYTES_MAX] or b"(lost)"
        detail = f"the symbolic link's target of {len(record.target)} bytes is impossible"
        return detail, replace(record, target=kept, stable_size=len(kept))
    if not record.target:
        return None
    return "it has a target, but is no symbolic link", replace(record, target=b"")


def check_size(_view: VolumeView, snapshot: Snapshot, record: InodeRecord) -> Fault | None:
    """Size: of a link its target's, of a special file 0; of files check_chunks knows more."""
    kind = kind_of(record)
    if kind == LINK and record.stable_size != len(record.target):
        detail = f"the symbolic link's size is {record.stable_size} instead of its target's"
        return detail, replace(record, stable_size=len(record.target))
    if kind == REGULAR and record.stable_size > FILE_BYTES_MAX:
        end = ref_totals(snapshot, record.ino).size(record.chunk_size)
        detail = f"its size {record.stable_size} is impossible; its last chunk ends at {end}"
        return detail, replace(record, stable_size=end)
    if kind not in (LINK, REGULAR, DIRECTORY) and record.stable_size:
        detail = f"its size is {record.stable_size}, but it can hold nothing"
        return detail, replace(record, stable_size=0)
    return None


def check_only_files_store_bytes(
    _view: VolumeView, snapshot: Snapshot, record: InodeRecord
) -> Fault | None:
    """Bytes stored: only files have chunks."""
    if kind_of(record) == REGULAR or not record.bytes_stored:
        return None
    if next(snapshot.refs(record.ino, end=record.ino + 1), None) is not None:
        return None  # of check_chunks' concern
    detail = f"it counts {record.bytes_stored} bytes stored, but is no file"
    return detail, replace(record, bytes_stored=0)


_FIELD_CHECKS: tuple[Callable[[VolumeView, Snapshot, InodeRecord], Fault | None], ...] = (
    check_flags,
    check_chunk_size,
    check_replicas,
    check_target,
    check_size,
    check_only_files_store_bytes,
)


def _wrong_flag(view: VolumeView, snapshot: Snapshot, record: InodeRecord) -> Finding:
    if record.flags & FLAG_XATTRS:
        detail = "its record says that it has extended attributes, but there are none: they are"
        detail += " lost, or there never were any"
        severity = LOST
    else:
        detail = "it has extended attributes, but its record does not say so: nobody sees them"
        severity = ERROR
    changed = replace(record, flags=record.flags ^ FLAG_XATTRS)
    return _wrong(view, snapshot, "check_xattr_flag", severity, detail, changed)


def _wrong(
    view: VolumeView,
    snapshot: Snapshot,
    check: str,
    severity: str,
    detail: str,
    record: InodeRecord,
) -> Finding:
    row = RowKey(INODES, inode_key(record.ino))
    amendment = snapshot.change({row: encode_inode(record)})
    return Finding(
        check,
        severity,
        detail,
        path=path_of(snapshot, record.ino),
        inode=record.ino,
        remedy=partial(view.amend, amendment),
    )


def check_xattrs_have_inodes(
    view: VolumeView, snapshot: Snapshot, progress: Progress
) -> Iterator[Finding]:
    """Extended attributes belong to an inode.  Repair: those of none go."""
    for ino in snapshot.owners(XATTRS):
        progress.check()
        if snapshot.get(INODES, inode_key(ino)) is not None:
            continue
        rows: dict[RowKey, bytes | None] = {
            RowKey(XATTRS, row.key): None for row in snapshot.xattrs(ino, ino + 1)
        }
        amendment = snapshot.change(rows, [RowKey(INODES, inode_key(ino))])
        detail = f"there are {len(rows)} extended attributes of inode {ino}, which does not exist"
        remedy = partial(view.amend, amendment)
        yield Finding("check_xattrs_have_inodes", ERROR, detail, inode=ino, remedy=remedy)


def check_orphans(view: VolumeView, snapshot: Snapshot, progress: Progress) -> Iterator[Finding]:
    """The table of orphans lists what has been removed and nothing else.  At rest nobody has it
    open: its space is still in use for nothing.  Repair: the removal is finished."""
    for ino in snapshot.owners(ORPHANS):
        progress.check()
        key = inode_key(ino)
        try:
            record = snapshot.inode(ino)
        except DamageError:
            continue
        if record is None and next(snapshot.owners(REFS, ino, ino + 1), None) is not None:
            continue  # check_inodes_exist has reported it
        if record is not None and not record.nlink:
            if not view.is_live:
                detail = "a removed file whose space is not freed yet"
                finding = Finding("check_orphans", LEFTOVER, detail, path=b"#%d" % ino, inode=ino)
                finding.remedy = partial(finish_removal, view, ino)
                yield finding
            continue
        if record is None:
            detail = f"the table of removed files lists inode {ino}, which does not exist"
        else:
            detail = "the table of removed files lists it, but it has a name: it might be deleted"
        removed = -int(snapshot.tallies.take_orphan())
        inode_row = RowKey(INODES, key)
        amendment = snapshot.change({RowKey(ORPHANS, key): None}, [inode_row], orphans=removed)
        path = path_of(snapshot, ino) if record is not None else None
        remedy = partial(view.amend, amendment)
        yield Finding("check_orphans", ERROR, detail, path=path, inode=ino, remedy=remedy)
