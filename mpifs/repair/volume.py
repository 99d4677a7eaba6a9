"""What the checks see of a volume, mounted or at rest."""

from __future__ import annotations

from typing import Protocol

from mpifs.core.superblock import Superblock
from mpifs.core.types import ChunkKey, ChunkRef, StoreEntry
from mpifs.index.amendment import Amendment
from mpifs.kv import ReadTransaction


class VolumeView(Protocol):
    """The index side of a volume.  Used by the one thread of a run.

    At rest "current" is what the disk says; mounted it is the live index, uncommitted changes
    included, so that what changes meanwhile is told from what is damaged.
    """

    geometry: Superblock
    is_live: bool

    def snapshot(self) -> ReadTransaction:
        """A committed state of the index's databases (core.records), for a `with` block."""
        ...

    def stores(self) -> list[StoreEntry]:
        """The table of stores, in the order of placement; [] if it cannot be read."""
        ...

    def amend(self, amendment: Amendment) -> bool:
        """Applies it durably; False (nothing done) if an expected row is another one now.

        Raises MpifsError (FullError, DamageError)."""
        ...

    def current_ref(self, ino: int, chunk: int) -> ChunkRef | None:
        """The ref as it is now, None if there is none.  Raises DamageError if unreadable."""
        ...

    def current_garbage(self, key: ChunkKey) -> bool:
        """Whether the chunk is listed for deletion now."""
        ...

    def current_size(self, ino: int) -> int | None:
        """The size of a file as it is now, None if it is gone.  Raises DamageError."""
        ...

    def settle(self) -> None:
        """When it returns, every chunk that was stored before the call is committed, garbage, or
        an orphan for good.  At rest: nothing to do."""
        ...

    def copy_row(self, database: str, key: bytes) -> bytes | None:
        """The row in the newest good copy of the index; None if there is no copy or no row."""
        ...

    def next_generation(self) -> int:
        """A generation never handed out before, whatever crashes."""
        ...
