"""Puts a Vfs together from its rooms: the one place that picks the concrete classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from mpifs.core.buffers import BufferPool
from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import (
    CACHE_BYTES_MAX,
    COMMIT_INTERVAL_S,
    DIRTY_BYTES_MAX,
    READAHEAD_BYTES_MAX,
    READAHEAD_THREADS,
)
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.data.gather import Gather
from mpifs.data.local_stores import LocalStores
from mpifs.data.parts import Parts
from mpifs.data.reclaim import Reclaim
from mpifs.data.scatter import Scatter
from mpifs.data.space import Space
from mpifs.data.stores import Stores
from mpifs.index.index import Index
from mpifs.transport.client import Client
from mpifs.transport.endpoint import Endpoint
from mpifs.vfs.cache import ChunkCache
from mpifs.vfs.committer import Committer
from mpifs.vfs.dirty_memory import DirtyMemory
from mpifs.vfs.facade import Vfs
from mpifs.vfs.reader import Reader
from mpifs.vfs.small_ahead import SmallAhead
from mpifs.vfs.writeback import WriteBack

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VfsOptions:
    """What a mount may set of the data path; bytes and seconds."""

    commit_interval_s: float = COMMIT_INTERVAL_S
    dirty_bytes_max: int = DIRTY_BYTES_MAX
    cache_bytes_max: int = CACHE_BYTES_MAX
    noatime: bool = False
    reads_past_workers: bool = True


def build_vfs(
    index: Index,
    endpoint: Endpoint,
    client: Client,
    stores: Stores,
    options: VfsOptions,
    on_damage: Callable[[ChunkKey, ChunkRef, int], None] = lambda key, ref, store: None,
    local: LocalStores | None = None,
) -> Vfs:
    """A Vfs over stores that are being served; `local` are those on this host.

    `on_damage` hears of images that a reader found damaged or missing; it must not wait.
    The caller closes the Vfs, then the index.
    """
    kind = index.geometry.checksum

    def found_damage(key: ChunkKey, ref: ChunkRef, store: int, sentence: str) -> None:
        path = index.path_of(key.inode).decode(errors="backslashreplace")
        log.error(
            "%s: chunk %d (generation %d) on worker %d: %s",
            path,
            key.chunk,
            key.generation,
            store,
            sentence,
        )
        on_damage(key, ref, store)

    # With a capacity each store tells its own share, also of a disk that others use.
    space = Space(stores.free, {} if index.geometry.capacity_bytes else stores.disk_of)
    scatter = Scatter(endpoint, client, stores.rank_of, kind, space.told)
    local = local or LocalStores(lambda store, side: None)
    gather = Gather(client, stores, kind, found_damage, local)
    parts = Parts(client, stores, kind, found_damage, local)
    pool_bytes = options.dirty_bytes_max + options.cache_bytes_max // 4
    pool = BufferPool(IMAGE_HEADER_BYTES, pool_bytes)
    cache = ChunkCache(gather.fetch, parts, options.cache_bytes_max, pool)
    ahead = min(READAHEAD_BYTES_MAX, options.cache_bytes_max // 8)
    small_ahead = SmallAhead(index, cache, gather.fetch_many, gather.is_near)
    reader = Reader(index, cache, small_ahead, READAHEAD_THREADS, ahead)
    committer = Committer(
        index,
        Reclaim(client, stores.rank_of, stores.live_stores, space.told),
        options.commit_interval_s,
    )
    writeback = WriteBack(
        index,
        scatter,
        reader,
        space,
        stores,
        DirtyMemory(options.dirty_bytes_max, pool),
        committer.kick,
        committer.make_room,
    )
    return Vfs(index, scatter, reader, writeback, committer, noatime=options.noatime)
