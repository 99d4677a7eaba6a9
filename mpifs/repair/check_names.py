"""Names and inodes agree, both ways: every entry leads to an inode of its type, and every inode is
reached by the names that its record counts and tells.

Each function looks at one window of inode numbers (census.py) and plans what it would repair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from mpifs.core.errors import DamageError
from mpifs.core.records import INODES, ORPHANS, InodeRecord, encode_orphan, inode_key
from mpifs.index.amendment import Amendment, RowKey
from mpifs.repair.census import UNREADABLE, Census
from mpifs.repair.check_inodes_exist import is_free
from mpifs.repair.findings import ERROR, Finding, Progress
from mpifs.repair.lost_found import attach
from mpifs.repair.paths import entry_path, path_of
from mpifs.repair.removal import finish_removal, plan_end
from mpifs.repair.snapshot import DentryRow, Snapshot
from mpifs.repair.tree_edit import DIRECTORY, LINK, REGULAR, TreeEdit, kind_of
from mpifs.repair.volume import VolumeView

_KINDS = {
    0o01: "fifo",
    0o02: "character device",
    DIRECTORY: "directory",
    0o06: "block device",
    REGULAR: "regular file",
    LINK: "symbolic link",
    0o14: "socket",
}


def check_entry_types(
    view: VolumeView, snapshot: Snapshot, census: Census, progress: Progress
) -> Iterator[Finding]:
    """An entry tells the type of its inode.  Repair: that type of the two which fits the rest of
    the inode's record; the inode's if both do."""
    for entry in census.wrong_types:
        progress.check()
        record = _readable(snapshot, entry.ino)
        if record is None or kind_of(record) == entry.kind or not _is_there(snapshot, entry):
            continue
        edit = TreeEdit(snapshot)
        told, recorded = _KINDS[entry.kind], _KINDS[kind_of(record)]
        detail = f"the directory's entry says {told}, the inode's record {recorded}"
        links = census.links(entry.ino)
        is_inode_wrong = not _fits(snapshot, record, kind_of(record), links) and _fits(
            snapshot, record, entry.kind, links
        )
        if is_inode_wrong:
            mode = entry.kind << 12 | record.mode & 0o7777
            edit.set_inode(replace(record, mode=mode))
            detail += f"; the rest of the record is that of a {told}"
        else:
            edit.add_entry(entry.parent, entry.name, entry.ino, kind_of(record))
        amendment = edit.plan()
        if is_inode_wrong:
            census.set_kind(entry.ino, entry.kind)
        yield _finding(view, "check_entry_types", detail, snapshot, entry.ino, amendment, entry)


def _fits(snapshot: Snapshot, record: InodeRecord, kind: int, links: int) -> bool:
    """Whether the record, its type left aside, can be one of that type."""
    has_target = bool(record.target)
    if kind == LINK:
        return has_target and record.stable_size == len(record.target) and record.nlink == links
    tally = snapshot.tallies.of_directory(record.ino)
    if has_target or (record.bytes_stored and kind != REGULAR):
        return False
    if kind == DIRECTORY:
        counts = tally.entries, 2 + tally.subdirectories
        return (record.stable_size, record.nlink) == counts
    if tally.entries or record.nlink != links:
        return False
    return kind == REGULAR or not record.stable_size


def check_entry_names(
    view: VolumeView, snapshot: Snapshot, census: Census, progress: Progress
) -> Iterator[Finding]:
    """No entry has a name that no program can use.  Repair: it moves to lost+found."""
    for entry in census.wrong_names:
        progress.check()
        if not _is_there(snapshot, entry):
            continue
        amendment = _evict(snapshot, census, entry)
        detail = "a directory's entry has an impossible name"
        yield _finding(view, "check_entry_names", detail, snapshot, entry.ino, amendment, entry)


def check_entries_in_directories(
    view: VolumeView, snapshot: Snapshot, census: Census, progress: Progress
) -> Iterator[Finding]:
    """Entries stand in directories only.  Repair: what has no other name moves to lost+found."""
    for parent in census.wrong_parents:
        progress.check()
        if census.kind(parent) in (DIRECTORY, 0, UNREADABLE):
            continue  # its type has been corrected
        for entry in list(snapshot.dentries(parent, parent + 1)):
            amendment = _evict(snapshot, census, entry)
            detail = f"an entry stands in inode {parent}, which is a {_KINDS[census.kind(parent)]}"
            yield _finding(
                view, "check_entries_in_directories", detail, snapshot, entry.ino, amendment, entry
            )


def _evict(snapshot: Snapshot, census: Census, entry: DentryRow) -> Amendment:
    """Plans the end of an entry; its inode, if that has no other name, gets one in lost+found."""
    edit = TreeEdit(snapshot)
    edit.remove_entry(entry.parent, entry.name)
    record = _readable(snapshot, entry.ino)
    if record is not None and _links(snapshot, census, entry.ino) <= 1:
        attach(edit, entry.ino)
        return edit.plan()
    if record is not None and kind_of(record) != DIRECTORY:
        if (record.parent, record.name) == (entry.parent, entry.name):
            record = replace(record, parent=0, name=b"")
        if record.nlink >= _links(snapshot, census, entry.ino):
            record = replace(record, nlink=record.nlink - 1)
            census.set_nlink(entry.ino, record.nlink)
        edit.set_inode(record)
    census.add_links(entry.ino, -1)
    return edit.plan()


def _links(snapshot: Snapshot, census: Census, ino: int) -> int:
    """Number of entries that lead to an inode, be it in the window or not."""
    if census.covers(ino):
        return census.links(ino)
    return sum(entry.ino == ino for entry in snapshot.dentries())


def check_directories_have_one_name(
    view: VolumeView, snapshot: Snapshot, census: Census, progress: Progress
) -> Iterator[Finding]:
    """One entry leads to a directory.  Repair: the one its record tells stays, else the first."""
    doubled = census.many_names()
    if not doubled:
        return
    entries: dict[int, list[DentryRow]] = {}
    for entry in snapshot.dentries():
        if entry.ino in doubled:
            entries.setdefault(entry.ino, []).append(entry)
    for ino in sorted(entries):
        progress.check()
        record = _readable(snapshot, ino)
        own = (record.parent, record.name) if record is not None else None
        kept = next((e for e in entries[ino] if (e.parent, e.name) == own), entries[ino][0])
        for entry in entries[ino]:
            if entry is kept:
                continue
            edit = TreeEdit(snapshot)
            edit.remove_entry(entry.parent, entry.name)
            amendment = edit.plan()
            census.add_links(ino, -1)
            real = entry_path(snapshot, kept.parent, kept.name).decode("utf-8", "backslashreplace")
            detail = f"a second entry leads to the directory {real}: it is removed"
            yield _finding(
                view, "check_directories_have_one_name", detail, snapshot, ino, amendment, entry
            )


def check_inodes_reached(
    view: VolumeView, snapshot: Snapshot, census: Census, progress: Progress
) -> Iterator[Finding]:
    """A name leads to every inode, unless it has been removed.  Repair: the name that its record
    tells if that is free, else one in lost+found."""
    for ino in list(census.nameless()):
        progress.check()
        record = _readable(snapshot, ino)
        if record is None:
            continue
        row = RowKey(ORPHANS, inode_key(ino))
        is_listed = snapshot.get(*row) is not None
        has_entries = (
            kind_of(record) == DIRECTORY and snapshot.tallies.of_directory(ino).entries > 0
        )
        if not has_entries and (not record.nlink or (is_listed and not record.parent)):
            yield from _check_removed(view, snapshot, record, is_listed)
            continue
        edit = TreeEdit(snapshot)
        kind = kind_of(record)
        if kind == DIRECTORY:
            nlink = 2 + snapshot.tallies.of_directory(ino).subdirectories
            record = replace(record, nlink=record.nlink or nlink)
        else:
            record = replace(record, nlink=max(1, record.nlink))
        edit.set_inode(record)
        place = None
        if is_free(edit, census, record):
            edit.add_entry(record.parent, record.name, ino, kind)
            detail = "no entry leads to it, though its record tells this name"
        else:
            place = attach(edit, ino)
            detail = f"no name leads to inode {ino}: it gets this one"
        orphans = 0
        if is_listed:
            edit.rows[row] = None
            orphans = -int(snapshot.tallies.take_orphan())
        amendment = edit.plan(orphans=orphans)
        census.add_links(ino, 1)
        census.set_inode(ino, kind, record.nlink)
        path = place or path_of(snapshot, ino)
        remedy = partial(view.amend, amendment)
        yield Finding("check_inodes_reached", ERROR, detail, path=path, inode=ino, remedy=remedy)


def _check_removed(
    view: VolumeView, snapshot: Snapshot, record: InodeRecord, is_listed: bool
) -> Iterator[Finding]:
    """A removed inode is in the table of orphans, and its record counts no names."""
    ino = record.ino
    if record.nlink:
        edit = TreeEdit(snapshot)
        edit.set_inode(replace(record, nlink=0))
        detail = f"its record counts {record.nlink} names, but it has been removed"
        yield _finding(view, "check_link_counts", detail, snapshot, ino, edit.plan())
    elif not is_listed:
        detail = "it has been removed, but is not listed for it: its space would never be freed"
        finding = Finding("check_orphans", ERROR, detail, path=b"#%d" % ino, inode=ino)
        if view.is_live:
            key = inode_key(ino)
            added = int(not snapshot.tallies.take_lost_orphan())
            row = {RowKey(ORPHANS, key): encode_orphan(key)}
            amendment = snapshot.change(row, [RowKey(INODES, key)], orphans=added)
            finding.remedy = partial(view.amend, amendment)
        else:
            plan_end(snapshot, ino)
            finding.remedy = partial(finish_removal, view, ino)
        yield finding


def check_own_names(
    view: VolumeView, snapshot: Snapshot, census: Census, progress: Progress
) -> Iterator[Finding]:
    """The name that an inode's record tells leads to it.  Repair: the entry is made again if the
    counts miss one, else the record tells a name that leads to it (a file: perhaps none)."""
    misnamed = list(census.misnamed())
    places = _first_entries(snapshot, set(misnamed))
    for ino in misnamed:
        progress.check()
        record = _readable(snapshot, ino)
        if record is None or (kind_of(record) != DIRECTORY and not record.parent):
            continue
        edit = TreeEdit(snapshot)
        has_room = is_free(edit, census, record)
        if kind_of(record) != DIRECTORY and has_room and record.nlink > census.links(ino):
            edit.add_entry(record.parent, record.name, ino, kind_of(record))
            amendment = edit.plan()
            census.add_links(ino, 1)
            detail = "the directory lacks this name, which the inode's record tells and counts"
            yield _finding(view, "check_own_names", detail, snapshot, ino, amendment)
            continue
        entry = places.get(ino)
        if entry is not None and not _is_there(snapshot, entry):
            entry = None
        if kind_of(record) == DIRECTORY and has_room and entry and _is_missed(snapshot, record):
            edit.remove_entry(entry.parent, entry.name)
            edit.add_entry(record.parent, record.name, ino, DIRECTORY)
            path = entry_path(snapshot, entry.parent, entry.name)
            shown = path.decode("utf-8", "backslashreplace")
            detail = f"the entry {shown} leads to it, but its record tells this name"
        else:
            parent, name = (entry.parent, entry.name) if entry is not None else (0, b"")
            edit.set_inode(replace(record, parent=parent, name=name))
            detail = "its record tells another directory or name than those that lead to it"
        amendment = edit.plan()
        yield _finding(view, "check_own_names", detail, snapshot, ino, amendment)


def _first_entries(snapshot: Snapshot, wanted: set[int]) -> dict[int, DentryRow]:
    """One entry that leads to each of the inodes."""
    found: dict[int, DentryRow] = {}
    if wanted:
        for entry in snapshot.dentries():
            if entry.ino in wanted:
                found.setdefault(entry.ino, entry)
    return found


def _is_missed(snapshot: Snapshot, record: InodeRecord) -> bool:
    """Whether the directory above counts one entry, a directory, more than it has."""
    above = _readable(snapshot, record.parent)
    tally = snapshot.tallies.of_directory(record.parent)
    return (
        above is not None
        and above.stable_size > tally.entries
        and above.nlink > 2 + tally.subdirectories
    )


def check_link_counts(
    view: VolumeView, snapshot: Snapshot, census: Census, progress: Progress
) -> Iterator[Finding]:
    """The link count of what is no directory is the number of its names."""
    for ino in list(census.miscounted()):
        progress.check()
        record = _readable(snapshot, ino)
        links = census.links(ino)
        if record is None or not links or record.nlink == links:
            continue
        edit = TreeEdit(snapshot)
        edit.set_inode(replace(record, nlink=links))
        detail = f"its link count is {record.nlink}, but {links} names lead to it"
        amendment = edit.plan()
        census.set_nlink(ino, links)
        yield _finding(view, "check_link_counts", detail, snapshot, ino, amendment)


CENSUS_CHECKS = (
    check_entry_types,
    check_entry_names,
    check_entries_in_directories,
    check_directories_have_one_name,
    check_inodes_reached,
    check_own_names,
    check_link_counts,
)
"""In this order: each relies on what those before it have planned."""


def _finding(
    view: VolumeView,
    check: str,
    detail: str,
    snapshot: Snapshot,
    ino: int,
    amendment: Amendment,
    entry: DentryRow | None = None,
) -> Finding:
    """An error at an entry, or at an inode as it is named after the repair."""
    if entry is not None:
        path = entry_path(snapshot, entry.parent, entry.name)
    else:
        path = path_of(snapshot, ino)
    return Finding(
        check, ERROR, detail, path=path, inode=ino, remedy=partial(view.amend, amendment)
    )


def _readable(snapshot: Snapshot, ino: int) -> InodeRecord | None:
    try:
        return snapshot.inode(ino)
    except DamageError:
        return None


def _is_there(snapshot: Snapshot, entry: DentryRow) -> bool:
    """Whether an entry of the census is still planned to be there."""
    try:
        found = snapshot.dentry(entry.parent, entry.name)
    except DamageError:
        return False
    return found is not None and found[0] == entry.ino
