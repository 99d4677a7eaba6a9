"""What `status --watch`, `metrics` and `profile` show: rank 0's counters, since the mount.

The call `figures` of the control socket.  Everything is a sum; who watches asks twice and divides
(figures_between.py), so any number may watch at their own pace.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from mpifs.data.local_stores import LocalStores
from mpifs.fuse.figures import FIGURES
from mpifs.job.crew import Crew
from mpifs.job.report import Document
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs


def figures(
    status: Callable[[], Document],
    scrub: Callable[[], Document],
    vfs: Vfs,
    client: Client,
    crew: Crew,
    local: LocalStores,
) -> Document:
    """The document.  Any thread."""
    sums = client.traffic.sums()
    workers: list[dict[str, Any]] = []
    for worker in crew.workers:
        found = sums.get(worker.rank)
        workers.append(
            {
                "id": worker.store,
                "rank": worker.rank,
                "restarts": worker.restarts,
                "requests": found.requests if found else 0,
                "sent_bytes": found.sent_bytes if found else 0,
                "received_bytes": found.received_bytes if found else 0,
                "seconds": found.seconds if found else 0.0,
            }
        )
    cache = vfs.reader.cache
    return {
        "status": status(),
        "clock_s": time.monotonic(),
        "fuse": FIGURES.document(),
        "workers": workers,
        "memory": {
            "dirty_bytes": vfs.writeback.dirty_bytes,
            "cached_bytes": cache.bytes_used,
            "cache_hits": cache.hits,
            "cache_misses": cache.misses,
            "local_read_bytes": local.bytes_read,
        },
        "commits": {
            "count": vfs.committer.commits,
            "seconds": vfs.committer.commit_seconds,
        },
        "scrub": scrub(),
    }
