"""How staged files get their names: folders on the way, new names, and names that are taken over.

Two runs at once never use one unfinished name: `busy` is shared by all of a volume.
"""

from __future__ import annotations

import errno
import stat

from mpifs.core.errors import PosixError
from mpifs.core.types import ROOT_INODE
from mpifs.index.inode import Inode
from mpifs.index.staged import Fresh, Numbers
from mpifs.job.stage_file import StagedFile
from mpifs.job.stage_place import Looks, Places
from mpifs.job.stage_run import StageRun

Busy = set[tuple[int, bytes]]
"""(folder's inode, unfinished name); single steps of set, any thread."""


class StagedNames:
    """Used by the run's thread."""

    def __init__(self, places: Places, run: StageRun, busy: Busy) -> None:
        self._places = places
        self._run = run
        self._busy = busy
        self._mine: Busy = set()

    def split(self, target: bytes) -> tuple[Inode | None, bytes]:
        """The folder and the name of a target path, as the user means it: symlinks in its folders
        are followed, missing folders are made.  (root, b"") for the root.  In a dry run None for a
        folder that is not there.  Raises OSError."""
        folder, _, name = target.rstrip(b"/").rpartition(b"/")
        if not name:
            return self._places.root(), b""
        if self._run.is_dry:
            try:
                return self._places.find_folder(folder), name
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                return None, name
        return self._places.make_folders(folder), name

    def folder(self, parent: Inode, name: bytes, looks: Looks) -> Inode:
        """The folder `name`, made or dressed.  Raises OSError: ENOTDIR where a file is."""
        places = self._places
        there = places.there(parent, name) if name else parent
        if there is not None and stat.S_ISLNK(there.mode):
            there = places.find_folder(places.path(parent, name))
        if there is None:
            numbers = places.next_numbers()
            return places.make(parent, name, numbers, places.fresh(looks))
        if not there.is_directory:
            sentence = "a file is where this folder is to go; remove it first"
            raise PosixError(errno.ENOTDIR, sentence)
        if there.ino != ROOT_INODE or name:
            places.dress(there, looks)
        return there

    def make(
        self, parent: Inode, target: bytes, numbers: Numbers, fresh: Fresh, replaces: bool
    ) -> Inode:
        """Gives a new file object its name.  Raises OSError; then nothing is done."""
        places = self._places
        if not replaces:
            return places.make(parent, target, numbers, fresh)
        part = places.part_name(target)
        self.claim(parent, part)
        try:
            if places.there(parent, part) is not None:
                places.remove(parent, part)
            inode = places.make(parent, part, numbers, fresh)
            self._rename(parent, part, target)
            return inode
        finally:
            self.release(parent, part)

    def end_partial(self, file: StagedFile, looks: Looks) -> Inode:
        """As `make`, for a large file that is whole now."""
        assert file.partial is not None
        self._places.end_partial(file.partial, looks)
        part = self._places.part_name(file.target)
        self._rename(file.parent, part, file.target)
        self.release(file.parent, part)
        return file.partial

    def drop_partial(self, file: StagedFile) -> None:
        """An unfinished large file is of a source that is another one now."""
        part = self._places.part_name(file.target)
        if self._places.there(file.parent, part) is file.partial:
            self._places.remove(file.parent, part)

    def link_over(self, inode: Inode, parent: Inode, target: bytes) -> None:
        """Makes `target`, which is another file now, a name of `inode`.  Raises OSError."""
        part = self._places.part_name(target)
        self.claim(parent, part)
        try:
            if self._places.there(parent, part) is not None:
                self._places.remove(parent, part)
            self._places.link(inode, parent, part)
            self._rename(parent, part, target)
        finally:
            self.release(parent, part)

    def _rename(self, parent: Inode, part: bytes, target: bytes) -> None:
        there = self._places.there(parent, target)
        if there is not None and there.is_directory:
            raise PosixError(errno.EISDIR, "a folder is where this is to go; remove it first")
        self._places.rename(parent, part, target)

    def claim(self, parent: Inode, part: bytes) -> None:
        """Takes an unfinished name for this run.  Raises EBUSY."""
        spot = (parent.ino, part)
        if spot in self._busy:
            raise PosixError(errno.EBUSY, "is being staged already, by this or another command")
        self._busy.add(spot)
        self._mine.add(spot)

    def release(self, parent: Inode, part: bytes) -> None:
        """Gives it back; may be repeated."""
        spot = (parent.ino, part)
        if spot in self._mine:
            self._mine.discard(spot)
            self._busy.discard(spot)

    def close(self) -> None:
        """Gives back everything."""
        self._busy.difference_update(self._mine)
        self._mine.clear()
