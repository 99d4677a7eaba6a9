"""Directories: each lies below the root, and counts its entries and subdirectories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from mpifs.core.errors import DamageError
from mpifs.core.records import InodeRecord
from mpifs.core.types import ROOT_INODE
from mpifs.repair.findings import ERROR, Finding, Progress
from mpifs.repair.lost_found import attach
from mpifs.repair.paths import path_of
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.tree_edit import DIRECTORY, TreeEdit
from mpifs.repair.volume import VolumeView

_SHIFT = 13
_BLOCK_BYTES = 1 << (_SHIFT - 3)


class _Bits:
    """A set of inode numbers: one bit each, in blocks of 1 KiB where there are any."""

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, ino: int) -> None:
        block = self._blocks.get(ino >> _SHIFT)
        if block is None:
            block = self._blocks[ino >> _SHIFT] = bytearray(_BLOCK_BYTES)
        at = ino & ((1 << _SHIFT) - 1)
        block[at >> 3] |= 1 << (at & 7)

    def __contains__(self, ino: int) -> bool:
        block = self._blocks.get(ino >> _SHIFT)
        at = ino & ((1 << _SHIFT) - 1)
        return block is not None and bool(block[at >> 3] & 1 << (at & 7))


def check_no_directory_cycles(
    view: VolumeView, snapshot: Snapshot, progress: Progress
) -> Iterator[Finding]:
    """From every directory the way up ends at the root.  Repair: of a ring of directories that lie
    in each other, the one with the lowest number moves to lost+found."""
    reached = _Bits()
    reached.add(ROOT_INODE)
    for record in snapshot.directories():
        progress.check()
        way: list[int] = []
        on_way: set[int] = set()
        ino = record.ino
        while ino not in reached and ino not in on_way:
            way.append(ino)
            on_way.add(ino)
            above = _readable(snapshot, record.parent) if record.parent else None
            if above is None:
                break  # removed, or of another check's concern
            ino, record = record.parent, above
        else:
            if ino in on_way:
                yield _break_ring(view, snapshot, way[way.index(ino) :])
        for each in way:
            reached.add(each)


def _break_ring(view: VolumeView, snapshot: Snapshot, ring: list[int]) -> Finding:
    ino = min(ring)
    record = snapshot.inode(ino)
    assert record is not None, "a ring is made of records"
    edit = TreeEdit(snapshot)
    if snapshot.dentry(record.parent, record.name) is not None:
        edit.remove_entry(record.parent, record.name)
    path = attach(edit, ino)
    amendment = edit.plan()
    numbers = ", ".join(map(str, sorted(ring)[:8]))
    detail = f"directories lie in each other and not below the root: inodes {numbers}"
    remedy = partial(view.amend, amendment)
    return Finding("check_no_directory_cycles", ERROR, detail, path=path, inode=ino, remedy=remedy)


def check_directory_counts(
    view: VolumeView, snapshot: Snapshot, progress: Progress
) -> Iterator[Finding]:
    """A directory's size is the number of its entries, its link count 2 and its subdirectories,
    and 0 once it is removed."""
    entries = snapshot.dentries()
    entry = next(entries, None)
    for record in snapshot.directories():
        progress.check()
        while entry is not None and entry.parent < record.ino:
            entry = next(entries, None)
        count = subdirectories = 0
        while entry is not None and entry.parent == record.ino:
            count += 1
            subdirectories += entry.kind == DIRECTORY
            entry = next(entries, None)
        yield from _check_counts(view, snapshot, record, count, subdirectories)


def _check_counts(
    view: VolumeView, snapshot: Snapshot, record: InodeRecord, count: int, subdirectories: int
) -> Iterator[Finding]:
    if record.stable_size != count:
        detail = f"the directory counts {record.stable_size} entries, but has {count}"
        changed = replace(record, stable_size=count)
        yield _recount(view, snapshot, detail, changed)
        record = changed
    nlink = 2 + subdirectories
    if not record.nlink and not count and not record.parent:
        return  # removed
    if record.nlink != nlink:
        detail = f"its link count is {record.nlink}, but it has {subdirectories} subdirectories"
        yield _recount(view, snapshot, detail, replace(record, nlink=nlink))


def _recount(view: VolumeView, snapshot: Snapshot, detail: str, record: InodeRecord) -> Finding:
    edit = TreeEdit(snapshot)
    edit.set_inode(record)
    remedy = partial(view.amend, edit.plan())
    path = path_of(snapshot, record.ino)
    return Finding(
        "check_directory_counts", ERROR, detail, path=path, inode=record.ino, remedy=remedy
    )


def _readable(snapshot: Snapshot, ino: int) -> InodeRecord | None:
    try:
        return snapshot.inode(ino)
    except DamageError:
        return None
