"""Which rank serves which store: decided from what each rank's host has.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mpifs.core.errors import FormatError
from mpifs.core.messages import FolderReport, HelloReply
from mpifs.core.types import StoreEntry, StoreState


class Assignment(NamedTuple):
    """One store's place in this job."""

    rank: int
    create: bool


def assign_stores(
    volume_uuid: bytes, stores: Sequence[StoreEntry], hellos: Mapping[int, HelloReply]
) -> tuple[dict[int, Assignment], dict[int, str]]:
    """Store id → rank and whether it may be made there; and why others cannot be served.

    A store in use before must be on the rank's host; a fresh one goes where no folder is in its
    way.  A rank prefers the store of its own number, so that one host keeps one order.  A rank
    serves one store, whether or not there are ranks for all.

    Raises FormatError when there are more ranks than stores.
    """
    if len(stores) < len(hellos):
        raise FormatError(
            f"the volume has {len(stores)} workers and this job {len(hellos)}; "
            f"mount it with -w {len(stores)}"
        )
    choices = {entry.store: _choices(volume_uuid, entry, hellos) for entry in stores}
    taken: dict[int, int] = {}  # rank → store
    reasons: dict[int, str] = {}
    for entry in sorted(stores, key=lambda one: (one.state is StoreState.FRESH, one.store)):
        if not choices[entry.store]:
            reasons[entry.store] = _nowhere(volume_uuid, entry, hellos)
        elif not _place(entry.store, choices, taken, set()):
            hosts = sorted({hellos[rank].host for rank in choices[entry.store]})
            reasons[entry.store] = (
                f"store {entry.store} is on host {', '.join(hosts)}, "
                "which has more stores than workers in this job; give that host more slots"
            )
    fresh = {entry.store for entry in stores if entry.state is StoreState.FRESH}
    ordered = sorted(taken.items(), key=lambda pair: pair[1])
    return {store: Assignment(rank, store in fresh) for rank, store in ordered}, reasons


def assign_found(
    volume_uuid: bytes,
    stores: Sequence[StoreEntry],
    folders: Mapping[int, Sequence[FolderReport]],
) -> dict[int, int]:
    """Store id → rank on whose host there is something of it; stores that are nowhere are left
    out.  For checks: nothing is required, and a store's own superblock counts before a folder
    that only has its name (damaged, emptied).  `folders` is what each rank's host has.
    """
    choices = {entry.store: _found_choices(volume_uuid, entry, folders) for entry in stores}
    taken: dict[int, int] = {}
    for entry in stores:
        _place(entry.store, choices, taken, set())
    return {store: rank for rank, store in sorted(taken.items(), key=lambda pair: pair[1])}


def _found_choices(
    volume_uuid: bytes, entry: StoreEntry, folders: Mapping[int, Sequence[FolderReport]]
) -> list[int]:
    """Ranks on whose hosts a store's folder may be, best first."""
    identity = (volume_uuid, entry.uuid, entry.store)
    name = f"worker-{entry.store}"
    has, may = [], []
    for rank, reports in folders.items():
        if any((one.volume_uuid, one.store_uuid, one.store) == identity for one in reports):
            has.append(rank)
        elif any(one.name in (name, f"{name}.moving") and not one.store_uuid for one in reports):
            may.append(rank)
    return [
        rank for ranks in (has, may) for rank in sorted(ranks, key=lambda r: (r != entry.store, r))
    ]


def _choices(volume_uuid: bytes, entry: StoreEntry, hellos: Mapping[int, HelloReply]) -> list[int]:
    """Ranks that could serve the store, best first."""
    has, could = [], []
    for rank, hello in hellos.items():
        found = [row for row in hello.stores if row[0] == entry.store]
        if (entry.store, volume_uuid, entry.uuid) in [tuple(row) for row in found]:
            has.append(rank)
        elif not found and entry.state is StoreState.FRESH:
            could.append(rank)
    first = sorted(has, key=lambda rank: (rank != entry.store, rank))
    return first + sorted(could, key=lambda rank: (rank != entry.store, rank))


def _place(
    store: int, choices: Mapping[int, list[int]], taken: dict[int, int], tried: set[int]
) -> bool:
    """Finds a rank for the store, moving others if need be (augmenting path of a matching)."""
    for rank in choices[store]:
        if rank not in taken:
            taken[rank] = store
            return True
    for rank in choices[store]:
        if rank not in tried:
            tried.add(rank)
            if _place(taken[rank], choices, taken, tried):
                taken[rank] = store
                return True
    return False


def _nowhere(volume_uuid: bytes, entry: StoreEntry, hellos: Mapping[int, HelloReply]) -> str:
    """Why a store has no place."""
    name = f"worker-{entry.store}"
    for hello in hellos.values():
        for store, volume, _ in hello.stores:
            if store == entry.store:
                whose = "another volume" if volume != volume_uuid else "another store's slot"
                return f"{name} on host {hello.host} belongs to {whose}; put the right folder there"
    hosts = ", ".join(sorted({hello.host for hello in hellos.values()}))
    return (
        f"{name} was not found on {hosts} (or its superblock is damaged); "
        "start the job on the hosts that hold the volume's stores"
    )
