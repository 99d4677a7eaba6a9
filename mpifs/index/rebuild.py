"""Makes an index's environment anew, from every row that can still be read somewhere.

Sources, the newest first: the damaged file's newest state, its state before that, a copy.  A row
of an older source is taken only where a newer one may have lost rows (a range of keys that it
could not reach) and has none under that key.  So what stands beside each other may be of different
ages: verify and repair reconcile it, and until then the row `restored` keeps it from being served.

Rows are taken as they are; a wrong byte in one is found by its guard later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from mpifs.core import records
from mpifs.core.checksum import Buffer
from mpifs.core.errors import DamageError
from mpifs.core.limits import REBUILD_BATCH_BYTES, RESTORE_NUMBER_GAP
from mpifs.core.records import Counters, InodeRecord
from mpifs.core.restored import Restored, encode_restored
from mpifs.core.superblock import Superblock
from mpifs.core.types import ROOT_INODE, StoreEntry
from mpifs.index.index import root_inode
from mpifs.kv import Environment, WriteTransaction
from mpifs.pagefile import PageFile

_KEY_BYTES_MAX = 511  # LMDB takes no longer keys
_NUMBER_MAX = 1 << 62  # no volume gets there; a forged number must not use up all others
_S_IFMT = 0o170000
_S_IFDIR = 0o040000

Range = tuple[bytes, "bytes | None"]
_Value = TypeVar("_Value")


class Numbers(NamedTuple):
    """The greatest inode number and generation that are known to be in use; 0: none."""

    inode: int = 0
    generation: int = 0

    def with_seen(self, inode: int, generation: int) -> Numbers:
        """With one more pair; impossible ones do not count."""
        return Numbers(
            max(self.inode, inode if inode < _NUMBER_MAX else 0),
            max(self.generation, generation if generation < _NUMBER_MAX else 0),
        )


@dataclass(slots=True)
class Sources:
    """How many rows came from where, and where rows may still be missing (database → ranges)."""

    own: int = 0
    older: int = 0
    copied: int = 0
    lost: dict[str, list[Range]] = field(default_factory=dict)


def rebuild_rows(
    environment: Environment,
    pages: PageFile | None,
    copy: PageFile | None,
    check: Callable[[], None],
) -> Sources:
    """Fills an empty environment with the rows of the damaged file `pages` and of the `copy`.

    `check` is called now and then and may raise to end it.  Raises FullError, DamageError (of the
    new environment).  Durable only after Environment.sync.
    """
    sources = Sources()
    writer = _RowWriter(environment, check)
    for database in records.DATABASES:
        lost: list[Range] = [(b"", None)]
        if pages is not None:
            sources.own += writer.add(database, pages.rows(database))
            lost = pages.lost_ranges(database)
            if lost:
                rows = _inside(pages.rows(database, older=True), lost)
                sources.older += writer.add(database, rows)
                lost = _shared(lost, pages.lost_ranges(database))
        if lost and copy is not None:
            sources.copied += writer.add(database, _inside(copy.rows(database), lost))
            lost = _shared(lost, copy.lost_ranges(database))
        if lost:
            sources.lost[database] = lost
    return sources


def settle_meta(
    environment: Environment,
    geometry: Superblock,
    stores: Sequence[StoreEntry],
    used: Numbers,
    restored: Restored,
    check: Callable[[], None],
) -> None:
    """Makes the totals of a rebuilt environment right: counters, limits that no number in use
    reaches, the table of stores (`stores` if its row cannot be read), a root, the sign `restored`.

    Raises FullError, DamageError.
    """
    counters, used = _count(environment, used, check)
    root = root_inode(geometry)
    root_key = records.inode_key(ROOT_INODE)
    with environment.write() as transaction:
        if transaction.get(records.INODES, root_key) is None:
            transaction.put(records.INODES, root_key, records.encode_inode(root))
            counters = counters._replace(directories=counters.directories + 1)
        for key, number in (
            (records.KEY_INODE_LIMIT, max(used.inode, ROOT_INODE)),
            (records.KEY_GENERATION_LIMIT, used.generation),
        ):
            stored = _readable(transaction, key, partial(records.decode_number, key))
            limit = max(number + 1, stored or 0) + RESTORE_NUMBER_GAP
            transaction.put(records.META, key, records.encode_number(key, limit))
        if _readable(transaction, records.KEY_STORES, records.decode_stores) is None:
            row = records.encode_stores(list(stores))
            transaction.put(records.META, records.KEY_STORES, row)
        transaction.put(records.META, records.KEY_COUNTERS, records.encode_counters(counters))
        transaction.put(records.META, records.KEY_RESTORED, encode_restored(restored))


class _RowWriter:
    """Puts rows into the environment, in transactions of REBUILD_BATCH_BYTES."""

    def __init__(self, environment: Environment, check: Callable[[], None]) -> None:
        self._environment = environment
        self._check = check

    def add(self, database: str, rows: Iterator[tuple[bytes, Buffer]]) -> int:
        """Adds the rows whose keys are not there yet; their number."""
        added = 0
        is_more = True
        while is_more:
            self._check()
            self._environment.preallocate_ahead(2 * REBUILD_BATCH_BYTES)
            with self._environment.write() as transaction:
                is_more = False
                room = REBUILD_BATCH_BYTES
                for key, value in rows:
                    if not 0 < len(key) <= _KEY_BYTES_MAX:
                        continue  # of a damaged page: no record of any database
                    added += transaction.put(database, key, value, overwrite=False)
                    room -= len(key) + len(value)
                    if room <= 0:
                        is_more = True
                        break
        return added


def _count(
    environment: Environment, used: Numbers, check: Callable[[], None]
) -> tuple[Counters, Numbers]:
    """Totals of the rows that can be read, and the numbers they use."""
    files = directories = payload_bytes = 0
    with environment.read() as transaction:
        for place, (key, value) in enumerate(transaction.scan(records.INODES)):
            if place % 4096 == 0:
                check()
            try:
                inode = records.decode_inode(key, value, InodeRecord)
            except DamageError:
                files += 1
                continue
            used = used.with_seen(inode.ino, 0)
            if inode.mode & _S_IFMT == _S_IFDIR:
                directories += 1
            else:
                files += 1
        for place, (key, value) in enumerate(transaction.scan(records.REFS)):
            if place % 4096 == 0:
                check()
            try:
                ref = records.decode_ref(key, value)
            except DamageError:
                continue
            payload_bytes += ref.length
            used = used.with_seen(records.decode_ref_key(key)[0], ref.generation)
        for key, value in transaction.scan(records.GARBAGE):
            try:
                records.decode_garbage(key, value)
            except DamageError:
                continue
            garbage = records.decode_garbage_key(key)
            used = used.with_seen(garbage.inode, garbage.generation)
        orphans = transaction.count(records.ORPHANS)
    return Counters(files, directories, payload_bytes, orphans), used


def _readable(
    transaction: WriteTransaction, key: bytes, decode: Callable[[Buffer], _Value]
) -> _Value | None:
    """A row of `meta`, or None if it is missing or damaged."""
    value = transaction.get(records.META, key)
    try:
        return None if value is None else decode(value)
    except DamageError:
        return None


def _inside(
    rows: Iterator[tuple[bytes, memoryview]], ranges: list[Range]
) -> Iterator[tuple[bytes, memoryview]]:
    """The rows whose keys are in one of the ranges; reads to the end.

    Requires: the ranges are in key order and do not overlap.
    """
    lows = [low for low, _ in ranges]
    for key, value in rows:
        place = bisect_right(lows, key) - 1
        if place >= 0:
            high = ranges[place][1]
            if high is None or key < high:
                yield key, value


def _shared(ranges: list[Range], others: list[Range]) -> list[Range]:
    """What two lists of ranges have in common.  Requires: as `_inside`."""
    found: list[Range] = []
    at = other_at = 0
    while at < len(ranges) and other_at < len(others):
        low, high = ranges[at]
        other_low, other_high = others[other_at]
        start = max(low, other_low)
        end = high if other_high is None else other_high if high is None else min(high, other_high)
        if end is None or start < end:
            found.append((start, end))
        if end == high:
            at += 1
        else:
            other_at += 1
    return found
