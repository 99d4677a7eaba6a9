"""Inodes without a name: still open, or being removed.

Their numbers stand in a table on disk, so that after a crash the purger finds them.  Order of a
removal: unlink (orphan) → last close → reap until it says done (refs to garbage, attributes,
record, row of the table).  Each step commits by itself; a crash between two repeats none.
"""

from __future__ import annotations

from itertools import islice

from mpifs.core.checksum import Buffer
from mpifs.core.errors import DamageError
from mpifs.core.limits import DROP_COUNT_MAX, INDEX_ROWS_PER_PAGE
from mpifs.core.records import ORPHANS, decode_orphan, inode_key
from mpifs.index.inode import Inode
from mpifs.index.inodes import Inodes
from mpifs.index.memtable import merged
from mpifs.index.refs import Refs
from mpifs.index.xattrs import Xattrs


class Orphans(Inodes, Refs, Xattrs):
    """Listing and removing orphans.  Any thread; each call is atomic."""

    def orphans(self, limit: int, after: int = 0) -> list[int]:
        """At most `limit` numbers of inodes with nlink 0, greater than `after`, open ones too.

        Damaged rows are left out: verify tells of them.  A row may also name what is no orphan.
        """
        with self.lock, self._env.read() as transaction:
            disk = (
                (ino, True)
                for key, value in transaction.scan(ORPHANS, inode_key(after + 1))
                if (ino := _readable(key, value))
            )
            changes = self._orphans.changes(0, after + 1)
            return [ino for ino, _ in islice(merged(changes, disk), limit)]

    def reap(self, inode: Inode) -> bool:
        """Removes an orphan that nobody has open: True when it is gone, False: call again.

        Drops at most DROP_COUNT_MAX refs a call.  From the first call on the inode is `reaped`.
        Requires: nlink 0, no pins.
        """
        with self.lock:
            assert not inode.nlink, "only an orphan is reaped"
            assert not inode.pins, "only what is not open is reaped"
            ino = inode.ino
            if inode.reaped and ino not in self._reaping:
                return True
            inode.reaped = True
            first = self._reaping.pop(ino, 0)
            chunks = max(0, -(-inode.size // inode.chunk_size) - first)
            # Each ref goes, and comes as garbage.
            self.room.strain(3 + 2 * min(chunks, DROP_COUNT_MAX) // INDEX_ROWS_PER_PAGE)
            rest = self.drop_refs(inode, first)
            if rest is not None:
                self._reaping[ino] = rest
                return False
            for name in self._xattr_names(inode):
                self._xattrs.put(ino, name, None)
                self.room.strain(1)
            self._orphans.put(0, ino, None)
            self._orphan_count -= 1
            if inode.is_directory:
                self._directory_count -= 1
            else:
                self._file_count -= 1
            self._remove_inode(inode)
            return True


def _readable(key: Buffer, value: Buffer) -> int:
    """The inode number of a row, 0 if the row is damaged."""
    try:
        return decode_orphan(key, value)
    except DamageError:
        return 0
