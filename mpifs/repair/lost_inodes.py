"""A new record for an inode whose own is gone or cannot be read.

Taken, in this order: what of the record itself is right (only a field is impossible), the copy of
the index, what entries and refs say.  All counts are those of the index as it is, so that the new
record is right at once.  Nothing is taken from a clock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from stat import S_IFDIR, S_IFREG
from typing import NamedTuple

from mpifs.core import records
from mpifs.core.checksum import guard64
from mpifs.core.errors import DamageError
from mpifs.core.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
from mpifs.core.placement import start_of
from mpifs.core.records import FLAG_XATTRS, INODES, InodeRecord, inode_key
from mpifs.core.types import ROOT_INODE
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.tree_edit import DIRECTORY, LINK, REGULAR, kind_of
from mpifs.repair.volume import VolumeView

ITSELF = "itself"
COPY = "copy"
NEW = "new"

_U32 = struct.Struct("<I")
_GUARD = struct.Struct("<Q")
# Places in the inode record (doc/format.md, section 4).
_MODE_AT = 8
_NANOSECONDS_AT = (88, 92, 96)
_BODY_BYTES_MIN = 104
_KINDS = frozenset((0o01, 0o02, 0o04, 0o06, 0o10, 0o12, 0o14))


class Rebuilt(NamedTuple):
    """A record and where it is from: ITSELF, COPY or NEW."""

    record: InodeRecord
    source: str


@dataclass(slots=True)
class RefTotals:
    """What the refs of an inode add up to; unreadable ones are counted and nothing more."""

    count: int = 0
    unreadable: int = 0
    stored: int = 0
    last: int = 0
    last_length: int = 0
    longest: int = 0
    even: int = 0
    """Length of all refs before the last one; 0 if they differ or there are none."""

    def size(self, chunk_size: int) -> int:
        """Where the last ref ends."""
        return self.last * chunk_size + self.last_length if self.count else 0


def ref_totals(snapshot: Snapshot, ino: int) -> RefTotals:
    """Reads all refs of an inode."""
    totals = RefTotals()
    lengths: set[int] = set()
    for row in snapshot.refs(ino, end=ino + 1):
        if row.ref is None:
            totals.unreadable += 1
            length = 0
        else:
            length = row.ref.length
        if totals.count and len(lengths) < 2:
            lengths.add(totals.last_length)
        totals.count += 1
        totals.stored += length
        totals.last, totals.last_length = row.chunk, length
        totals.longest = max(totals.longest, length)
    if len(lengths) == 1:
        totals.even = lengths.pop()
    return totals


def rebuild(
    view: VolumeView, snapshot: Snapshot, ino: int, links: int, place: tuple[int, bytes, int] | None
) -> Rebuilt | None:
    """The record that an inode should have; None if nothing tells what it was.

    `links` entries lead to it; `place` is one of them: directory, name, type.  Without one the
    record keeps the place that its source tells (which need not lead to it).
    """
    kind = place[2] if place is not None else 0
    base = _from_itself(snapshot, ino, kind)
    source = ITSELF
    if base is None:
        base = _from_copy(view, ino)
        source = COPY
    totals = ref_totals(snapshot, ino)
    if base is None:
        base = _anew(view, snapshot, ino, kind, place, totals)
        source = NEW
    if base is None:
        return None
    if place is not None:
        base = replace(base, parent=place[0], name=place[1])
    return Rebuilt(_with_counts(snapshot, base, links, totals), source)


def _from_itself(snapshot: Snapshot, ino: int, kind: int) -> InodeRecord | None:
    """The record with its impossible fields made possible, if its own guard is right."""
    key = inode_key(ino)
    value = snapshot.get(INODES, key)
    if value is None or len(value) < _BODY_BYTES_MIN + 8:
        return None
    body = bytearray(value[:-8])
    if _GUARD.pack(guard64(key + body)) != value[-8:]:
        return None
    for place in _NANOSECONDS_AT:
        if _U32.unpack_from(body, place)[0] >= records.NS_PER_S:
            _U32.pack_into(body, place, 0)
    (mode,) = _U32.unpack_from(body, _MODE_AT)
    if mode >> 12 not in _KINDS:
        _U32.pack_into(body, _MODE_AT, (kind or REGULAR) << 12 | mode & 0o7777)
    try:
        guard = _GUARD.pack(guard64(key + body))
        return records.decode_inode(key, bytes(body) + guard, InodeRecord)
    except DamageError:
        return None


def _from_copy(view: VolumeView, ino: int) -> InodeRecord | None:
    key = inode_key(ino)
    value = view.copy_row(INODES, key)
    if value is None:
        return None
    try:
        return records.decode_inode(key, value, InodeRecord)
    except DamageError:
        return None


def _anew(
    view: VolumeView,
    snapshot: Snapshot,
    ino: int,
    kind: int,
    place: tuple[int, bytes, int] | None,
    totals: RefTotals,
) -> InodeRecord | None:
    """A regular file, for its owner alone, if it has refs; a directory if it was one; else None."""
    if snapshot.tallies.of_directory(ino).entries or kind == DIRECTORY:
        mode = S_IFDIR | 0o700
    elif totals.count and kind in (0, REGULAR):
        mode = S_IFREG | 0o600
    else:
        return None
    above = _readable(snapshot, place[0]) if place is not None else None
    above = above or _readable(snapshot, ROOT_INODE)
    chunk_size = above.chunk_size if above is not None else view.geometry.chunk_size
    time_ns = above.mtime_ns if above is not None else 0
    return InodeRecord(
        ino,
        mode,
        above.uid if above is not None else 0,
        above.gid if above is not None else 0,
        nlink=0,
        rdev=0,
        stable_size=0,
        bytes_stored=0,
        atime_ns=time_ns,
        mtime_ns=time_ns,
        ctime_ns=time_ns,
        parent=0,
        name=b"",
        start=start_of(ino, len(view.stores()) or 1),
        chunk_size=guess_chunk_size(totals, chunk_size),
        replicas=view.geometry.replicas,
        flags=0,
        target=b"",
    )


def guess_chunk_size(totals: RefTotals, usual: int) -> int:
    """The chunk size of a file whose record is gone, from the lengths of its chunks: all but the
    last one have it, if the file has no holes and was not written in pieces."""
    if totals.even >= CHUNK_BYTES_MIN and not totals.even & (totals.even - 1):
        return max(totals.even, _power_of_two(totals.longest))
    return max(usual, _power_of_two(totals.longest))


def _power_of_two(length: int) -> int:
    """The least possible chunk size for a chunk of that length."""
    return min(max(CHUNK_BYTES_MIN, 1 << max(0, length - 1).bit_length()), CHUNK_BYTES_MAX)


def _readable(snapshot: Snapshot, ino: int) -> InodeRecord | None:
    try:
        return snapshot.inode(ino)
    except DamageError:
        return None


def _with_counts(
    snapshot: Snapshot, record: InodeRecord, links: int, totals: RefTotals
) -> InodeRecord:
    """The record with counts and sizes as entries, refs and attributes have them."""
    attributes = snapshot.xattrs(record.ino, record.ino + 1)
    flags = record.flags & ~FLAG_XATTRS
    if next(attributes, None) is not None:
        flags |= FLAG_XATTRS
    kind = kind_of(record)
    if kind == DIRECTORY:
        tally = snapshot.tallies.of_directory(record.ino)
        return replace(
            record,
            nlink=2 + tally.subdirectories,
            stable_size=tally.entries,
            bytes_stored=0,
            flags=flags,
        )
    size = len(record.target) if kind == LINK else record.stable_size
    if kind == REGULAR:
        end = totals.size(record.chunk_size)
        # A copy of another state may know a length that was cut off since: holes would show it.
        size = max(size, end) if totals.stored == record.bytes_stored else end
    return replace(
        record,
        nlink=max(1, links),
        stable_size=size,
        bytes_stored=totals.stored,
        flags=flags,
    )
