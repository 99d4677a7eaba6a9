"""An amendment: a change of raw index rows that is made only if nothing else has changed them.

Repair works on what it has read; a mounted volume goes on meanwhile.  So each amendment says which
rows it was computed from; in the transaction that applies it they must still be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class RowKey(NamedTuple):
    """Place of a row: database (core.records) and encoded key."""

    database: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Amendment:
    """Rows to write (None: to delete), and what these and other rows must still be (None: no row).

    A row that is written and not in `expected` is written whatever stands there.  The deltas are
    added to the counters in the same transaction.
    """

    rows: Mapping[RowKey, bytes | None]
    expected: Mapping[RowKey, bytes | None] = field(default_factory=dict)
    files: int = 0
    directories: int = 0
    payload_bytes: int = 0
    orphans: int = 0
