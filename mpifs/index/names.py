"""Names to inodes: lookup, paths and listings.  Changes of names are in namespace.py.

The dentry cache knows only names that exist.  Of a directory in `_complete` it knows all of them,
so that a name which is not there is absent: a directory that was made while the index was open, or
a small one in which absent names were looked for again and again.  Elsewhere an absent name is
looked for on disk each time (1.5 µs, but 10 to 20 where other threads want Python's lock, which
LMDB's search lets go).
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from itertools import islice

from mpifs.core.errors import DamageError, PosixError
from mpifs.core.limits import (
    COMPLETE_DIRECTORIES_MAX,
    COMPLETED_ENTRIES_MAX,
    DENTRY_CACHE_MAX,
    NAME_BYTES_MAX,
)
from mpifs.core.records import DENTRIES, decode_dentry, inode_key, name_key
from mpifs.core.types import ROOT_INODE
from mpifs.index.inode import Inode
from mpifs.index.inodes import Inodes
from mpifs.index.memtable import UNKNOWN, merged
from mpifs.kv import ReadTransaction

_EVICTED_SHARE = 32
_ENTRIES_FOR_ABSENCE = 4  # are read in about the time of a vain search on disk.


def check_name(name: bytes) -> None:
    """Raises ENAMETOOLONG or EINVAL for what cannot be the name of a new entry."""
    if len(name) > NAME_BYTES_MAX:
        raise PosixError(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name or name in {b".", b".."}:
        raise PosixError(errno.EINVAL, "not the name of a file")


class Names(Inodes):
    """Reading the tree of names.  Any thread, without the lock when the caches know it all."""

    def lookup(self, parent: int, name: bytes) -> int:
        """Inode number of a name in a directory, 0 if there is none."""
        found = self._names.get((parent, name))
        if found is not None:
            return found
        with self.lock:
            return self._entry(parent, name)

    def resolve(self, path: bytes) -> Inode:
        """The inode of an absolute path; symbolic links are not followed.

        Empty components are skipped; b"." and b".." are names that do not exist.
        Raises PosixError: ENOENT, ENOTDIR, ENAMETOOLONG (a component); DamageError.
        """
        ino: int = ROOT_INODE
        names = self._names
        try:
            for name in path.split(b"/"):
                if name:
                    ino = names[ino, name]
            return self._cache[ino]
        except KeyError:
            return self._resolve(path)

    def resolve_parent(self, path: bytes) -> tuple[Inode, bytes]:
        """The directory of an absolute path, and the last component, which need not exist.

        Raises as resolve, ENOTDIR if the parent is none, and EBUSY for the root.
        """
        parent, _, name = path.rstrip(b"/").rpartition(b"/")
        if not name:
            raise PosixError(errno.EBUSY, "the root directory has no parent")
        if len(name) > NAME_BYTES_MAX:
            raise PosixError(errno.ENAMETOOLONG)
        directory = self.resolve(parent)
        if not directory.is_directory:
            raise PosixError(errno.ENOTDIR)
        return directory, name

    def path_of(self, ino: int) -> bytes:
        """One path of an inode, for messages; b"(inode N)" stands for what is not known."""
        parts: list[bytes] = []
        seen: set[int] = set()
        with self.lock:
            while ino != ROOT_INODE:
                try:
                    inode = self.inode(ino)
                except OSError:
                    inode = None
                if (
                    inode is None
                    or ino in seen
                    or not inode.parent
                    or self.lookup(inode.parent, inode.name) != ino
                ):
                    parts.append(b"(inode %d)" % ino)
                    return b"/".join(reversed(parts))
                seen.add(ino)
                parts.append(inode.name)
                ino = inode.parent
        return b"/" + b"/".join(reversed(parts))

    def entries(
        self, ino: int, after: bytes = b"", limit: int = 1024
    ) -> list[tuple[bytes, int, int]]:
        """(name, inode number, type bits as in st_mode) in name order, names greater than `after`.

        O(limit) and right while the directory changes: a name that is there during the whole of a
        listing is given once.  `.` and `..` are not stored and not given.
        """
        start = after + b"\0" if after else b""
        with self.lock, self._env.read() as transaction:
            disk = _rows(transaction, ino, start)
            changed = ino in self._dentries.top or ino in self._dentries.sealed
            rows = merged(self._dentries.changes(ino, start), disk) if changed else disk
            found = [
                (name, packed >> 4, (packed & 15) << 12) for name, packed in islice(rows, limit)
            ]
            del rows
            disk.close()
            return found

    def is_empty(self, ino: int) -> bool:
        """Whether a directory has no entries; O(1)."""
        return self.inode(ino).size == 0

    def _entry(self, parent: int, name: bytes) -> int:
        """lookup, with the lock held."""
        ino = self._names.get((parent, name))
        if ino is not None:
            return ino
        if len(name) > NAME_BYTES_MAX:
            raise PosixError(errno.ENAMETOOLONG)
        if parent in self._complete:
            return 0
        packed = self._dentries.find(parent, name)
        if packed is UNKNOWN:
            directory = self._cache.get(parent)
            if directory is not None and not directory.size:
                return 0
            key = name_key(parent, name)
            with self._env.read() as transaction:
                value = transaction.get(DENTRIES, key)
                found = None if value is None else decode_dentry(key, value)
            if found is None:
                if directory is not None:
                    self._note_absence(directory)
                return 0
            ino = found[0]
        elif packed is None:
            return 0
        else:
            ino = packed >> 4
        self._keep_name(parent, name, ino)
        return ino

    def _keep_name(self, parent: int, name: bytes, ino: int) -> None:
        names = self._names
        names[parent, name] = ino
        if len(names) > DENTRY_CACHE_MAX:
            for key in list(islice(names, max(1, len(names) // _EVICTED_SHARE))):
                del names[key]
                self._complete.discard(key[0])

    def _note_absence(self, directory: Inode) -> None:
        """A name was looked for in vain on disk: once that has cost as much as it costs to read
        all names of a small directory, they are read.  Requires: the lock is held."""
        ino, size = directory.ino, directory.size
        if size > COMPLETED_ENTRIES_MAX:
            return
        if len(self._absences) >= COMPLETE_DIRECTORIES_MAX:
            self._absences.clear()
        count = self._absences[ino] = self._absences.get(ino, 0) + 1
        if count * _ENTRIES_FOR_ABSENCE <= size or not directory.is_directory:
            return
        del self._absences[ino]
        try:
            entries = self.entries(ino, limit=COMPLETED_ENTRIES_MAX + 1)
        except DamageError:
            return  # for the one who wants that name
        if len(entries) > COMPLETED_ENTRIES_MAX:
            return
        self._keep_complete(ino)  # first: a name that leaves the cache below takes it back.
        for name, child, _ in entries:
            self._keep_name(ino, name, child)

    def _keep_complete(self, ino: int) -> None:
        """Of a directory all names are in the cache.  Requires: the lock is held."""
        if len(self._complete) >= COMPLETE_DIRECTORIES_MAX:
            self._complete.clear()
        self._complete.add(ino)

    def _named(self, parent: int, name: bytes, ino: int) -> Inode:
        """The inode that a dentry names.  Raises DamageError if it does not exist."""
        try:
            return self.inode(ino)
        except PosixError:
            raise DamageError(
                f"index: entry {name!r} of inode {parent} names inode {ino}, which does not exist"
            ) from None

    def _resolve(self, path: bytes) -> Inode:
        with self.lock:
            inode = self.inode(ROOT_INODE)
            for name in path.split(b"/"):
                if not name:
                    continue
                if not inode.is_directory:
                    raise PosixError(errno.ENOTDIR)
                ino = self._entry(inode.ino, name)
                if not ino:
                    raise PosixError(errno.ENOENT)
                inode = self._named(inode.ino, name, ino)
            return inode


def _rows(
    transaction: ReadTransaction, ino: int, start: bytes
) -> Generator[tuple[bytes, int], None, None]:
    for key, value in transaction.scan(DENTRIES, name_key(ino, start), inode_key(ino + 1)):
        child, kind = decode_dentry(key, value)
        yield bytes(key[8:]), child << 4 | kind
