"""The census: for a window of inode numbers, which there are and how many names lead to each.

Entries lead to inodes in any order, so their targets are counted in arrays; the arrays cover a
window of at most CENSUS_INODES_MAX inodes, and all entries are read once per window.  Numbers are
sparse (ranges are skipped at crashes), so an array is made per block of 1024 numbers that has any.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from mpifs.core import records
from mpifs.core.limits import CENSUS_FAULTS_MAX, CENSUS_INODES_MAX
from mpifs.core.types import ROOT_INODE
from mpifs.repair.findings import Progress
from mpifs.repair.snapshot import DentryRow, InodeRow, Snapshot
from mpifs.repair.tree_edit import DIRECTORY

UNREADABLE = 0x80
"""As a kind: there is a row, but its record cannot be read."""
_NAMED = 0x40
_SHIFT = 10
_BLOCK = 1 << _SHIFT
_MASK = _BLOCK - 1
_Fault = TypeVar("_Fault")
_STEP = 4096  # rows between two looks at whether the user has had enough


class Block:
    """1024 inode numbers."""

    __slots__ = ("kinds", "links", "nlinks", "own_names")

    def __init__(self) -> None:
        self.kinds = array("B", bytes(_BLOCK))  # 0: no row; type; UNREADABLE; _NAMED
        self.links = array("I", bytes(4 * _BLOCK))  # entries found
        self.nlinks = array("I", bytes(4 * _BLOCK))  # as recorded
        self.own_names = array("q", bytes(8 * _BLOCK))  # hash of the name its record tells; 0 none


@dataclass(slots=True)
class Missing:
    """A number without a readable record, and the first entry that leads to it, if any does."""

    links: int = 0
    entry: DentryRow | None = None


@dataclass(slots=True)
class Census:
    """The window `first` ≤ ino < `end` (None: no end).  Kept up to date by who plans changes.

    Faults are kept up to CENSUS_FAULTS_MAX of a kind; the next run finds the others.
    """

    first: int
    end: int | None = None
    blocks: dict[int, Block] = field(default_factory=dict)
    missing: dict[int, Missing] = field(default_factory=dict)
    """What entries (as target or as directory) name, and what has no readable record."""
    wrong_types: list[DentryRow] = field(default_factory=list)
    """Entries whose type is not the inode's."""
    wrong_parents: list[int] = field(default_factory=list)
    """Inodes with entries that are no directories."""
    wrong_names: list[DentryRow] = field(default_factory=list)
    """Entries with impossible names, of directories in this window."""

    def covers(self, ino: int) -> bool:
        """Whether the number is in the window."""
        return ino >= self.first and (self.end is None or ino < self.end)

    def kind(self, ino: int) -> int:
        """The type (mode >> 12) of an inode, UNREADABLE, or 0: it has no row."""
        block = self.blocks.get(ino >> _SHIFT)
        return block.kinds[ino & _MASK] & ~_NAMED if block is not None else 0

    def links(self, ino: int) -> int:
        """Number of entries that lead to it."""
        block = self.blocks.get(ino >> _SHIFT)
        return block.links[ino & _MASK] if block is not None else 0

    def set_inode(self, ino: int, kind: int, nlink: int) -> None:
        """An inode has (another) record, which tells one of its names."""
        block = self._block(ino)
        block.kinds[ino & _MASK] = kind | _NAMED
        block.nlinks[ino & _MASK] = nlink
        self.missing.pop(ino, None)

    def set_kind(self, ino: int, kind: int) -> None:
        """An inode's record tells another type."""
        block = self._block(ino)
        block.kinds[ino & _MASK] = block.kinds[ino & _MASK] & _NAMED | kind

    def set_nlink(self, ino: int, nlink: int) -> None:
        """An inode's record tells another link count."""
        if self.covers(ino):
            self._block(ino).nlinks[ino & _MASK] = nlink

    def add_links(self, ino: int, change: int) -> None:
        """Entries that lead to an inode are made or removed."""
        if self.covers(ino):
            self._block(ino).links[ino & _MASK] += change

    def forget(self, ino: int) -> None:
        """Nothing is left of it."""
        if self.covers(ino):
            block = self._block(ino)
            block.kinds[ino & _MASK] = 0
            block.links[ino & _MASK] = 0
        self.missing.pop(ino, None)

    def _block(self, ino: int) -> Block:
        block = self.blocks.get(ino >> _SHIFT)
        if block is None:
            block = self.blocks[ino >> _SHIFT] = Block()
        return block

    def nameless(self) -> Iterator[int]:
        """Inodes that no entry leads to, the root left out."""
        for ino, block, at in self._rows():
            if not block.links[at] and ino != ROOT_INODE:
                yield ino

    def misnamed(self) -> Iterator[int]:
        """Inodes with names, but not the one that their record tells; the root left out.  (A
        directory's record must tell one; of 2^64 wrong names one goes unnoticed.)"""
        for ino, block, at in self._rows():
            if not block.kinds[at] & _NAMED and block.links[at] and ino != ROOT_INODE:
                kind = block.kinds[at]
                if kind == DIRECTORY or (block.own_names[at] and not kind & UNREADABLE):
                    yield ino

    def miscounted(self) -> Iterator[int]:
        """Inodes that are no directories with another link count than names."""
        for ino, block, at in self._rows():
            if block.links[at] != block.nlinks[at]:
                kind = block.kinds[at] & ~_NAMED
                if kind not in (DIRECTORY, UNREADABLE):
                    yield ino

    def many_names(self) -> set[int]:
        """Directories that more than one entry leads to."""
        return {
            ino
            for ino, block, at in self._rows()
            if block.links[at] > 1 and block.kinds[at] & ~_NAMED == DIRECTORY
        }

    def _rows(self) -> Iterator[tuple[int, Block, int]]:
        """Every inode of the window that has a row, in order."""
        for number in sorted(self.blocks):
            block = self.blocks[number]
            for at, kind in enumerate(block.kinds):
                if kind:
                    yield number << _SHIFT | at, block, at


def take_census(snapshot: Snapshot, first: int, progress: Progress) -> Census:
    """The window from `first` on; `end` tells where the next one begins."""
    census = Census(first)
    rows = snapshot.inodes(first)
    for number, row in enumerate(islice(rows, CENSUS_INODES_MAX)):
        if not number % _STEP:
            progress.check()
        _count_inode(census, row)
    following = next(rows, None)
    census.end = following.ino if following is not None else None
    parent = -1
    for number, entry in enumerate(snapshot.dentries()):
        if not number % _STEP:
            progress.check()
        if entry.parent != parent:
            parent = entry.parent
            _look_at_directory(census, parent)
        if not is_name(entry.name) and census.covers(parent):
            _keep(census.wrong_names, entry)
        if entry.ino and census.covers(entry.ino):
            _count_entry(census, entry)
    return census


def is_name(name: bytes) -> bool:
    """Whether an entry may have that name."""
    return not (b"/" in name or b"\0" in name or name in {b".", b".."})


def _count_inode(census: Census, row: InodeRow) -> None:
    ino, record, _ = row
    block = census._block(ino)
    at = ino & _MASK
    if record is None:
        block.kinds[at] = UNREADABLE
        census.missing[ino] = Missing()
        return
    block.kinds[at] = record.mode >> 12
    block.nlinks[at] = record.nlink
    if record.parent:
        block.own_names[at] = hash(records.name_key(record.parent, record.name)) or 1


def _look_at_directory(census: Census, parent: int) -> None:
    if not census.covers(parent):
        return
    kind = census.kind(parent)
    if kind in (0, UNREADABLE):
        _keep_missing(census, parent)
    elif kind != DIRECTORY:
        _keep(census.wrong_parents, parent)


def _count_entry(census: Census, entry: DentryRow) -> None:
    ino = entry.ino
    block = census.blocks.get(ino >> _SHIFT)
    at = ino & _MASK
    kind = block.kinds[at] if block is not None else 0
    if block is None or not kind or kind & UNREADABLE:
        missing = _keep_missing(census, ino)
        if missing is not None:
            missing.links += 1
            missing.entry = missing.entry or entry
            census._block(ino).links[at] += 1
        return
    block.links[at] += 1
    if (hash(entry.key) or 1) == block.own_names[at]:
        block.kinds[at] = kind | _NAMED
    if kind & ~_NAMED != entry.kind:
        _keep(census.wrong_types, entry)


def _keep_missing(census: Census, ino: int) -> Missing | None:
    missing = census.missing.get(ino)
    if missing is None and len(census.missing) < CENSUS_FAULTS_MAX:
        missing = census.missing[ino] = Missing()
    return missing


def _keep(faults: list[_Fault], fault: _Fault) -> None:
    if len(faults) < CENSUS_FAULTS_MAX:
        faults.append(fault)
