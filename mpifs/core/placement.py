"""Which stores hold a chunk: round-robin from a per-inode start.

A pure function of the inode's start, the chunk index and the ordered list of stores.  The stores
that were chosen are written into the chunk ref, so that a later change of the list moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence


def start_of(inode: int, store_count: int) -> int:
    """Where the first chunk of an inode goes: consecutive files start on consecutive stores."""
    return inode % store_count


def place(start: int, index: int, replicas: int, stores: Sequence[int]) -> tuple[int, ...]:
    """Ids of the stores for chunk `index`, `replicas` different ones (fewer if there are fewer).

    Requires: stores is not empty and has no duplicates.
    """
    count = len(stores)
    first = start + index
    return tuple(stores[(first + copy) % count] for copy in range(min(replicas, count)))
