"""What a volume remembers of its healing: whether a look at all chunks is due.

A hint only: it says when to look, never what to do.  A small JSON file in `index/`, replaced whole;
without it nothing is looked at until a store is lost or `mpifs fsck` runs.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from mpifs.core.errors import PosixError
from mpifs.core.limits import STORES_MAX
from mpifs.core.types import StoreEntry
from mpifs.notefile import write_note

FILE_NAME = "heal.json"


@dataclass(slots=True)
class HealMemory:
    """`is_due`: a pass has not been completed since something changed.  `is_open`: the volume is
    mounted, or its job has died: then chunks may have fewer copies than anybody had noted.
    `lost`: the stores that were lost when the last pass was complete.  `filling`: stores that came
    in place of lost ones and are to get their share of the bytes.  `highest_store`: ids up to it
    have been in use."""

    is_due: bool = False
    is_open: bool = False
    lost: list[int] = field(default_factory=list)
    filling: list[int] = field(default_factory=list)
    highest_store: int = 0


def read_memory(folder: str) -> HealMemory:
    """The memory in an index folder; a fresh one if there is none or it makes no sense."""
    try:
        with open(os.path.join(folder, FILE_NAME), encoding="utf-8") as file:
            memory = HealMemory(**json.load(file))
    except (OSError, ValueError, TypeError):
        return HealMemory()
    fresh = HealMemory()
    is_sound = all(
        type(getattr(memory, name)) is type(value) for name, value in asdict(fresh).items()
    )
    return memory if is_sound else fresh


def write_memory(folder: str, memory: HealMemory) -> None:
    """Stores it durably: a pass that is due must not be forgotten.  Raises OSError."""
    write_note(os.path.join(folder, FILE_NAME), asdict(memory), is_durable=True)


def next_numbers(stores: Iterable[StoreEntry], memory: HealMemory, count: int = 1) -> list[int]:
    """Ids for new stores: none is ever used again.  Raises PosixError(ENOSPC) when all were."""
    first = 1 + max(*(int(entry.store) for entry in stores), memory.highest_store)
    if first + count - 1 > STORES_MAX:
        raise PosixError(errno.ENOSPC, "the volume has had too many stores")
    return list(range(first, first + count))


def heal_at_rest(folder: str) -> dict[str, Any]:
    """The key `heal` of the status of a volume that is not served: how much is missing is known
    only while it is."""
    is_due = read_memory(folder).is_due
    return {
        "state": "due" if is_due else "idle",
        "bytes_left": None if is_due else 0,
        "bytes_total": None if is_due else 0,
        "rate": 0,
        "seconds_left": None,
        "detail": "goes on at the next mount" if is_due else "",
    }
