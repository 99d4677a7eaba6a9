"""Stage-in: trees of a file system into the volume, read by the workers themselves.

The run's thread walks the sources, makes folders and what has no data, and gives regular files to
StagedFiles.  What is there with the size and mtime of its source is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from mpifs.core.errors import PosixError
from mpifs.core.types import Caller
from mpifs.data.stores import Stores
from mpifs.index.inode import Inode
from mpifs.job.stage_file import LinkKey
from mpifs.job.stage_files import StagedFiles
from mpifs.job.stage_links import Links
from mpifs.job.stage_names import Busy, StagedNames
from mpifs.job.stage_place import Places, xattrs_of
from mpifs.job.stage_run import CancelledError, Pair, StageRun
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs

_TURN_COUNT = 256  # entries walked between two looks at what has come back.


class StageIn:
    """One run.  `run_all` is called by its own thread."""

    def __init__(
        self,
        vfs: Vfs,
        client: Client,
        stores: Stores,
        run: StageRun,
        caller: Caller,
        busy: Busy,
        *,
        settle: Callable[[], object],
    ) -> None:
        self._vfs = vfs
        self._index = vfs.index
        self._run = run
        self._caller = caller
        self._places = Places(vfs, caller, settle)
        self._names = StagedNames(self._places, run, busy)
        self._links = Links(self._places, self._names, run)
        self._files = StagedFiles(vfs, client, stores, run, self._places, self._names, self._links)
        self._folders: list[tuple[int, int, int]] = []
        """(inode number, atime, mtime): not the inodes, which would all stay in memory."""
        self.settle = self._files.settle
        """See StagedFiles.settle; any thread."""

    def run_all(self) -> None:
        """Stages all pairs of the run.  Raises CancelledError; what is done stands, durably."""
        try:
            for pair in self._run.pairs:
                self._pair(pair)
            self._end()
        except BaseException:
            self._files.abandon()
            raise
        finally:
            self._names.close()
            self._places.settle()
            self._vfs.committer.commit()

    # The walk

    def _pair(self, pair: Pair) -> None:
        self._run.check()
        try:
            found = os.lstat(pair.source)
            folder, name = os.path.split(pair.source)
            if stat.S_ISDIR(found.st_mode):
                self._tree(pair.source, found, *self._names.split(pair.target))
            else:
                parent, target = self._names.split(pair.target)
                self._entry(folder, name, found, parent, target)
        except CancelledError:
            raise
        except OSError as error:
            self._run.fail(pair.source, error)

    def _tree(self, top: bytes, found: os.stat_result, parent: Inode | None, name: bytes) -> None:
        todo: list[tuple[bytes, os.stat_result, Inode | None, bytes]] = [(top, found, parent, name)]
        while todo:
            path, found, parent, name = todo.pop()
            self._files.turn()
            try:
                here = self._enter(path, found, parent, name)
                with os.scandir(path) as entries:
                    for entry in entries:
                        inner = self._take(path, entry, here)
                        if inner is not None:
                            todo.append((entry.path, inner, here, entry.name))
            except CancelledError:
                raise
            except OSError as error:
                self._run.fail(path, error)

    def _take(
        self, folder: bytes, entry: os.DirEntry[bytes], here: Inode | None
    ) -> os.stat_result | None:
        """One entry of a folder; the attributes of what is a folder itself.  Raises nothing but
        CancelledError for what is wrong with this entry alone."""
        try:
            found = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                return found
            self._entry(folder, entry.name, found, here, entry.name)
        except CancelledError:
            raise
        except FileNotFoundError:
            pass  # taken away since the folder was listed
        except OSError as error:
            self._run.fail(entry.path, error)
        return None

    def _enter(
        self, path: bytes, found: os.stat_result, parent: Inode | None, name: bytes
    ) -> Inode | None:
        """The folder in the volume for a source folder; made, or dressed, like it.  None in a dry
        run for what is not there."""
        run = self._run
        if run.device and found.st_dev == run.device:
            raise PosixError(errno.EINVAL, "lies in this volume itself; use cp in the mount")
        if run.is_dry:
            run.folders += 1
            here = self._places.there(parent, name) if parent is not None and name else parent
            return here if here is not None and here.is_directory else None
        assert parent is not None
        looks = self._places.looks(found, xattrs_of(path))
        here = self._names.folder(parent, name, looks)
        self._folders.append((here.ino, found.st_atime_ns, found.st_mtime_ns))
        run.folders += 1
        return here

    def _entry(
        self,
        folder: bytes,
        name: bytes,
        found: os.stat_result,
        parent: Inode | None,
        target: bytes,
    ) -> None:
        """Anything but a folder."""
        run = self._run
        run.walked += 1
        if not run.walked % _TURN_COUNT:
            self._files.turn()
        path = os.path.join(folder, name)
        there = self._places.there(parent, target) if parent is not None else None
        if there is not None and there.is_directory:
            raise PosixError(errno.EISDIR, "a folder is where this is to go; remove it first")
        is_same = there is not None and _is_same(path, found, there)
        key: LinkKey | None = None
        if found.st_nlink > 1:
            key = (found.st_dev, found.st_ino)
        if run.is_dry:
            self._count(found, is_same)
            return
        assert parent is not None
        if key is not None and self._links.take(key, path, parent, target, there, is_same):
            return
        if is_same:
            run.skipped += 1
            return
        begin = self._files.begin if stat.S_ISREG(found.st_mode) else self._special
        try:
            begin(folder, name, found, parent, target, there is not None, key)
        except OSError as error:
            self._links.failed(key, error)
            raise

    def _count(self, found: os.stat_result, is_same: bool) -> None:
        if is_same:
            self._run.skipped += 1
        else:
            self._run.files += 1
            self._run.bytes += found.st_size if stat.S_ISREG(found.st_mode) else 0

    def _special(
        self,
        folder: bytes,
        name: bytes,
        found: os.stat_result,
        parent: Inode,
        target: bytes,
        replaces: bool,
        key: LinkKey | None,
    ) -> None:
        """A symlink, FIFO, socket or device node."""
        path = os.path.join(folder, name)
        is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
        if is_device and self._caller.uid:
            raise PosixError(errno.EPERM, "only root makes device nodes")
        text = os.readlink(path) if stat.S_ISLNK(found.st_mode) else b""
        looks = self._places.looks(found, [])
        fresh = self._places.fresh(looks, target=text)
        numbers = self._index.next_inode()
        inode = self._names.make(parent, target, numbers, fresh, replaces)
        self._run.files += 1
        self._links.made(key, inode)

    # The end

    def _end(self) -> None:
        """Waits for everything under way; folders get their times when all is in them."""
        run = self._run
        self._files.drain(run.check)
        for ino, atime_ns, mtime_ns in reversed(self._folders):
            with contextlib.suppress(OSError):  # it may have been removed since
                self._places.set_times(self._index.inode(ino), atime_ns, mtime_ns)


def _is_same(path: bytes, found: os.stat_result, there: Inode) -> bool:
    """Whether a source need not be staged again."""
    if stat.S_IFMT(found.st_mode) != stat.S_IFMT(there.mode):
        return False
    if stat.S_ISREG(found.st_mode):
        return found.st_size == there.size and found.st_mtime_ns == there.mtime_ns
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path) == there.target and found.st_mtime_ns == there.mtime_ns
    return found.st_rdev == there.rdev and found.st_mtime_ns == there.mtime_ns
