"""Chunk refs: which generation of a chunk counts, and which stores hold it.

A ref that is replaced or dropped becomes garbage in the same transaction; so the stores are told
to delete a chunk only after no committed index names it.  Invariant: an inode's bytes_stored is
the sum of the lengths of its refs, and no ref has length 0 (so bytes_stored 0 means no refs).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from itertools import islice

from mpifs.core.limits import DROP_COUNT_MAX
from mpifs.core.records import REFS, decode_ref, decode_ref_key, inode_key, ref_key
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.index.inode import Inode
from mpifs.index.memtable import UNKNOWN, merged
from mpifs.index.state import State
from mpifs.kv import ReadTransaction


class Refs(State):
    """Reading and changing chunk refs.  Any thread; each call is atomic."""

    def ref(self, inode: Inode, chunk: int) -> ChunkRef | None:
        """The ref of a chunk, None for a hole."""
        with self.lock:
            return self._ref(inode.ino, chunk) if inode.bytes_stored else None

    def refs(self, ino: int, first: int = 0, limit: int = 1024) -> list[tuple[int, ChunkRef]]:
        """At most `limit` refs of an inode in chunk order, from chunk `first` on; O(limit)."""
        with self.lock, self._env.read() as transaction:
            changed = ino in self._refs.top or ino in self._refs.sealed
            disk = _rows(transaction, ino, first)
            rows = merged(self._refs.changes(ino, first), disk) if changed else disk
            found = list(islice(rows, limit))
            del rows
            disk.close()
            return found

    def set_refs(self, inode: Inode, refs: Iterable[tuple[int, ChunkRef]]) -> None:
        """Chunks have been stored: their refs count from now on, the replaced ones are garbage.

        A ref of the same generation as the old one (other stores) replaces it without garbage.
        On an inode that is being reaped the new refs themselves become garbage.
        Requires: lengths above 0, at most REPLICAS_MAX stores.
        """
        with self.lock:
            stored = inode.bytes_stored
            try:
                for chunk, ref in refs:
                    stored += self._replace(inode, chunk, ref, bool(stored))
            finally:
                self._set_stored(inode, stored)

    def drop_refs(
        self, inode: Inode, first_chunk: int, last_chunk: int | None = None
    ) -> int | None:
        """The chunks first_chunk..last_chunk (both included; None: to the end) become holes.

        Drops at most DROP_COUNT_MAX refs.  Gives None when done, else the chunk to go on with as
        the next `first_chunk` (a plain repetition would walk over what is dropped already).
        """
        with self.lock:
            if not inode.bytes_stored:
                return None
            ino = inode.ino
            stored = inode.bytes_stored
            rest = None
            for count, (chunk, ref) in enumerate(self.refs(ino, first_chunk, DROP_COUNT_MAX + 1)):
                if last_chunk is not None and chunk > last_chunk:
                    break
                if count == DROP_COUNT_MAX:
                    rest = chunk
                    break
                self._garbage.put(0, ChunkKey(ino, chunk, ref.generation), ref.stores)
                self._refs.put(ino, chunk, None)
                stored -= ref.length
            self._set_stored(inode, stored)
            return rest

    def _replace(self, inode: Inode, chunk: int, ref: ChunkRef, has_refs: bool) -> int:
        """Puts one ref in its place; gives by how many bytes the payload grows."""
        assert ref.length > 0, "a ref has at least one byte"
        ino = inode.ino
        if inode.reaped:
            self._garbage.put(0, ChunkKey(ino, chunk, ref.generation), ref.stores)
            return 0
        old = self._ref(ino, chunk) if has_refs else None
        self._refs.put(ino, chunk, ref)
        if old is None:
            return ref.length
        if old.generation != ref.generation:
            self._garbage.put(0, ChunkKey(ino, chunk, old.generation), old.stores)
        return ref.length - old.length

    def _set_stored(self, inode: Inode, stored: int) -> None:
        if stored != inode.bytes_stored:
            self._payload_bytes += stored - inode.bytes_stored
            inode.bytes_stored = stored
            self._dirty[inode.ino] = inode

    def _ref(self, ino: int, chunk: int) -> ChunkRef | None:
        found = self._refs.find(ino, chunk)
        if found is not UNKNOWN:
            return found
        key = ref_key(ino, chunk)
        with self._env.read() as transaction:
            value = transaction.get(REFS, key)
            return None if value is None else decode_ref(key, value)


def _rows(
    transaction: ReadTransaction, ino: int, first: int
) -> Generator[tuple[int, ChunkRef], None, None]:
    for key, value in transaction.scan(REFS, ref_key(ino, first), inode_key(ino + 1)):
        yield decode_ref_key(key)[1], decode_ref(key, value)
