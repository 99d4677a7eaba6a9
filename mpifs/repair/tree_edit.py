"""A repair of the tree of names as one amendment: entries, and the counts that follow from them.

A directory's recorded counts may already tell what the repair makes true (its entry was lost: the
count still has it), or what was true before (the entry was never counted).  Either way they are
right afterwards; counts that fit neither are a fault of their own and are left to its check.
"""

from __future__ import annotations

from dataclasses import replace
from stat import S_IFMT

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.records import InodeRecord
from mpifs.index.amendment import Amendment, RowKey
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.tally import is_directory_entry

DIRECTORY = 0o04
REGULAR = 0o10
LINK = 0o12
"""Types as entries have them: mode >> 12."""


def kind_of(record: InodeRecord) -> int:
    """The type as entries have it."""
    return S_IFMT(record.mode) >> 12


class TreeEdit:
    """Collects changes over a snapshot; `plan` makes them one amendment.  Used once.

    `rows` may be added to by the caller (refs of a file, say) before `plan`.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.rows: dict[RowKey, bytes | None] = {}
        self._expected: list[RowKey] = []
        self._records: dict[int, InodeRecord] = {}
        self._files = 0
        self._directories = 0

    def inode(self, ino: int) -> InodeRecord | None:
        """The record with the changes so far, None if there is none.  Raises DamageError."""
        return self._records.get(ino) or self.snapshot.inode(ino)

    def set_inode(self, record: InodeRecord) -> None:
        """Replaces the record of an inode that has one."""
        self._records[record.ino] = record

    def create_inode(self, record: InodeRecord) -> None:
        """Makes an inode that the volume has not had, or not counted, until now."""
        self._records[record.ino] = record
        self._count(1, kind_of(record) == DIRECTORY)

    def restore_inode(self, record: InodeRecord) -> None:
        """Gives a record back to an inode that has lost its own; the totals, if they do not count
        it any more, do again."""
        self._records[record.ino] = record
        if not self._has_row(record.ino) and not self.snapshot.tallies.take_lost_inode():
            self._count(1, kind_of(record) == DIRECTORY)

    def forget_inode(self, ino: int, is_directory: bool) -> None:
        """The last trace of an inode without a readable record goes: the totals, if they count
        it, no longer do."""
        if self._has_row(ino) or self.snapshot.tallies.take_lost_inode():
            self._count(-1, is_directory)

    def _has_row(self, ino: int) -> bool:
        return self.snapshot.get(records.INODES, records.inode_key(ino)) is not None

    def _count(self, change: int, is_directory: bool) -> None:
        if is_directory:
            self._directories += change
        else:
            self._files += change

    def set_number(self, key: bytes, number: int) -> None:
        """Sets a limit in `meta`."""
        self.rows[RowKey(records.META, key)] = records.encode_number(key, number)

    def number(self, key: bytes) -> int:
        """A limit in `meta`, with the changes so far.  Raises DamageError."""
        value = self.rows.get(RowKey(records.META, key)) or self.snapshot.get(records.META, key)
        if value is None:
            raise DamageError(f"index: {key.decode()} is missing")
        return records.decode_number(key, value)

    def entry(self, parent: int, name: bytes) -> int:
        """What a name leads to, with the changes so far; 0 if nothing.  Raises DamageError."""
        key = records.name_key(parent, name)
        row = RowKey(records.DENTRIES, key)
        value = self.rows[row] if row in self.rows else self.snapshot.get(*row)
        self._expected.append(row)
        return 0 if value is None else records.decode_dentry(key, value)[0]

    def add_entry(self, parent: int, name: bytes, ino: int, kind: int) -> None:
        """Makes a name in a directory, over a damaged or wrong one if there is one."""
        key = records.name_key(parent, name)
        row = RowKey(records.DENTRIES, key)
        old = self.snapshot.get(*row)
        was_directory = old is not None and is_directory_entry(old)
        self.rows[row] = records.encode_dentry(key, ino, kind)
        self._recount(parent, int(old is None), int(kind == DIRECTORY) - int(was_directory))

    def remove_entry(self, parent: int, name: bytes) -> None:
        """Removes a name, which is there, from a directory."""
        row = RowKey(records.DENTRIES, records.name_key(parent, name))
        old = self.snapshot.get(*row)
        assert old is not None, "only what is there is removed"
        self.rows[row] = None
        self._recount(parent, -1, -int(is_directory_entry(old)))

    def _recount(self, parent: int, entries: int, subdirectories: int) -> None:
        """A directory gains or loses entries: its record tells the new counts."""
        tally = self.snapshot.tallies.of_directory(parent)
        try:
            record = self.inode(parent)
        except DamageError:
            record = None
        if record is not None and kind_of(record) == DIRECTORY:
            size = _moved(record.stable_size, tally.entries, entries)
            links = _moved(record.nlink, 2 + tally.subdirectories, subdirectories)
            if (size, links) != (record.stable_size, record.nlink):
                self._records[parent] = replace(record, stable_size=size, nlink=links)
            self._expected.append(RowKey(records.INODES, records.inode_key(parent)))
        tally.entries += entries
        tally.subdirectories += subdirectories

    def plan(self, *, payload_bytes: int = 0, orphans: int = 0) -> Amendment:
        """Plans the changes in the snapshot and gives the amendment that makes them."""
        for ino, record in self._records.items():
            key = records.inode_key(ino)
            self.rows[RowKey(records.INODES, key)] = records.encode_inode(record)
        return self.snapshot.change(
            self.rows,
            self._expected,
            files=self._files,
            directories=self._directories,
            payload_bytes=payload_bytes,
            orphans=orphans,
        )


def _moved(recorded: int, counted: int, change: int) -> int:
    """A recorded count after a change of what is counted: as it is if it was ahead of that."""
    is_ahead = recorded > counted if change > 0 else recorded < counted
    return recorded if is_ahead else recorded + change
