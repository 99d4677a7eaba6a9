"""A mounted volume, as the checks see it: committed states, and the live index behind them."""

from __future__ import annotations

from collections.abc import Callable

from mpifs import faultpoint
from mpifs.core import records
from mpifs.core.errors import PosixError
from mpifs.core.types import ChunkKey, ChunkRef, StoreEntry
from mpifs.index.amendment import Amendment
from mpifs.index.index import Index
from mpifs.kv import ReadTransaction


class LiveVolume:
    """The VolumeView of an index that serves a mount.  Used by the one thread of a run.

    `settle` returns once everything stored before the call is committed or garbage; `on_amended`
    is told each amendment that was made, so that other caches of what it changed are dropped.
    Requires: the calling thread holds no lock of the index or the vfs.
    """

    is_live = True

    def __init__(
        self,
        index: Index,
        settle: Callable[[], None],
        copy_row: Callable[[str, bytes], bytes | None] | None = None,
        on_amended: Callable[[Amendment], None] | None = None,
    ) -> None:
        self.geometry = index.geometry
        self._index = index
        self._settle = settle
        self._copy_row = copy_row
        self._on_amended = on_amended

    def snapshot(self) -> ReadTransaction:
        """A committed state, for a `with` block."""
        return self._index.snapshot()

    def stores(self) -> list[StoreEntry]:
        """The table of stores, in the order of placement."""
        return self._index.stores()

    def amend(self, amendment: Amendment) -> bool:
        """Applies it durably; False (nothing done) if an expected row is another one now.

        Rows with changes that are not committed yet count as changed; they are given one commit.
        Raises MpifsError (FullError, DamageError)."""
        faultpoint.reach("repair.commit")
        if not self._index.amend(amendment):
            self._settle()
            if not self._index.amend(amendment):
                return False
        if self._on_amended is not None:
            self._on_amended(amendment)
        return True

    def current_ref(self, ino: int, chunk: int) -> ChunkRef | None:
        """The ref as it is now, None if there is none.  Raises DamageError if unreadable."""
        return self._index.ref_of(ino, chunk)

    def current_garbage(self, key: ChunkKey) -> bool:
        """Whether the chunk is listed for deletion now."""
        return self._index.is_garbage(key)

    def current_size(self, ino: int) -> int | None:
        """The size of a file as it is now, None if it is gone.  Raises DamageError."""
        try:
            return self._index.inode(ino).size
        except PosixError:
            return None

    def settle(self) -> None:
        """When it returns, every chunk that was stored before the call is committed, garbage, or
        an orphan for good."""
        self._settle()

    def copy_row(self, database: str, key: bytes) -> bytes | None:
        """The row as memory has it (inodes), else in the newest good copy of the index; None if
        there is no copy or no row."""
        if database == records.INODES and len(key) == 8:
            remembered = self._index.remembered_inode(int.from_bytes(key, "big"))
            if remembered is not None:
                return remembered
        return self._copy_row(database, key) if self._copy_row is not None else None

    def next_generation(self) -> int:
        """A generation never handed out before, whatever crashes."""
        return self._index.next_generation()
