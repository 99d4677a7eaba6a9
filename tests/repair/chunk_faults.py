"""Plants faults (tools/planting) in copies of a volume, and says what of a volume must be equal."""

from __future__ import annotations

import copy
import hashlib
import shutil
from pathlib import Path

from mpifs.core import records
from mpifs.kv import Environment
from tests.repair.chunk_world import ChunkWorld
from tools.planting import chunks, index_names, index_records
from tools.planting.kinds import KINDS
from tools.planting.volume import STORE_DATABASES

assert chunks and index_names and index_records  # registered by being imported

NEEDS_MORE = frozenset(("meta-stores-dropped", "size-small"))
"""Only a copy of the index mends these: without one nobody can know."""

CHUNK_KINDS = sorted(
    name
    for name, kind in KINDS.items()
    if kind.family == "chunk" or name.startswith(("ref-", "garbage-", "bytes-stored"))
)
INDEX_KINDS = sorted(
    name
    for name, kind in KINDS.items()
    if kind.family in ("record", "name", "total") and name not in NEEDS_MORE
)


def twin(world: ChunkWorld, folder: Path) -> ChunkWorld:
    """A copy of a volume at rest."""
    shutil.copytree(world.folder, folder)
    other = copy.copy(world)
    other.folder = folder
    other.volume = copy.copy(world.volume)
    other.volume.folder = folder
    return other


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
