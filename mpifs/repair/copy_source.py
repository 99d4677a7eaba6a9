"""The index as what is copied, and the check that it is worth being copied."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from mpifs.core import records
from mpifs.core.checksum import Buffer, guard64
from mpifs.core.errors import DamageError
from mpifs.core.superblock import Superblock
from mpifs.kv import ReadTransaction

_GUARD = struct.Struct("<Q")
_STEP = 4096  # rows, about 4 ms, between two pauses


class CopySource(Protocol):
    """What is copied: an open index.Index, or index.raw.RawIndex."""

    @property
    def geometry(self) -> Superblock:
        """The index's superblock."""
        ...

    @property
    def opened_generation(self) -> int:
        """The limit of generations on disk when it was opened."""
        ...

    def last_transaction(self) -> int:
        """Number of the last commit on disk."""
        ...

    def next_generation(self) -> int:
        """A generation never handed out before."""
        ...

    def snapshot(self) -> ReadTransaction:
        """A committed state, for a `with` block."""
        ...

    def copy_to(self, write: Callable[[Buffer], None]) -> int:
        """Passes a compacted copy of one committed state to `write`."""
        ...


def check_every_row_is_whole(source: CopySource, pause: Callable[[], None]) -> None:
    """Raises DamageError for a row that fails its guard: then an older copy, which may have it
    whole, must not be replaced.  `pause` is called every few milliseconds and may raise.
    """
    with source.snapshot() as transaction:
        for database in records.DATABASES:
            for place, (key, value) in enumerate(transaction.scan(database)):
                if place % _STEP == 0:
                    pause()
                row = bytes(key) + bytes(value)
                if len(value) < 8 or guard64(row[:-8]) != _GUARD.unpack(row[-8:])[0]:
                    raise DamageError(
                        f"the index has a damaged record ({database}, {row[: len(key)].hex()}); "
                        "run mpifs fsck"
                    )
