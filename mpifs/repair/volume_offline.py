"""A volume at rest, as the checks see it: what the disk says is what counts."""

from __future__ import annotations

from collections.abc import Callable

from mpifs import faultpoint
from mpifs.core import records
from mpifs.core.errors import MpifsError
from mpifs.core.types import ChunkKey, ChunkRef, StoreEntry
from mpifs.index.amendment import Amendment
from mpifs.index.raw import RawIndex
from mpifs.kv import ReadTransaction
from mpifs.repair.snapshot import Snapshot


class OfflineVolume:
    """The VolumeView of an index that this process alone has open.

    `copy_row` gives rows of the newest good copy of the index, or None.
    """

    is_live = False

    def __init__(
        self, index: RawIndex, copy_row: Callable[[str, bytes], bytes | None] | None = None
    ) -> None:
        self.geometry = index.geometry
        self._index = index
        self._copy_row = copy_row

    def snapshot(self) -> ReadTransaction:
        """What is on disk, for a `with` block."""
        return self._index.snapshot()

    def stores(self) -> list[StoreEntry]:
        """The table of stores, in the order of placement; [] if it cannot be read."""
        with self._index.snapshot() as transaction:
            try:
                return Snapshot(transaction).stores() or []
            except MpifsError:
                return []

    def amend(self, amendment: Amendment) -> bool:
        """Applies it durably; False (nothing done) if an expected row is another one now.

        Raises MpifsError (FullError, DamageError)."""
        faultpoint.reach("repair.commit")
        return self._index.amend(amendment)

    def current_ref(self, ino: int, chunk: int) -> ChunkRef | None:
        """The ref on disk, None if there is none.  Raises DamageError if unreadable."""
        with self._index.snapshot() as transaction:
            return Snapshot(transaction).ref(ino, chunk)

    def current_garbage(self, key: ChunkKey) -> bool:
        """Whether the chunk is listed for deletion."""
        with self._index.snapshot() as transaction:
            return transaction.get(records.GARBAGE, records.garbage_key(key)) is not None

    def current_size(self, ino: int) -> int | None:
        """The size of a file, None if there is no such inode.  Raises DamageError."""
        with self._index.snapshot() as transaction:
            record = Snapshot(transaction).inode(ino)
            return None if record is None else record.stable_size

    def settle(self) -> None:
        """Nothing changes but by the run itself."""

    def copy_row(self, database: str, key: bytes) -> bytes | None:
        """The row in the newest good copy of the index; None if there is no copy or no row."""
        return self._copy_row(database, key) if self._copy_row is not None else None

    def next_generation(self) -> int:
        """A generation never handed out before, whatever crashes."""
        return self._index.next_generation()
