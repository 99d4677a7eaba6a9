"""A small volume for the tests of the index."""

from __future__ import annotations

import os
from pathlib import Path

from mpifs.core.superblock import Role, Superblock
from mpifs.core.types import ChecksumKind, StoreEntry, StoreId, StoreState
from mpifs.index.index import Index

STORES = [StoreEntry(StoreId(i), bytes([i]) * 16, StoreState.FRESH) for i in range(1, 5)]


def make_volume(folder: Path | str) -> str:
    path = os.path.join(folder, "index")
    uuid = b"u" * 16
    block = Superblock(Role.INDEX, uuid, uuid, 0, 1 << 20, 1, ChecksumKind.XXH3_128, 1)
    Index.make(path, block, STORES)
    return path


def open_volume(path: str, **options: int) -> Index:
    return Index.open(path, sync="relaxed", preallocate=False, **options)
