"""The root is there, and a directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from stat import S_IFDIR

from mpifs.core.errors import DamageError
from mpifs.core.records import InodeRecord
from mpifs.core.types import ROOT_INODE
from mpifs.repair.findings import ERROR, Finding, Progress
from mpifs.repair.lost_inodes import COPY, ITSELF, rebuild
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.tree_edit import DIRECTORY, TreeEdit, kind_of
from mpifs.repair.volume import VolumeView

_PLACE = (ROOT_INODE, b"", DIRECTORY)


def check_root(view: VolumeView, snapshot: Snapshot, progress: Progress) -> Iterator[Finding]:
    """The root directory has a readable record, is a directory and its own parent."""
    progress.check()
    try:
        record = snapshot.inode(ROOT_INODE)
        detail = "the root directory has no record"
    except DamageError:
        record = None
        detail = "the record of the root directory is damaged beyond correction"
    edit = TreeEdit(snapshot)
    if record is None:
        rebuilt = rebuild(view, snapshot, ROOT_INODE, 0, _PLACE)
        assert rebuilt is not None, "a directory can be made anew"
        edit.restore_inode(_as_root(rebuilt.record))
        if rebuilt.source == COPY:
            detail += "; the copy of the index has it"
        elif rebuilt.source != ITSELF:
            detail += "; made anew, for its owner alone"
    elif kind_of(record) != DIRECTORY:
        detail = "the root is recorded as something else than a directory"
        edit.set_inode(_as_root(record))
    elif (record.parent, record.name) != (ROOT_INODE, b""):
        detail = "the root directory is recorded as lying in another one"
        edit.set_inode(_as_root(record))
    else:
        return
    remedy = partial(view.amend, edit.plan())
    yield Finding("check_root", ERROR, detail, path=b"/", inode=ROOT_INODE, remedy=remedy)


def _as_root(record: InodeRecord) -> InodeRecord:
    mode = S_IFDIR | (record.mode & 0o7777)
    return replace(record, mode=mode, parent=ROOT_INODE, name=b"")
