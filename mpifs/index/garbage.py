"""Chunks that no ref names any more, and the stores that are to delete them."""

from __future__ import annotations

from collections.abc import Iterable

from mpifs.core.records import GARBAGE, decode_garbage, decode_garbage_key, garbage_key
from mpifs.core.types import ChunkKey
from mpifs.index.state import State


class Garbage(State):
    """The list of garbage.  Any thread; each call is atomic."""

    def add_garbage(self, key: ChunkKey, stores: Iterable[int]) -> None:
        """A stored chunk that no ref names (a write that was given up)."""
        with self.lock:
            self._garbage.put(0, key, tuple(stores))

    def garbage(
        self, limit: int, after: ChunkKey | None = None
    ) -> list[tuple[ChunkKey, tuple[int, ...]]]:
        """At most `limit` chunks that may be deleted now, keys greater than `after`, in order.

        Only what is committed: no durable index names these chunks, whatever crashes.
        """
        start = b"" if after is None else garbage_key(after) + b"\0"
        found: list[tuple[ChunkKey, tuple[int, ...]]] = []
        if limit <= 0:
            return found
        with self.lock, self._env.read() as transaction:
            for raw, value in transaction.scan(GARBAGE, start):
                key = decode_garbage_key(raw)
                if self._garbage.find(0, key) is not None:
                    found.append((key, decode_garbage(raw, value)))
                    if len(found) == limit:
                        break
        return found

    def forget_garbage(self, keys: Iterable[ChunkKey]) -> None:
        """The stores have deleted these chunks.  After a crash they may be listed once more."""
        with self.lock:
            for key in keys:
                self._garbage.put(0, key, None)
