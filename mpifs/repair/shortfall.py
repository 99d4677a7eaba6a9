"""How much of a volume has fewer copies than wanted, as far as the index tells without the stores.

A copy counts as missing if its store is lost, and if a ref names fewer stores than its file wants
and the volume has.  What a store that serves should hold by the refs, and does not (it was
replaced), shows in its own count of bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mpifs.core import records
from mpifs.core.errors import DamageError
from mpifs.core.records import InodeRecord
from mpifs.kv import ReadTransaction
from mpifs.repair.findings import Progress
from mpifs.repair.moves import refs_of_volume
from mpifs.repair.volume import VolumeView


@dataclass(slots=True)
class Shortfall:
    """Payload bytes: of copies that are missing, of those on stores that are being drained, and of
    what refs name on each store."""

    missing: int = 0
    leaving: int = 0
    named: dict[int, int] = field(default_factory=dict)
    copies_max: int = 1
    """The greatest number of stores that one ref names."""

    def named_on(self, stores: Iterable[int]) -> dict[int, int]:
        """What refs name on each of these stores."""
        return {store: self.named.get(store, 0) for store in stores}

    def unfilled(self, held: Mapping[int, int]) -> int:
        """Bytes that stores should hold and do not, by what they tell that they `held`."""
        return sum(max(0, self.named.get(store, 0) - has) for store, has in held.items())


def shortfall(
    view: VolumeView,
    *,
    lost: frozenset[int],
    draining: frozenset[int],
    placing: int,
    progress: Progress,
) -> Shortfall:
    """One pass over all refs.  `placing`: how many stores take chunks.  Raises CancelledError."""
    found = Shortfall()
    named = found.named
    usual = view.geometry.replicas
    for refs in refs_of_volume(view, progress):
        with view.snapshot() as transaction:
            for key, ref in refs:
                gone = 0
                for store in ref.stores:
                    named[store] = named.get(store, 0) + ref.length
                    if store in lost:
                        gone += 1
                    elif store in draining:
                        found.leaving += ref.length
                count = len(ref.stores)
                found.copies_max = max(found.copies_max, count)
                found.missing += gone * ref.length
                if count and count < min(usual, placing):
                    wanted = min(_replicas_of(transaction, key.inode, usual), placing)
                    found.missing += max(0, wanted - count) * ref.length
    return found


def _replicas_of(transaction: ReadTransaction, ino: int, usual: int) -> int:
    """How many copies a file wants."""
    key = records.inode_key(ino)
    value = transaction.get(records.INODES, key)
    try:
        return usual if value is None else records.decode_inode(key, value, InodeRecord).replicas
    except DamageError:
        return usual
