"""Paths of inodes, for findings.

An inode's record tells one of its names; the path is followed up to the root and believed only as
far as the entries say the same.  Where the record tells nothing (damaged, missing, or its newest
name was removed) all entries are searched, once for all such inodes.
"""

from __future__ import annotations

from mpifs.core.errors import DamageError
from mpifs.core.limits import PATH_DEPTH_MAX, PATH_NAMES_MAX
from mpifs.core.types import ROOT_INODE
from mpifs.repair.snapshot import DentryRow, Snapshot


def path_of(snapshot: Snapshot, ino: int) -> bytes:
    """One absolute path of an inode.  b"#42" stands for an inode 42 that no name leads to, so
    what lies below it is b"#42/name".  Never raises for damaged rows; bounded depth."""
    parts: list[bytes] = []
    seen: set[int] = set()
    while ino != ROOT_INODE:
        place = None if ino in seen or len(seen) >= PATH_DEPTH_MAX else _place(snapshot, ino)
        if place is None:
            parts.append(b"#%d" % ino)
            return b"/".join(reversed(parts))
        seen.add(ino)
        ino, name = place
        parts.append(name)
    return b"/" + b"/".join(reversed(parts))


def entry_path(snapshot: Snapshot, parent: int, name: bytes) -> bytes:
    """The path of a directory's entry, whatever it leads to."""
    return path_of(snapshot, parent).rstrip(b"/") + b"/" + name


def _place(snapshot: Snapshot, ino: int) -> tuple[int, bytes] | None:
    """(directory, name) of one entry that leads to the inode."""
    try:
        record = snapshot.inode(ino)
        if record is not None and record.parent:
            found = snapshot.dentry(record.parent, record.name) if record.name else None
            if found is not None and found[0] == ino:
                return record.parent, record.name
        if record is not None and not record.nlink:
            return None
    except DamageError:
        pass
    names = snapshot.names_elsewhere
    if names is None:
        names = snapshot.names_elsewhere = _names_of_nameless(snapshot)
    place = names.get(ino)
    if place is None or _leads_to(snapshot, place, ino):
        return place
    return None


def _leads_to(snapshot: Snapshot, place: tuple[int, bytes], ino: int) -> bool:
    """Whether an entry found before is still planned to be there."""
    try:
        found = snapshot.dentry(*place)
    except DamageError:
        return False
    return found is not None and found[0] == ino


def _names_of_nameless(snapshot: Snapshot) -> dict[int, tuple[int, bytes]]:
    """One name of each inode whose record does not tell it, at most PATH_NAMES_MAX of them."""
    told: dict[int, tuple[int, bytes]] = {}
    for entry in snapshot.dentries():
        if entry.ino and entry.ino not in told and not _tells_its_name(snapshot, entry):
            told[entry.ino] = entry.parent, entry.name
            if len(told) >= PATH_NAMES_MAX:
                break
    return told


def _tells_its_name(snapshot: Snapshot, entry: DentryRow) -> bool:
    """Whether the record of an entry's inode tells this or another name that leads to it."""
    try:
        record = snapshot.inode(entry.ino)
        if record is None or not record.parent:
            return False
        if record.parent == entry.parent and record.name == entry.name:
            return True
        found = snapshot.dentry(record.parent, record.name) if record.name else None
        return found is not None and found[0] == entry.ino
    except DamageError:
        return False
