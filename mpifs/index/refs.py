"""Chunk refs: which generation of a chunk counts, and which stores hold it.

A ref that is replaced or dropped becomes garbage in the same transaction; so the stores are told
to delete a chunk only after no committed index names it.  Invariant: an inode's bytes_stored is
the sum of the lengths of its refs, and no ref has length 0 (so bytes_stored 0 means no refs).

A ref that is gone looks like a hole, and a hole reads as zeros.  So a hole of an inode that comes
from disk is believed only after its refs have been summed once: if they do not add up to
bytes_stored, a ref is missing or damaged, and each hole may be the chunk that is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from itertools import islice

from mpifs import faultpoint
from mpifs.core.errors import DamageError
from mpifs.core.limits import DROP_COUNT_MAX
from mpifs.core.mending import correct_record
from mpifs.core.records import REFS, decode_ref, decode_ref_key, inode_key, ref_key
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.index.inode import NO_LEFTOVERS, Inode, Trust
from mpifs.index.memtable import UNKNOWN, merged
from mpifs.index.state import State
from mpifs.kv import ReadTransaction

_DAMAGED = ChunkRef(0, 0, b"", ())
"""Stands for a ref that cannot be read."""


class Refs(State):
    """Reading and changing chunk refs.  Any thread; each call is atomic."""

    def ref(self, inode: Inode, chunk: int) -> ChunkRef | None:
        """The ref of a chunk, None for a hole.

        Raises DamageError if the ref is damaged, or missing where a hole cannot be believed.
        """
        with self.lock:
            if not inode.bytes_stored:
                return None
            if chunk * inode.chunk_size >= inode.loaded_size:
                self._drop_leftovers(inode)
            found = self._ref(inode.ino, chunk)
        if found is None and inode.trust is not Trust.COMPLETE:
            self.check_holes(inode)
        return found

    def check_holes(self, inode: Inode) -> None:
        """Raises DamageError if a hole of the inode may be a chunk whose ref is lost.

        Takes 2 µs per ref of the inode, in steps that leave the index usable, the first time.
        """
        if inode.trust is Trust.SHORT or (
            inode.trust is not Trust.COMPLETE and not self._adds_up(inode)
        ):
            raise DamageError(
                f"inode {inode.ino}: a chunk is no longer in the index, so what seems to be a "
                f"hole may be lost data; run mpifs fsck"
            )

    def refs(self, ino: int, first: int = 0, limit: int = 1024) -> list[tuple[int, ChunkRef]]:
        """At most `limit` refs of an inode in chunk order, from chunk `first` on; O(limit).

        Raises DamageError if one of them is damaged.
        """
        with self.lock:
            inode = self._cache.get(ino)
            if inode is not None and inode.size > inode.loaded_size:
                self._drop_leftovers(inode)
            found = self._refs_anyhow(ino, first, limit)
            for chunk, ref in found:
                if ref is _DAMAGED:
                    self._ref(ino, chunk)  # raises, and says what is wrong
            return found

    def _refs_anyhow(self, ino: int, first: int, limit: int) -> list[tuple[int, ChunkRef]]:
        """As `refs`, but a damaged one is given as _DAMAGED."""
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
        On an inode that is being reaped the new refs themselves become garbage.  A damaged ref
        is replaced like any other.
        Requires: lengths above 0, at most REPLICAS_MAX stores.
        """
        with self.lock:
            stored = inode.bytes_stored
            if not stored:
                inode.trust = Trust.COMPLETE  # there is no ref that could be missing
                inode.loaded_size = NO_LEFTOVERS
            try:
                for chunk, ref in refs:
                    if chunk * inode.chunk_size >= inode.loaded_size:
                        self._set_stored(inode, stored)
                        self._drop_leftovers(inode)
                        stored = inode.bytes_stored
                    stored += self._replace(inode, chunk, ref, stored)
            finally:
                self._set_stored(inode, stored)
        faultpoint.reach("index.refs")

    def drop_refs(
        self, inode: Inode, first_chunk: int, last_chunk: int | None = None
    ) -> int | None:
        """The chunks first_chunk..last_chunk (both included; None: to the end) become holes.

        Drops at most DROP_COUNT_MAX refs.  Gives None when done, else the chunk to go on with as
        the next `first_chunk` (a plain repetition would walk over what is dropped already).
        Damaged refs are dropped, too; their chunks are left to mpifs fsck.
        """
        with self.lock:
            if not inode.bytes_stored:
                return None
            ino = inode.ino
            stored = inode.bytes_stored
            rest = None
            found = self._refs_anyhow(ino, first_chunk, DROP_COUNT_MAX + 1)
            for count, (chunk, ref) in enumerate(found):
                if last_chunk is not None and chunk > last_chunk:
                    break
                if count == DROP_COUNT_MAX:
                    rest = chunk
                    break
                if ref is _DAMAGED:
                    ref = self._damaged_ref(inode, chunk, stored)
                if ref.generation:
                    self._garbage.put(0, ChunkKey(ino, chunk, ref.generation), ref.stores)
                self._refs.put(ino, chunk, None)
                stored -= ref.length
            if stored and rest is last_chunk is None and not self._refs_anyhow(ino, 0, 1):
                stored = 0  # what was missing is gone for good, by the user's will
            self._set_stored(inode, stored)
            return rest

    def _drop_leftovers(self, inode: Inode) -> None:
        """Drops refs that begin at or past the end that the inode had when it was loaded: a crash
        left them, and they must not show when the file grows.  Requires: the lock is held."""
        rest: int | None = -(-inode.loaded_size // max(1, inode.chunk_size))
        inode.loaded_size = NO_LEFTOVERS
        while rest is not None:
            rest = self.drop_refs(inode, rest)

    def _adds_up(self, inode: Inode) -> bool:
        """Whether the refs are as many bytes as they should be; decides the inode's trust.

        The lock is given up between steps.  A change meanwhile can only make the first sum wrong;
        the second one is made in one step.
        """
        if self._sum(inode.ino) != inode.bytes_stored:
            with self.lock:
                if self._sum(inode.ino) != inode.bytes_stored:
                    inode.trust = Trust.SHORT
                    return False
        inode.trust = Trust.COMPLETE
        return True

    def _sum(self, ino: int) -> int:
        total = first = 0
        while True:
            found = self._refs_anyhow(ino, first, DROP_COUNT_MAX)
            total += sum(ref.length for _, ref in found)
            if len(found) < DROP_COUNT_MAX:
                return total
            first = found[-1][0] + 1

    def _replace(self, inode: Inode, chunk: int, ref: ChunkRef, stored: int) -> int:
        """Puts one ref in its place; gives by how many bytes the payload grows from `stored`."""
        assert ref.length > 0, "a ref has at least one byte"
        ino = inode.ino
        if inode.reaped:
            self._garbage.put(0, ChunkKey(ino, chunk, ref.generation), ref.stores)
            return 0
        try:
            old = self._ref(ino, chunk) if stored else None
        except DamageError:
            old = self._damaged_ref(inode, chunk, stored)
        self._refs.put(ino, chunk, ref)
        if old is None:
            return ref.length
        if old.generation and old.generation != ref.generation:
            self._garbage.put(0, ChunkKey(ino, chunk, old.generation), old.stores)
        return ref.length - old.length

    def _damaged_ref(self, inode: Inode, chunk: int, stored: int) -> ChunkRef:
        """What a damaged ref was: as mended, else with its length alone, if there is no doubt.

        There is none if just what a whole chunk is long lacks of `stored`, the sum that should be.
        """
        if inode.trust is Trust.SHORT:
            inode.trust = Trust.UNKNOWN  # perhaps it adds up now
        key = ref_key(inode.ino, chunk)
        with self._env.read() as transaction:
            value = bytes(transaction.get(REFS, key) or b"")
        mended = correct_record(key, value)
        if mended is not None:
            with contextlib.suppress(DamageError):  # else it is the ref of another chunk
                return decode_ref(key, mended[1])
            return _DAMAGED
        missing = stored - self._sum(inode.ino)
        whole = min(inode.chunk_size, inode.stable_size - chunk * inode.chunk_size)
        return _DAMAGED._replace(length=missing) if 0 < missing == whole else _DAMAGED

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
        try:
            chunk = decode_ref_key(key)[1]
        except DamageError:
            continue  # no key of a chunk
        try:
            yield chunk, decode_ref(key, value)
        except DamageError:
            yield chunk, _DAMAGED
