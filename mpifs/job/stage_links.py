"""Hard links among the sources of one run: they become hard links in the volume."""

from __future__ import annotations

from typing import NamedTuple

from mpifs.index.inode import Inode
from mpifs.job.stage_file import LinkKey
from mpifs.job.stage_names import StagedNames
from mpifs.job.stage_place import Places
from mpifs.job.stage_run import StageRun


class _Waiting(NamedTuple):
    """A further name of a file whose first one is not there yet."""

    path: bytes
    parent: Inode
    target: bytes


class Links:
    """What became of sources with several names; used by the run's thread.

    `_known`: the file in the volume, or the names that wait for it.
    """

    def __init__(self, places: Places, names: StagedNames, run: StageRun) -> None:
        self._places = places
        self._names = names
        self._run = run
        self._known: dict[LinkKey, Inode | list[_Waiting]] = {}

    def take(
        self,
        key: LinkKey,
        path: bytes,
        parent: Inode,
        target: bytes,
        there: Inode | None,
        is_same: bool,
    ) -> bool:
        """True if this name is or will be another name of a file that is known; else the caller
        goes on, and this is the first name.  `there` is what has the name now, `is_same` whether
        that needs no staging.  Raises OSError."""
        known = self._known.get(key)
        if known is None:
            self._known[key] = there if is_same and there is not None else []
            return False
        if isinstance(known, list):
            known.append(_Waiting(path, parent, target))
        else:
            self._link(known, _Waiting(path, parent, target))
        return True

    def made(self, key: LinkKey | None, inode: Inode) -> None:
        """The first name is there: the others follow."""
        if key is None:
            return
        waiting = self._known.get(key)
        self._known[key] = inode
        for each in waiting if isinstance(waiting, list) else ():
            try:
                self._link(inode, each)
            except OSError as error:
                self._run.fail(each.path, error)

    def failed(self, key: LinkKey | None, error: OSError) -> None:
        """The first name could not be made."""
        waiting = self._known.pop(key, None) if key is not None else None
        for each in waiting if isinstance(waiting, list) else ():
            self._run.fail(each.path, error)

    def _link(self, inode: Inode, to: _Waiting) -> None:
        there = self._places.there(to.parent, to.target)
        if there is inode:
            self._run.skipped += 1
            return
        if there is None:
            self._places.link(inode, to.parent, to.target)
            self._run.files += 1
            return
        self._names.link_over(inode, to.parent, to.target)
        self._run.files += 1
