"""Chunks that no ref names any more, and the stores that are to delete them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpifs.core.errors import DamageError
from mpifs.core.limits import INDEX_ROWS_PER_PAGE
from mpifs.core.records import GARBAGE, decode_garbage, decode_garbage_key, garbage_key
from mpifs.core.types import ChunkKey
from mpifs.index.refs import Refs


class Garbage(Refs):
    """The list of garbage.  Any thread; each call is atomic."""

    def add_garbage(self, key: ChunkKey, stores: Iterable[int]) -> None:
        """A stored chunk that no ref names (a write that was given up)."""
        with self.lock:
            self._garbage.put(0, key, tuple(stores))

    def garbage(
        self, limit: int, after: ChunkKey | None = None
    ) -> list[tuple[ChunkKey, tuple[int, ...]]]:
        """At most `limit` chunks that may be deleted now, keys greater than `after`, in order.

        Only what is committed: no durable index names these chunks, whatever crashes.  Left out is
        what a damaged index must not make us delete: rows and refs that cannot be read, and a
        generation that a ref still names.  Verify tells of them.
        """
        start = b"" if after is None else garbage_key(after) + b"\0"
        found: list[tuple[ChunkKey, tuple[int, ...]]] = []
        if limit <= 0:
            return found
        with self.lock, self._env.read() as transaction:
            for raw, value in transaction.scan(GARBAGE, start):
                try:
                    key = decode_garbage_key(raw)
                    stores = decode_garbage(raw, value)
                    ref = self._ref(key.inode, key.chunk)
                except DamageError:
                    continue
                is_used = ref is not None and ref.generation == key.generation
                if not is_used and self._garbage.find(0, key) is not None:
                    found.append((key, stores))
                    if len(found) == limit:
                        break
        return found

    def forget_garbage(self, keys: Sequence[ChunkKey]) -> None:
        """The stores have deleted these chunks.  After a crash they may be listed once more."""
        with self.lock:
            for key in keys:
                self._garbage.put(0, key, None)
        self.room.strain(len(keys) // INDEX_ROWS_PER_PAGE)
