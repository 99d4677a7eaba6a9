"""The words of mpifs as types.  One word, one meaning (DESIGN section 1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, NewType

InodeId = NewType("InodeId", int)
"""Number of a file object; never reused in a volume.  0 is no inode."""

StoreId = NewType("StoreId", int)
"""Identity of a durable chunk store in its volume, from 1.  Not a rank."""

Generation = NewType("Generation", int)
"""Number of one rewrite of a chunk, counted over the whole volume; never reused."""

ROOT_INODE = InodeId(1)

TIME_NOW = -(2**63)
"""As a time in ns: the present, when it is set (UTIME_NOW).  No clock shows it."""


class ChunkKey(NamedTuple):
    """Names one immutable stored chunk."""

    inode: int
    chunk: int
    generation: int


class ChunkRef(NamedTuple):
    """The index's record of a chunk.

    `length` counts payload bytes; `checksum` is of the payload; `stores` are the ids of the
    stores that hold a replica, the first one preferred.
    """

    generation: int
    length: int
    checksum: bytes
    stores: tuple[int, ...]


class ChecksumKind(IntEnum):
    """Checksum algorithms.  Numbers are stored; retired ones stay here and are never reused."""

    XXH3_128 = 1
    BLAKE3 = 2


class Stat(NamedTuple):
    """Attributes of an inode as stat(2) gives them; times in ns since 1970, blocks of 512 B."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class SpaceUse(NamedTuple):
    """Figures for statvfs(3): bytes in all and free, inodes in all and free."""

    total_bytes: int
    free_bytes: int
    files: int
    files_free: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: ids of the process behind a file system call."""

    uid: int
    gid: int
    pid: int = 0


class StoreState(IntEnum):
    """What the index knows of a store.  Numbers are stored."""

    FRESH = 1
    """Promised by mkfs; its folder is made when a rank first serves it."""
    ACTIVE = 2
    """Has been opened; must exist from now on."""
    DRAINING = 3
    """As ACTIVE, but gets no new chunks: what it holds is being moved to the other stores."""


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One row of the volume's table of stores."""

    store: int
    uuid: bytes
    state: StoreState


def opened(entry: StoreEntry) -> StoreEntry:
    """The row of a store that a rank has opened: from now on it must exist."""
    if entry.state is not StoreState.FRESH:
        return entry
    return StoreEntry(entry.store, entry.uuid, StoreState.ACTIVE)
