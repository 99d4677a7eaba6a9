"""Sentences about chunks: what is wrong with a copy, which bytes of which file it means."""

from __future__ import annotations

from dataclasses import dataclass

from mpifs.core.errors import DamageError
from mpifs.core.records import InodeRecord
from mpifs.core.types import ChunkRef
from mpifs.repair.index_edits import is_possible
from mpifs.repair.paths import path_of
from mpifs.repair.place_rules import Copy, State
from mpifs.repair.snapshot import Snapshot

_WRONG = {
    State.LISTING: "the copy on worker {w} is whole, but the worker's own list of it is wrong",
    State.HEADER: "the copy on worker {w} cannot be read: its header is damaged",
    State.MISSING: "the copy on worker {w} is missing",
    State.FOREIGN: "worker {w} holds another chunk in its place",
    State.CUT: "the copy on worker {w} is cut off",
    State.LENGTH: "the copy on worker {w} has another length than was written",
    State.SUM: "the copy on worker {w} has other bytes than were written (wrong checksum)",
    State.AWAY: "its worker {w} is not there",
    State.NO_STORE: "the index says that it is on worker {w}, which this volume does not have",
}

_CHECKS = {
    State.LISTING: "check_copy_is_listed",
    State.HEADER: "check_copy_header",
    State.MISSING: "check_copy_is_there",
    State.FOREIGN: "check_copy_is_in_its_place",
    State.CUT: "check_copy_length",
    State.LENGTH: "check_copy_length",
    State.SUM: "check_copy_checksum",
    State.AWAY: "check_copy_store",
    State.NO_STORE: "check_copy_store",
}


@dataclass(slots=True)
class Owner:
    """The file that a chunk belongs to.  `record` is None if there is none or it is damaged."""

    ino: int
    path: bytes
    record: InodeRecord | None
    is_damaged: bool
    chunk_size: int

    def byte_range(self, chunk: int, length: int) -> str:
        """Which bytes of the file the chunk holds."""
        start = chunk * self.chunk_size
        end = start + max(length, 1)
        if self.record is not None and start < self.record.stable_size:
            end = max(start + 1, min(end, self.record.stable_size))
        return f"bytes {start:,} to {end - 1:,}"


class Owners:
    """Files by number; the last one is kept, since chunks come in the order of their files."""

    def __init__(self, snapshot: Snapshot, chunk_size: int) -> None:
        self._snapshot = snapshot
        self._chunk_size = chunk_size
        self._last: Owner | None = None

    def of(self, ino: int) -> Owner:
        """The file with this number, or what stands for it."""
        if self._last is not None and self._last.ino == ino:
            return self._last
        record: InodeRecord | None = None
        is_damaged = False
        try:
            record = self._snapshot.inode(ino)
        except DamageError:
            is_damaged = True
        if record is not None and not is_possible(record):
            record, is_damaged = None, True
        size = self._chunk_size if record is None else record.chunk_size
        self._last = Owner(ino, path_of(self._snapshot, ino), record, is_damaged, size)
        return self._last


def check_name(state: State) -> str:
    """The check that finds a copy in this state."""
    return _CHECKS[state]


def of_copy(
    state: State, store: int, owner: Owner, chunk: int, ref: ChunkRef, good: int, *, is_lost: bool
) -> str:
    """What is wrong with one copy, and what it means for the file."""
    what = _WRONG[state].format(w=store)
    where = owner.byte_range(chunk, ref.length)
    if is_lost:
        return f"{what}, and no good copy is left: {where} of the file are lost, reads give EIO"
    if good:
        others = "another copy is" if good == 1 else f"{good} other copies are"
        return f"{what}; {where} of the file can be read, {others} good"
    if state is State.LISTING:
        return f"{what}; {where} of the file can be read"
    return f"{what}; {where} of the file cannot be read until it is repaired"


def of_orphan(copy: Copy, owner: Owner) -> str:
    """A stored image that the index does not know."""
    whose = "no file has" if owner.record is None else "this file does not have"
    return (
        f"worker {copy.store} holds {copy.length:,} bytes (generation {copy.generation}) that "
        f"{whose} any more: they only take space"
    )
