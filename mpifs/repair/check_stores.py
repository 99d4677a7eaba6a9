"""The stores as folders and files: each there, in its place, of this volume, its files whole.

The job asks the workers (SURVEY, INSPECT) and repairs (REBUILD); this says what it means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from mpifs.core.errors import MpifsError
from mpifs.core.messages import FolderReport, InspectReply
from mpifs.core.superblock import Superblock
from mpifs.core.types import StoreEntry, StoreState
from mpifs.repair.findings import DAMAGE, ERROR, Finding
from mpifs.repair.index_edits import list_store
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume import VolumeView

_SHOWN = 3  # problems of one file that a finding tells


class Host(Protocol):
    """What one host has at the volume's path."""

    @property
    def host(self) -> str: ...

    @property
    def folders(self) -> Sequence[FolderReport]: ...


def check_stores(
    geometry: Superblock,
    entries: Sequence[StoreEntry],
    hosts: Sequence[Host],
    inspected: Mapping[int, InspectReply | MpifsError],
) -> Iterator[Finding]:
    """Everything that is wrong with the stores of the table; one finding a fault.

    A store that was promised and never used need not be there.
    """
    folders = [(host.host, folder) for host in hosts for folder in host.folders]
    for entry in entries:
        finding = check_store_is_in_its_place(geometry, entry, folders)
        if finding is not None:
            yield finding
        elif entry.store in inspected:
            yield from check_store_files(entry, inspected[entry.store])


def check_store_is_in_its_place(
    geometry: Superblock,
    entry: StoreEntry,
    folders: Sequence[tuple[str, FolderReport]],
) -> Finding | None:
    """The store's folder is there, holds a store, and that one."""
    name = f"worker-{entry.store}"
    own = [(host, folder) for host, folder in folders if _is_store(folder, geometry, entry)]
    home = [(host, folder) for host, folder in folders if folder.name == name]
    if any(folder.name == name for _, folder in own):
        return None
    if own:
        host, folder = own[0]
        return _finding(
            "check_store_is_not_exchanged",
            entry,
            f"store {entry.store} stands in the folder {folder.name} of {host}, not in {name}: "
            "it is not used until that is put right",
        )
    if not home:
        if entry.state is StoreState.FRESH:
            return None
        return _finding(
            "check_store_is_there",
            entry,
            f"the folder {name} is on no host: is its disk mounted, are all hosts given?  "
            "Chunks that it alone holds cannot be read",
        )
    return _of_folder(geometry, entry, *home[0])


def _of_folder(
    geometry: Superblock, entry: StoreEntry, host: str, folder: FolderReport
) -> Finding | None:
    place = f"{folder.name} on {host}"
    if folder.state == "empty":
        if entry.state is StoreState.FRESH:
            return None
        return _finding(
            "check_store_is_not_empty", entry, f"{place} is empty: all that it held is gone"
        )
    if folder.state in ("bare", "damaged"):
        more = f" ({folder.detail})" if folder.detail else ""
        return _finding(
            "check_store_superblock",
            entry,
            f"{place} has chunks, but its superblock is missing or damaged{more}: "
            "it is not used until that is repaired",
        )
    if folder.volume_uuid != geometry.volume_uuid:
        return _finding(
            "check_store_volume",
            entry,
            f"{place} belongs to another volume ({folder.volume_uuid.hex()}): it is left alone",
        )
    return _finding(
        "check_store_is_not_exchanged",
        entry,
        f"{place} holds another store of this volume (store {folder.store}): it is not used",
    )


def check_stores_are_listed(view: VolumeView, stores: StoreAccess) -> Iterator[Finding]:
    """The table of stores has every store that belongs to the volume."""
    listed = view.stores()
    missing = [e for e in stores.entries if e.store not in {entry.store for entry in listed}]
    if not listed:
        return  # the table cannot be read: a finding of the index
    for entry in sorted(missing, key=lambda entry: entry.store):
        finding = _finding(
            "check_stores_are_listed",
            entry,
            f"the index's table of stores lacks worker {entry.store}: what it alone holds cannot "
            "be read",
        )
        finding.severity = ERROR
        finding.remedy = partial(list_store, view, entry)
        yield finding


def check_store_files(entry: StoreEntry, reply: InspectReply | MpifsError) -> Iterator[Finding]:
    """The files of a store are whole as files; one finding for each that is not."""
    if isinstance(reply, MpifsError):
        yield _finding(
            "check_store_files", entry, f"the files of worker {entry.store} were not read: {reply}"
        )
        return
    by_file: dict[str, list[str]] = {}
    for problem in reply.problems:
        by_file.setdefault(problem.file, []).append(problem.detail)
    for file, details in by_file.items():
        shown = "; ".join(details[:_SHOWN])
        more = f"; and {len(details) - _SHOWN} more" if len(details) > _SHOWN else ""
        yield _finding(
            "check_store_files",
            entry,
            f"worker-{entry.store}/{file} is damaged ({shown}{more}): "
            "chunks in it may be unreadable",
        )


def _is_store(folder: FolderReport, geometry: Superblock, entry: StoreEntry) -> bool:
    return (
        folder.state == "ok"
        and folder.volume_uuid == geometry.volume_uuid
        and folder.store_uuid == entry.uuid
    )


def _finding(check: str, entry: StoreEntry, detail: str) -> Finding:
    return Finding(check, DAMAGE, detail, worker=entry.store)
