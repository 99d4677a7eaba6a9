"""The index phase: all checks of records and names, in order, over one committed state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mpifs.core.errors import DamageError
from mpifs.repair.census import take_census
from mpifs.repair.check_directories import check_directory_counts, check_no_directory_cycles
from mpifs.repair.check_files import check_inode_fields, check_orphans, check_xattrs_have_inodes
from mpifs.repair.check_inodes_exist import check_inodes_exist
from mpifs.repair.check_names import CENSUS_CHECKS
from mpifs.repair.check_records import check_records_readable
from mpifs.repair.check_root import check_root
from mpifs.repair.check_totals import (
    check_counters,
    check_generation_limit,
    check_inode_limit,
    check_stores_table,
)
from mpifs.repair.findings import DAMAGE, Finding, Progress
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.volume import VolumeView


def check_index(view: VolumeView, progress: Progress) -> Iterator[Finding]:
    """Everything that the index says of itself.  Changes nothing; the findings' remedies do, and
    may be called as they come, in their order: each relies on those before it.  One that is left
    out makes later ones return False; the next run finds their places again.

    The index's read transaction is open until the iterator ends.
    """
    with view.snapshot() as transaction:
        snapshot = Snapshot(transaction)
        for check in _CHECKS:
            yield from _as_far_as_possible(check(view, snapshot, progress))


def _as_far_as_possible(findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of a check.  What it needs may be damaged itself, and the repair of that not
    planned (there is too much of it, or the page cannot be read): then the next run goes on."""
    try:
        yield from findings
    except DamageError as error:
        detail = f"this part of the index cannot be checked before the rest is repaired: {error}"
        yield Finding("check_index", DAMAGE, detail)


def _check_names(view: VolumeView, snapshot: Snapshot, progress: Progress) -> Iterator[Finding]:
    """The checks that need every inode's names, window by window."""
    first: int | None = 0
    while first is not None:
        census = take_census(snapshot, first, progress)
        yield from check_inodes_exist(view, snapshot, census, progress)
        for check in CENSUS_CHECKS:
            yield from check(view, snapshot, census, progress)
        first = census.end


_CHECKS: tuple[Callable[[VolumeView, Snapshot, Progress], Iterator[Finding]], ...] = (
    check_records_readable,
    check_inode_limit,
    check_generation_limit,
    check_stores_table,
    check_root,
    _check_names,
    check_no_directory_cycles,
    check_directory_counts,
    check_inode_fields,
    check_xattrs_have_inodes,
    check_orphans,
    check_inode_limit,  # once more: what is back has a number, too
    check_counters,
)
"""In this order: each relies on what those before it have planned."""

IndexCheck = Callable[[VolumeView, Progress], Iterator[Finding]]

INDEX_CHECKS: tuple[IndexCheck, ...] = (check_index,)
"""What a run calls, one after another."""
