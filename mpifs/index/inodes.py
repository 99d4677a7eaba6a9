"""Live inodes: one object per inode number, a bounded cache, and what is dirty.

The cache drops its oldest objects in batches.  A dropped object that somebody still holds is found
again through a weak reference, so there are never two objects of one inode.
"""

from __future__ import annotations

import errno
from itertools import islice

from mpifs.core.errors import PosixError
from mpifs.core.limits import INODE_CACHE_MAX
from mpifs.core.records import INODES, decode_inode, inode_key
from mpifs.index.inode import Inode
from mpifs.index.state import State

_EVICTED_SHARE = 32  # leave at once: one by one, a dict's emptied head is walked each time


class Inodes(State):
    """Finding, pinning and marking inodes."""

    def inode(self, ino: int) -> Inode:
        """The live object of an inode.  Any thread, without the lock in the common case.

        Raises PosixError(ESTALE) if there is none, DamageError if its record is damaged.
        """
        found = self._cache.get(ino)
        if found is not None:
            return found
        with self.lock:
            found = self._cache.get(ino) or self._find_inode(ino)
            if found is None:
                raise PosixError(errno.ESTALE, f"there is no inode {ino}")
            self._keep(found)
            return found

    def touch(self, inode: Inode) -> None:
        """Fields of the inode have changed: its record is written by the next commit."""
        with self.lock:
            if inode.reaped:
                return
            if inode.stable_size > inode.loaded_size:
                self._drop_leftovers(inode)
            self._dirty[inode.ino] = inode

    def pin(self, inode: Inode) -> None:
        """Keeps it in the cache until as many calls of `unpin`."""
        with self.lock:
            inode.pins += 1
            self._cache.setdefault(inode.ino, inode)

    def unpin(self, inode: Inode) -> None:
        """Takes back one `pin`."""
        with self.lock:
            assert inode.pins > 0, "unpin without pin"
            inode.pins -= 1

    def _find_inode(self, ino: int) -> Inode | None:
        if ino in self._dirty:
            return self._dirty[ino]
        live = self._evicted.get(ino)
        if live is not None:
            return live
        key = inode_key(ino)
        if ino in self._sealed_inodes:
            record = self._sealed_inodes[ino]
            return None if record is None else decode_inode(key, record, Inode)
        with self._env.read() as transaction:
            value = transaction.get(INODES, key)
            return None if value is None else decode_inode(key, value, Inode)

    def _keep(self, inode: Inode) -> None:
        """Puts it into the cache, and drops old ones when that is full."""
        cache = self._cache
        cache[inode.ino] = inode
        if len(cache) > max(INODE_CACHE_MAX, self._evict_at):
            self._evict(inode)

    def _evict(self, newest: Inode) -> None:
        """Drops the oldest inodes that are not pinned; pinned ones go to the end of the queue."""
        cache = self._cache
        batch = max(1, INODE_CACHE_MAX // _EVICTED_SHARE)
        surplus = len(cache) - INODE_CACHE_MAX + batch
        for ino, old in list(islice(cache.items(), 2 * surplus)):
            del cache[ino]
            if old.pins or old is newest:
                cache[ino] = old
                continue
            self._evicted[ino] = old
            surplus -= 1
            if not surplus:
                break
        # If too many are pinned, do not look again at each insertion.
        self._evict_at = 0 if len(cache) <= INODE_CACHE_MAX else len(cache) + batch

    def _remove_inode(self, inode: Inode) -> None:
        """Its record goes with the next commit; the number never comes back."""
        inode.reaped = True
        self._dirty[inode.ino] = None
        self._cache.pop(inode.ino, None)
        self._evicted.pop(inode.ino, None)
