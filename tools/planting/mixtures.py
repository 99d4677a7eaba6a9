"""Which kinds can be planted together, chosen by a seed."""

from __future__ import annotations

import random

from . import chunks, index_files, index_names, index_records, stores
from .kinds import KINDS
from .volume import RestingVolume

ALL = (chunks, stores, index_records, index_names, index_files)
"""The modules that register kinds."""
SINGLE = ("store", "index", "total", "root")
"""Families that a mixture takes one of at most."""
OF_ROWS = ("ref", "record", "name", "total", "root")
"""Families that leave no trace when the index is lost as a whole."""


def mixture(volume: RestingVolume, count: int, seed: int) -> list[str]:
    """Names of `count` kinds that can be planted together."""
    chance = random.Random(seed)
    names = sorted(KINDS)
    chance.shuffle(names)
    has_copies = bool(index_files.copy_holders(volume))
    chosen: list[str] = []
    families: set[str] = set()
    for name in names:
        kind = KINDS[name]
        if kind.family in SINGLE and kind.family in families:
            continue
        if kind.family == "index" and families.intersection(OF_ROWS):
            continue
        if kind.family in OF_ROWS and "index" in families:
            continue
        if kind.family == "copy" and not has_copies:
            continue
        if len(chosen) < count and kind.replicas <= volume.geometry.replicas:
            chosen.append(name)
            families.add(kind.family)
    return chosen
