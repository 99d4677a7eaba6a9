"""The register of kinds: name → how to plant it, and when."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from .planted import Planted
from .volume import NothingLeftError, RestingVolume

Plant = Callable[[RestingVolume], Planted]


class Stage(IntEnum):
    """In which order kinds of a mixture are planted."""

    TREES = 0
    """Through LMDB; they need a tree of directories that nothing was done to."""
    FOLDERS = 1
    """Through LMDB; they need a directory that nothing was done to, nor to what is in it."""
    ROWS = 2
    """Through LMDB."""
    BITS = 3
    """In the files; LMDB still opens them."""
    FILES = 4
    """Files or folders as such: LMDB may refuse them afterwards."""


class Kind(NamedTuple):
    """One kind of fault.  `family`: chunk, ref (to one), store, index (as a whole), copy (of the
    index), record (damaged; root: of the root), name (whole in itself and wrong) or total."""

    name: str
    family: str
    stage: Stage
    plant: Plant
    replicas: int
    """The volume must have so many at least."""
    stores: int
    """How many stores as a whole it takes."""

    @property
    def summary(self) -> str:
        """The first line of its description."""
        return (self.plant.__doc__ or "").partition("\n")[0]


KINDS: dict[str, Kind] = {}


def kind(
    name: str, family: str, stage: Stage, *, replicas: int = 1, stores: int = 0
) -> Callable[[Plant], Plant]:
    """Registers a function that plants one fault and says what it planted."""

    def register(plant: Plant) -> Plant:
        assert name not in KINDS, name
        KINDS[name] = Kind(name, family, stage, plant, replicas, stores)
        return plant

    return register


def plant(volume: RestingVolume, names: list[str], *, skips: bool = False) -> list[Planted]:
    """Plants the kinds, each as often as it is named, rows first and whole files last.

    Raises NothingLeftError when the volume has no place left for one (`skips`: leaves it out); what
    was planted stays.
    """
    volume.reserve_stores(sum(KINDS[name].stores for name in names))
    ordered = sorted(names, key=lambda name: KINDS[name].stage)
    planted = []
    for name in ordered:
        try:
            planted.append(KINDS[name].plant(volume))
        except NothingLeftError:
            if not skips:
                raise
    return planted
