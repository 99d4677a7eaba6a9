"""Counts over the index that several repairs of one run need; taken once, then kept up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from mpifs.core import records
from mpifs.core.checksum import Buffer
from mpifs.core.errors import DamageError
from mpifs.core.limits import PLANNED_TALLIES_MAX
from mpifs.core.records import Counters

Scan: TypeAlias = Callable[[str, bytes, "bytes | None"], Iterator[tuple[Buffer, Buffer]]]

_DIRECTORY = 0o04
_DENTRY_KIND_AT = 8
_DENTRY_BYTES = 17
_MODE_AT = 9  # of an inode's record: the byte of its mode that tells the type


def end_of(end: int) -> bytes:
    """The key where the rows of inodes below `end` end, for any number that a row may tell."""
    return records.inode_key(min(end, 2**64 - 1))


def is_directory_entry(value: Buffer) -> bool:
    """Whether a row of `dentries`, damaged or not, says that it leads to a directory."""
    return len(value) == _DENTRY_BYTES and value[_DENTRY_KIND_AT] == _DIRECTORY


def is_directory_record(value: Buffer) -> bool:
    """Whether an inode's record, damaged or not, says that it is a directory."""
    return len(value) > _MODE_AT and value[_MODE_AT] >> 4 == _DIRECTORY


@dataclass(slots=True)
class Tally:
    """Entries of a directory, damaged ones included, and those that are directories."""

    entries: int
    subdirectories: int


class Tallies:
    """The counts of one snapshot, with its planned rows when they are first asked for; whoever
    plans more changes them accordingly."""

    def __init__(self, scan: Scan, counters: Callable[[], Counters | None]) -> None:
        self._scan = scan
        self._counters = counters
        self._directories: dict[int, Tally] = {}
        self._lost_inodes: int | None = None
        self._orphans: int | None = None

    def of_directory(self, ino: int) -> Tally:
        """The entries of a directory; the object is kept, to be changed by who plans changes."""
        found = self._directories.get(ino)
        if found is None:
            if len(self._directories) >= PLANNED_TALLIES_MAX:
                self._directories.clear()
            found = self._directories[ino] = self._count_entries(ino)
        return found

    def _count_entries(self, ino: int) -> Tally:
        tally = Tally(0, 0)
        start, end = records.inode_key(ino), end_of(ino + 1)
        for key, value in self._scan(records.DENTRIES, start, end):
            if len(key) > len(start):
                tally.entries += 1
                tally.subdirectories += is_directory_entry(value)
        return tally

    def take_lost_inode(self) -> bool:
        """An inode without a row gets one, or is given up; False if the totals never counted it."""
        lost = self._count_lost()
        if lost <= 0:
            return False
        self._lost_inodes = lost - 1
        return True

    def _count_lost(self) -> int:
        """How many inodes the totals count more than there are rows."""
        if self._lost_inodes is None:
            counters = self._read_counters()
            rows = sum(len(key) == 8 for key, _ in self._scan(records.INODES, b"", None))
            told = counters.files + counters.directories if counters is not None else rows
            self._lost_inodes = told - rows
        return self._lost_inodes

    def take_orphan(self) -> bool:
        """A row of `orphans` is removed; False if the totals never counted it."""
        ahead = self._orphans_ahead()
        if ahead < 0:
            self._orphans = ahead + 1
        return ahead >= 0

    def take_lost_orphan(self) -> bool:
        """A row of `orphans` that is not there is given up; False if the totals never counted
        it."""
        ahead = self._orphans_ahead()
        if ahead > 0:
            self._orphans = ahead - 1
        return ahead > 0

    def _orphans_ahead(self) -> int:
        """How many rows of `orphans` the totals count more than there are."""
        if self._orphans is None:
            counters = self._read_counters()
            rows = sum(1 for _ in self._scan(records.ORPHANS, b"", None))
            self._orphans = counters.orphans - rows if counters is not None else 0
        return self._orphans

    def _read_counters(self) -> Counters | None:
        try:
            return self._counters()
        except DamageError:
            return None


def count_inodes(scan: Scan) -> tuple[int, int]:
    """Inode records that are no directory, and that are one.  Unreadable ones count as what a
    byte of theirs, right or wrong, says."""
    files = directories = 0
    for key, value in scan(records.INODES, b"", None):
        if len(key) != 8:
            continue
        if is_directory_record(value):
            directories += 1
        else:
            files += 1
    return files, directories
