"""Plants faults (tools/planting) in copies of a volume, and says what of a volume must be equal."""

from __future__ import annotations

import copy
import hashlib
import shutil
from pathlib import Path

from mpifs.core import records
from mpifs.kv import Environment
from mpifs.repair.findings import LOST, Finding
from tests.repair.chunk_world import ChunkWorld, Row, told
from tools.planting import chunks as _chunks
from tools.planting import index_names as _names
from tools.planting import index_records as _records
from tools.planting.kinds import KINDS
from tools.planting.planted import Planted, complaints
from tools.planting.volume import STORE_DATABASES, RestingVolume

_REGISTERED = (_chunks, _names, _records)  # by being imported

CHUNK_KINDS = sorted(
    name
    for name, kind in KINDS.items()
    if kind.family == "chunk"
    or name.startswith(("ref-", "garbage-", "bytes-stored", "generation-limit", "size-small"))
)
"""Kinds that the chunk phase finds and repairs."""


def twin(world: ChunkWorld, folder: Path) -> ChunkWorld:
    """A copy of a volume at rest."""
    shutil.copytree(world.folder, folder)
    other = copy.copy(world)
    other.folder = folder
    other.contents = dict(world.contents)
    other.volume = copy.copy(world.volume)
    other.volume.folder = folder
    return other


def rows_of(world: ChunkWorld) -> Row:
    """The index as it is now, as a copy of it would show it later."""
    rows: dict[tuple[str, bytes], bytes] = {}
    environment = Environment(str(world.folder / "index"), records.DATABASES, preallocate=False)
    with environment.read() as transaction:
        for name in records.DATABASES:
            for key, value in transaction.scan(name):
                rows[name, bytes(key)] = bytes(value)
    environment.close()
    return lambda database, key: rows.get((database, bytes(key)))


def state(world: ChunkWorld) -> dict[tuple[str, str, bytes], bytes]:
    """All rows of the index, and what is stored, as digests."""
    found: dict[tuple[str, str, bytes], bytes] = {}
    folders = [(world.folder / "index", records.DATABASES)]
    for worker in range(1, world.volume.workers + 1):
        for side in ("small", "large"):
            folders.append((world.folder / f"worker-{worker}" / side, STORE_DATABASES[:2]))
    for folder, names in folders:
        environment = Environment(str(folder), names, preallocate=False)
        with environment.read() as rows:
            for name in names:
                for key, value in rows.scan(name):
                    place = (str(folder.relative_to(world.folder)), name, bytes(key))
                    found[place] = hashlib.sha1(value).digest()
        environment.close()
    return found


def troubles(
    world: ChunkWorld, resting: RestingVolume, planted: list[Planted], rows: Row | None
) -> list[str]:
    """Verify, read, repair, verify again, read again: what of it is not as it must be."""
    gone = frozenset(ino for fault in planted for ino in fault.gone)
    doubtful = resting.doubtful | resting.unsure
    before = state(world)
    found = [finding.document() for finding in world.check(copy_row=rows)]
    bad = complaints(planted, found, resting.lost(gone), doubtful)
    if state(world) != before:
        bad.append("a check changed the volume")
    left = [f for f in world.check(repair=True, copy_row=rows) if not f.repaired]
    bad += [f"left: {finding}" for finding in left if finding.severity != LOST]
    again = world.check(copy_row=rows)
    if set(told(again)) != set(told(left)):
        bad.append(f"a second run says {told(again)}, left was {told(left)}")
    return bad + _unread(world, resting, planted, gone)


def _unread(
    world: ChunkWorld, resting: RestingVolume, planted: list[Planted], gone: frozenset[int]
) -> list[str]:
    """Reads after the repair: wrong bytes, and what is not back although it is not lost."""
    lost = resting.lost(gone) | resting.doubtful
    loose = {ino for fault in planted for ino in fault.loose} | gone
    misses_some = {ino for ino, _ in resting.doubtful}  # any of its holes may be what is missing
    numbers = {path: ino for ino in resting.inodes for path in resting.paths(ino)}
    bad = []
    found = world.read()
    for path, pieces in world.wanted().items():
        ino = numbers[path.lstrip(b"/")]
        if path not in found:
            bad += [] if ino in loose else [f"{path!r} is gone"]
            continue
        for chunk, piece in enumerate(pieces):
            read = found[path][chunk] if chunk < len(found[path]) else b""
            is_hole = (ino, chunk) not in resting.refs and ino in misses_some
            if read is None and (ino, chunk) not in lost and not is_hole:
                bad.append(f"{path!r} chunk {chunk} is not back")
            if read is not None and read != piece and ino not in loose:
                bad.append(f"{path!r} chunk {chunk} has wrong bytes")
    return bad


def left_of(findings: list[Finding]) -> list[Finding]:
    """What a repair left."""
    return [finding for finding in findings if not finding.repaired]
