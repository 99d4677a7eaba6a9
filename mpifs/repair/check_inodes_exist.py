"""Whatever is named has a record: targets of entries, directories of entries, owners of refs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from mpifs.core.errors import DamageError
from mpifs.core.records import INODES, ORPHANS, REFS, XATTRS, InodeRecord, inode_key
from mpifs.index.amendment import Amendment, RowKey
from mpifs.repair.census import UNREADABLE, Census, Missing, is_name
from mpifs.repair.findings import ERROR, LOST, Finding, Progress
from mpifs.repair.lost_found import attach
from mpifs.repair.lost_inodes import COPY, ITSELF, Rebuilt, rebuild
from mpifs.repair.paths import entry_path, path_of
from mpifs.repair.removal import finish_removal, plan_end
from mpifs.repair.snapshot import DentryRow, Snapshot
from mpifs.repair.tree_edit import DIRECTORY, TreeEdit, kind_of
from mpifs.repair.volume import VolumeView


def check_inodes_exist(
    view: VolumeView, snapshot: Snapshot, census: Census, progress: Progress
) -> Iterator[Finding]:
    """Every inode that an entry leads to, that has entries, or that has refs, has a readable
    record.  Repair: the record from itself or the copy of the index, else made anew as far as
    entries and refs tell; where nothing tells what it was, the names go."""
    _add_owners_of_refs(snapshot, census, progress)
    for ino in sorted(census.missing):
        progress.check()
        yield _restore(view, snapshot, census, ino, census.missing[ino])


def _add_owners_of_refs(snapshot: Snapshot, census: Census, progress: Progress) -> None:
    for number, ino in enumerate(snapshot.owners(REFS, census.first, census.end)):
        if not number % 4096:
            progress.check()
        # A row that cannot be read is no proof: its key may be what is damaged.
        if not census.kind(ino) and any(
            row.ref is not None for row in snapshot.refs(ino, 0, ino + 1)
        ):
            census.missing.setdefault(ino, Missing())


def _restore(
    view: VolumeView, snapshot: Snapshot, census: Census, ino: int, missing: Missing
) -> Finding:
    entry = missing.entry
    finding = _describe(snapshot, census, ino, missing)
    is_listed = snapshot.get(ORPHANS, inode_key(ino)) is not None
    if is_listed and not missing.links and not snapshot.tallies.of_directory(ino).entries:
        census.forget(ino)
        finding.detail += "; it was being removed, so nothing of it is missed"
        if not view.is_live:
            plan_end(snapshot, ino)
            finding.remedy = partial(finish_removal, view, ino)
        return finding
    place = (entry.parent, entry.name, entry.kind) if entry is not None else None
    rebuilt = rebuild(view, snapshot, ino, missing.links, place)
    try:
        if rebuilt is None:
            amendment = _forget(snapshot, census, ino, missing)
            finding.severity = LOST
            finding.detail += "; nothing tells what it was: its name goes with it"
        else:
            amendment, path = _put_back(snapshot, census, ino, rebuilt, missing)
            finding.path = path
            finding.detail += _origin(rebuilt)
        finding.remedy = partial(view.amend, amendment)
    except DamageError as error:
        finding.detail += f"; it cannot be restored now ({error})"
    return finding


def _describe(snapshot: Snapshot, census: Census, ino: int, missing: Missing) -> Finding:
    entry = missing.entry
    path = path_of(snapshot, ino) if entry is None else _path(snapshot, entry)
    check = "check_inodes_exist"
    if census.kind(ino) == UNREADABLE:
        check = "check_records_readable"
        detail = f"the record of inode {ino} is damaged beyond correction"
    elif entry is not None:
        detail = f"the name leads to inode {ino}, which has no record"
    elif snapshot.tallies.of_directory(ino).entries:
        detail = f"there are entries of directory {ino}, but no record"
    else:
        detail = f"there are chunks of inode {ino}, but no record"
    return Finding(check, ERROR, detail, path=path, inode=ino)


def _path(snapshot: Snapshot, entry: DentryRow) -> bytes:
    return entry_path(snapshot, entry.parent, entry.name)


def _origin(rebuilt: Rebuilt) -> str:
    """Where the new record is from, as the end of a sentence."""
    if rebuilt.source == ITSELF:
        return "; only impossible fields of it are wrong"
    if rebuilt.source == COPY:
        return "; the copy of the index has it"
    what = "directory" if kind_of(rebuilt.record) == DIRECTORY else "file"
    return f"; made anew as a {what}, owner, permissions and times are lost"


def _put_back(
    snapshot: Snapshot, census: Census, ino: int, rebuilt: Rebuilt, missing: Missing
) -> tuple[Amendment, bytes]:
    """Plans the record, with a name if none leads to it; gives the inode's path, too."""
    record = rebuilt.record
    edit = TreeEdit(snapshot)
    edit.restore_inode(record)
    path = None
    if not missing.links:
        if is_free(edit, census, record):
            edit.add_entry(record.parent, record.name, ino, kind_of(record))
        else:
            path = attach(edit, ino)
    orphans = 0
    if snapshot.get(ORPHANS, inode_key(ino)) is not None:
        edit.rows[RowKey(ORPHANS, inode_key(ino))] = None
        orphans = -int(snapshot.tallies.take_orphan())
    amendment = edit.plan(orphans=orphans)
    census.set_inode(ino, kind_of(record), record.nlink)
    if not missing.links:
        census.add_links(ino, 1)
    return amendment, path or path_of(snapshot, ino)


def is_free(edit: TreeEdit, census: Census, record: InodeRecord) -> bool:
    """Whether an inode can have (back) the name that its record tells."""
    if not record.parent or not record.name or not is_name(record.name):
        return False
    try:
        above = edit.inode(record.parent)
        if above is None or kind_of(above) != DIRECTORY or not above.nlink:
            return False
        return not edit.entry(record.parent, record.name)
    except DamageError:
        return False


def _forget(snapshot: Snapshot, census: Census, ino: int, missing: Missing) -> Amendment:
    """Plans the end of an inode of which nothing is known: names, attributes, unreadable row."""
    edit = TreeEdit(snapshot)
    is_directory = missing.entry is not None and missing.entry.kind == DIRECTORY
    edit.forget_inode(ino, is_directory)
    entries = [missing.entry] if missing.links == 1 else entries_of(snapshot, ino, missing.links)
    for entry in entries:
        if entry is not None:
            edit.remove_entry(entry.parent, entry.name)
    for row in snapshot.xattrs(ino, ino + 1):
        edit.rows[RowKey(XATTRS, row.key)] = None
    if census.kind(ino):
        edit.rows[RowKey(INODES, inode_key(ino))] = None
    census.forget(ino)
    return edit.plan()


def entries_of(snapshot: Snapshot, ino: int, count: int) -> list[DentryRow]:
    """The first `count` entries that lead to an inode; reads all entries."""
    found: list[DentryRow] = []
    if count:
        for entry in snapshot.dentries():
            if entry.ino == ino:
                found.append(entry)
                if len(found) == count:
                    break
    return found
