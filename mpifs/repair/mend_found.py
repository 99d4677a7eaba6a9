"""Mending of single images that a reader found damaged or missing, from the other replicas.

The image is mended where it is if its payload is good (the store looks), else the verified image of
another replica takes its place, same key and generation.  Nothing is done for a chunk that the
index does not know so any more.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mpifs.core.errors import DamageError, MpifsError
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.repair.heal import Cure, Healing
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume import VolumeView

_log = logging.getLogger(__name__)


class FoundDamage(NamedTuple):
    """A store's image of a chunk that is not what the index says in `ref`."""

    key: ChunkKey
    ref: ChunkRef
    store: int


def mend_found(
    view: VolumeView, stores: StoreAccess, found: Iterable[FoundDamage]
) -> list[FoundDamage]:
    """Mends all of them; gives those that could not be mended and are still wanted.

    Requires: nobody else repairs this volume meanwhile.
    """
    healing = Healing(view, stores)
    bad: dict[tuple[ChunkKey, ChunkRef], set[int]] = defaultdict(set)
    for one in found:
        if one.store in one.ref.stores and _current_ref(view, one.key) == one.ref:
            bad[one.key, one.ref].add(one.store)
    remedies: list[tuple[FoundDamage, Callable[[], bool]]] = []
    for (key, ref), harmed in bad.items():
        sources = [store for store in ref.stores if store not in harmed]
        cure = Cure(key, ref, mends=dict.fromkeys(sorted(harmed), key), sources=sources)
        remedies += [
            (FoundDamage(key, ref, store), healing.cure(cure, store)) for store in sorted(harmed)
        ]
    left = []
    for one, remedy in remedies:
        try:
            is_mended = remedy()
        except MpifsError as error:
            _log.warning("%s on worker %d is not mended: %s", one.key, one.store, error)
            is_mended = False
        if is_mended:
            _log.info("%s on worker %d is whole again", one.key, one.store)
        elif _current_ref(view, one.key) == one.ref:
            left.append(one)
    return left


def _current_ref(view: VolumeView, key: ChunkKey) -> ChunkRef | None:
    try:
        return view.current_ref(key.inode, key.chunk)
    except DamageError:
        return None
