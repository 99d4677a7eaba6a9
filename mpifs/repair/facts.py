"""What check_chunks must know of the whole index while it looks at single places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mpifs.core.limits import FACTS_MAX, STORES_MAX
from mpifs.core.types import ChunkKey, StoreState
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume import VolumeView


class DamagedRef(NamedTuple):
    """A row of `refs` that cannot be read.  `fixed`: its key and value with one byte corrected."""

    key: bytes
    value: bytes
    fixed: tuple[bytes, bytes] | None

    @property
    def is_elsewhere(self) -> bool:
        """Whether it belongs to another place than it stands at: there is no ref here."""
        return self.fixed is not None and self.fixed[0] != self.key


@dataclass(slots=True)
class Facts:
    """Filled by check_refs; bounded.

    `damaged`: refs that cannot be read, by the place of their key.  `moved`: places whose ref
    stands under a damaged key elsewhere, with it.  `deficits`: inodes that count more bytes than
    their refs have, by how many: a ref is missing.  `unsure`: inodes with a damaged ref.  `few`:
    places whose ref names fewer stores than the file wants.  `is_full`: there was more than fits;
    then nothing is called an orphan that the rest might explain.
    """

    damaged: dict[tuple[int, int], DamagedRef] = field(default_factory=dict)
    moved: dict[tuple[int, int], DamagedRef] = field(default_factory=dict)
    moved_garbage: set[ChunkKey] = field(default_factory=set)
    deficits: dict[int, int] = field(default_factory=dict)
    unsure: set[int] = field(default_factory=set)
    few: set[tuple[int, int]] = field(default_factory=set)
    highest: int = 0
    """The greatest generation that a ref or garbage row names."""
    payload_bytes: int = 0
    """Lengths of all refs that can be read or corrected."""
    stored_bytes: int = 0
    """The same, once for each copy on a store of the volume."""
    is_full: bool = False

    def has_room(self) -> bool:
        """Whether another fact fits; notes it if not."""
        count = len(self.damaged) + len(self.deficits) + len(self.few) + len(self.moved_garbage)
        self.is_full = self.is_full or count >= FACTS_MAX
        return not self.is_full


def known_stores(view: VolumeView, stores: StoreAccess) -> frozenset[int]:
    """The stores that the volume has; any, while its table cannot be read."""
    listed = frozenset(int(entry.store) for entry in view.stores())
    opened = frozenset(int(entry.store) for entry in stores.entries)
    return listed | opened if listed else frozenset(range(1, STORES_MAX + 1))


def draining_stores(view: VolumeView) -> frozenset[int]:
    """The stores that get no new chunks."""
    return frozenset(
        int(entry.store) for entry in view.stores() if entry.state is StoreState.DRAINING
    )


def placement_order(view: VolumeView, stores: StoreAccess) -> list[int]:
    """The stores as the table has them, then those that it should have, too."""
    listed = [int(entry.store) for entry in view.stores()]
    opened = sorted({int(entry.store) for entry in stores.entries} - set(listed))
    return listed + opened or sorted(stores.available)
