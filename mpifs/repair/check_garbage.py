"""Rows of the list of chunks to delete, and the limit of generations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.mending import correct_record
from mpifs.core.types import ChunkKey
from mpifs.index.amendment import RowKey
from mpifs.repair import index_edits as edits
from mpifs.repair.facts import Facts
from mpifs.repair.findings import ERROR, Finding, Progress
from mpifs.repair.paths import path_of
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.volume import VolumeView

_CHECK_EVERY = 1024


def check_garbage_rows(
    view: VolumeView, snapshot: Snapshot, progress: Progress, facts: Facts
) -> Iterator[Finding]:
    """Every row can be read; notes in `facts` what they name."""
    for steps, (raw_key, value) in enumerate(snapshot.scan(records.GARBAGE)):
        if not steps % _CHECK_EVERY:
            progress.check()
        row = RowKey(records.GARBAGE, bytes(raw_key))
        found = bytes(value)
        if len(row.key) != 24:
            yield Finding(
                "check_garbage_rows",
                ERROR,
                "a row of the index's list of chunks to delete has a key of the wrong length",
                remedy=_changing(view, row, found),
            )
            continue
        key = records.decode_garbage_key(row.key)
        try:
            records.decode_garbage(row.key, found)
        except DamageError:
            yield _damaged(view, snapshot, row, found, key, facts)
        else:
            facts.highest = max(facts.highest, key.generation)


def _damaged(
    view: VolumeView,
    snapshot: Snapshot,
    row: RowKey,
    found: bytes,
    key: ChunkKey,
    facts: Facts,
) -> Finding:
    """Put right if one byte explains it, else forgotten: its chunk then shows as an orphan and is
    deleted only after it was looked at like any other."""
    fixed = correct_record(row.key, found)
    home, told = row, key
    if fixed is not None and len(fixed[0]) == 24:
        home, told = RowKey(records.GARBAGE, fixed[0]), records.decode_garbage_key(fixed[0])
        if facts.has_room():
            facts.moved_garbage.add(told)

    def put_right() -> bool:
        rows: dict[RowKey, bytes | None] = {row: None}
        expected: dict[RowKey, bytes | None] = {row: found}
        if fixed is not None:
            rows[home] = fixed[1]
            if home != row:
                expected[home] = None
        return edits.amend(view, rows, expected)

    return Finding(
        "check_garbage_rows",
        ERROR,
        "the row that lists this chunk for deletion is damaged: its space may stay in use",
        path_of(snapshot, told.inode),
        told.inode,
        told.chunk,
        remedy=put_right,
    )


def _changing(view: VolumeView, row: RowKey, found: bytes) -> Callable[[], bool]:
    return lambda: edits.change_row(view, row, found, None)


def check_generations_are_below_their_limit(
    view: VolumeView, highest: int, limit: int | None
) -> Iterator[Finding]:
    """Numbers from the limit on were never handed out: none may be in use, listed or stored."""
    if limit is not None and highest >= limit:
        yield Finding(
            "check_generations_are_below_their_limit",
            ERROR,
            f"generations up to {highest} are in use, but the index would hand out {limit} again: "
            "new data could be taken for old",
            remedy=lambda: edits.raise_generation_limit(view, highest),
        )
