"""What judging a batch of places shares: the volume, the stores, and what was seen before."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpifs.core.types import ChunkKey
from mpifs.repair.adopt import Adoption
from mpifs.repair.chunk_words import Owners
from mpifs.repair.facts import Facts
from mpifs.repair.heal import Healing
from mpifs.repair.lost_refs import LostRefs
from mpifs.repair.place_rules import Reach
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume import VolumeView


@dataclass(frozen=True, slots=True)
class Stray:
    """An intact image under a foreign key: where it stands, and what its payload is."""

    found: ChunkKey
    length: int
    checksum: bytes


@dataclass(slots=True)
class Judgement:
    """What a run of check_chunks remembers between its batches; bounded by FACTS_MAX each."""

    facts: Facts
    lost_refs: LostRefs
    adoption: Adoption | None
    strays: dict[tuple[int, ChunkKey], Stray] = field(default_factory=dict)
    """(store, chunk that the image names)."""
    claimed: set[tuple[int, ChunkKey]] = field(default_factory=set)
    """Strays that a finding puts back in their place."""


@dataclass(slots=True)
class Case:
    """One batch being judged.  `table`: the volume's stores in the order of placement; `draining`:
    those that get no new chunks."""

    view: VolumeView
    stores: StoreAccess
    judgement: Judgement
    owners: Owners
    healing: Healing
    reach: Reach
    table: list[int]
    data: bool
    draining: frozenset[int] = frozenset()
