"""Reclaim: deletes superseded generations from their stores, in batches."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence

from mpifs import faultpoint
from mpifs.core import image
from mpifs.core.kinds import Kind
from mpifs.core.limits import BATCH_COUNT_MAX
from mpifs.core.types import ChunkKey
from mpifs.transport.client import Client, Pending

log = logging.getLogger(__name__)


class Reclaim:
    """Deletes chunks.  Deleting what is not there is no error, so a repetition is harmless."""

    def __init__(
        self,
        client: Client,
        rank_of: Callable[[int], int],
        live: Callable[[], list[int]],
        on_free: Callable[[int, int], None],
    ) -> None:
        self._live = live
        self._on_free = on_free
        self._client = client
        self._rank_of = rank_of

    def delete(self, garbage: Sequence[tuple[ChunkKey, tuple[int, ...]]]) -> list[ChunkKey]:
        """Deletes from all stores named; returns the keys that are gone everywhere.  A store that
        is not served or fails keeps its keys for the next call.

        Requires: garbage is durable in the index (no durable ref names these keys).
        """
        by_store: dict[int, list[ChunkKey]] = defaultdict(list)
        under_way: list[tuple[int, list[ChunkKey], Pending]] = []
        kept: set[ChunkKey] = set()
        live = set(self._live())
        for key, stores in garbage:
            if not live.issuperset(stores):
                kept.add(key)
            for store in live.intersection(stores):
                by_store[store].append(key)
        for store, keys in by_store.items():
            for first in range(0, len(keys), BATCH_COUNT_MAX):
                part = keys[first : first + BATCH_COUNT_MAX]
                try:
                    pending = self._client.start(
                        self._rank_of(store),
                        Kind.DELETE,
                        args=image.encode_keys(part),
                        items=len(part),
                    )
                except OSError as error:
                    log.warning("garbage stays on store %d for now: %s", store, error)
                    kept.update(part)
                    continue
                under_way.append((store, part, pending))
                faultpoint.reach("garbage.sent")
        for store, part, pending in under_way:
            try:
                self._on_free(store, pending.wait().header.free)
            except OSError as error:
                log.warning("garbage stays on store %d for now: %s", store, error)
                kept.update(part)
        return [key for key, _ in garbage if key not in kept]
