"""What `mpifs status` shows, as rank 0 knows it while a volume is served."""

from __future__ import annotations

import os
from typing import Any

from mpifs.core.checksum import name_of
from mpifs.core.superblock import Superblock
from mpifs.index.index import Index
from mpifs.job.config import JobConfig
from mpifs.job.crew import Crew
from mpifs.job.heal_service import HealService
from mpifs.vfs.facade import Vfs

Document = dict[str, Any]


def volume_part(index: Index) -> Document:
    """The key `volume` of the document."""
    return geometry_part(index.geometry, len(index.stores()))


def geometry_part(block: Superblock, workers: int) -> Document:
    """The same, as far as the index's superblock tells it."""
    return {
        "uuid": block.volume_uuid.hex(),
        "chunk_size": block.chunk_size,
        "replicas": block.replicas,
        "checksum": name_of(block.checksum),
        "workers": workers,
    }


def status(config: JobConfig, index: Index, vfs: Vfs, crew: Crew, heal: HealService) -> Document:
    """The document, and under `details` what is for people only.  Any thread."""
    stats = crew.stats()
    rows = []
    for worker in crew.workers:
        found = stats.get(worker.store)
        rows.append(
            {
                "id": worker.store,
                "state": worker.state,
                "pid": worker.pid,
                "host": worker.host,
                "chunks": found.chunks if found else None,
                "bytes": found.bytes if found else None,
                "free": found.free if found else None,
            }
        )
    counters = index.counters()
    cache = vfs.reader.cache
    return {
        "volume": volume_part(index),
        "mount": {
            "mountpoint": config.mountpoint or None,
            "pid": os.getpid(),
            "state": "mounted" if config.mountpoint else "serving",
        },
        "workers": rows,
        "files": counters.files,
        "bytes": counters.payload_bytes,
        "heal": heal.document(),
        "details": {
            "dirty_bytes": vfs.writeback.dirty_bytes,
            "cache_hits": cache.hits,
            "cache_misses": cache.misses,
            "reasons": {w.store: f"{w.state}: {w.reason}" for w in crew.workers if w.reason},
        },
    }
