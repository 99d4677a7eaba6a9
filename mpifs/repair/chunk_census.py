"""What the chunks on the stores tell of a volume whose index is gone: which numbers are in use, how
many files they are of, how often each is stored.  Headers only; one pass over all stores at once.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from mpifs.core.errors import MpifsError
from mpifs.core.limits import REPLICAS_MAX
from mpifs.core.types import ChunkKey
from mpifs.index.rebuild import Numbers
from mpifs.repair.copies import COPY_INODE, CopyStores
from mpifs.repair.findings import Progress

log = logging.getLogger(__name__)
_CHECK_EVERY = 4096


class ChunkCensus(NamedTuple):
    """`used` counts the copies of the index, too; `replicas` is the most frequent number of stores
    that hold a chunk, 1 if there is none."""

    used: Numbers
    files: int
    chunks: int
    replicas: int


def take_census(stores: CopyStores, progress: Progress) -> ChunkCensus:
    """Lists all stores; one that fails is left out from there on.  Raises CancelledError."""
    used = Numbers()
    files = chunks = 0
    last = COPY_INODE
    times: Counter[int] = Counter()
    streams = [_keys(stores, store) for store in stores.live()]
    for place, (key, same) in enumerate(groupby(heapq.merge(*streams))):
        if place % _CHECK_EVERY == 0:
            progress.check()
        used = used.with_seen(key.inode, key.generation)
        if key.inode == COPY_INODE:
            continue
        chunks += 1
        files += key.inode != last
        last = key.inode
        times[min(sum(1 for _ in same), REPLICAS_MAX)] += 1
    replicas = max(times, key=lambda count: (times[count], count), default=1)
    return ChunkCensus(used, files, chunks, replicas)


def _keys(stores: CopyStores, store: int) -> Iterator[ChunkKey]:
    try:
        for header in stores.headers(store):
            if header.checksum_kind:  # else its key may be wrong, and its numbers with it
                yield header.key
    except MpifsError as error:
        log.warning("worker %d cannot list its chunks: %s", store, error)
