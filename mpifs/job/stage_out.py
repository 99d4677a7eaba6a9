"""Stage-out: trees of the volume to another file system, written by the workers themselves.

The run's thread walks the index, makes folders and what has no data, and gives regular files to
OutFiles.  Each chunk that was written is read back and compared with the index's checksum before
the file gets its name, so what the report counts lies there as the job wrote it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable

from mpifs.core.errors import PosixError
from mpifs.core.limits import PAGE_ENTRIES, STAGE_ABANDON_S
from mpifs.core.stage_messages import Dress
from mpifs.core.types import Caller
from mpifs.data.stores import Stores
from mpifs.index.inode import Inode
from mpifs.job.files import follow_links
from mpifs.job.files_protocol import is_copied_xattr
from mpifs.job.stage_out_file import OutFile
from mpifs.job.stage_out_files import OutFiles
from mpifs.job.stage_run import CancelledError, Pair, StageRun, part_name
from mpifs.store.stage_out import sync_file_system
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs

_TURN_COUNT = 256  # entries walked between two looks at what has come back.


class StageOut:
    """One run.  `run_all` is called by its own thread."""

    def __init__(
        self, vfs: Vfs, client: Client, stores: Stores, run: StageRun, caller: Caller
    ) -> None:
        self._vfs = vfs
        self._index = vfs.index
        self._run = run
        self._client = client
        self._stores = stores
        self._keeps_owner = os.geteuid() == 0 and not caller.uid
        self._folders: list[tuple[bytes, int]] = []
        self._first_names: dict[int, bytes | list[tuple[bytes, bytes]]] = {}
        """Of files with several names: where the first one lies, or (volume path, target) of
        those that wait for it."""
        self._roots: set[bytes] = set()
        self._files: OutFiles | None = None
        self._probes: list[bytes] = []

    def run_all(self) -> None:
        """Stages all pairs of the run.  Raises CancelledError; what has its name is whole."""
        self._vfs.sync()
        try:
            for pair in self._run.pairs:
                self._pair(pair)
            self._end()
        except BaseException:
            if self._files is not None:
                self._files.abandon(time.monotonic() + STAGE_ABANDON_S)
            raise
        finally:
            for probe in self._probes:
                with contextlib.suppress(OSError):
                    os.unlink(probe)

    # The walk

    def _pair(self, pair: Pair) -> None:
        self._run.check()
        try:
            inode = self._index.resolve(follow_links(self._vfs, pair.source, last=False))
            folder, name = os.path.split(pair.target.rstrip(b"/"))
            if not self._run.is_dry:
                self._reach(folder)
            if inode.is_directory:
                self._tree(pair.source, inode, pair.target)
            else:
                self._entry(pair.source, inode, folder, name)
        except CancelledError:
            raise
        except OSError as error:
            self._run.fail(pair.source, error)

    def _reach(self, folder: bytes) -> None:
        """Makes the folder of a target where it is not there, and a probe in the first of each."""
        os.makedirs(folder or b"/", exist_ok=True)
        found = os.stat(folder or b"/")
        if self._run.device and found.st_dev == self._run.device:
            raise PosixError(errno.EINVAL, "the target lies in this volume itself; use cp")
        self._roots.add(folder or b"/")
        if self._files is None:
            probe = os.path.join(folder or b"/", part_name(secrets.token_bytes(16)))
            os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            self._probes.append(probe)
            files = OutFiles(self._vfs, self._client, self._stores, self._run, probe)
            files.on_done, files.on_failed = self._done, self._failed
            self._files = files

    def _tree(self, source: bytes, top: Inode, target: bytes) -> None:
        todo = [(source, top, target)]
        while todo:
            path, inode, place = todo.pop()
            self._turn()
            try:
                self._enter(inode, place)
                for name, child in self._entries(inode):
                    inner = path.rstrip(b"/") + b"/" + name
                    if child.is_directory:
                        todo.append((inner, child, os.path.join(place, name)))
                    else:
                        self._take(inner, child, place, name)
            except CancelledError:
                raise
            except OSError as error:
                self._run.fail(path, error)

    def _entries(self, folder: Inode) -> Iterable[tuple[bytes, Inode]]:
        after = b""
        while page := self._index.entries(folder.ino, after, PAGE_ENTRIES):
            for name, ino, _ in page:
                try:
                    yield name, self._index.inode(ino)
                except PosixError as error:
                    if error.errno != errno.ESTALE:  # removed since it was listed
                        raise
            after = page[-1][0]

    def _enter(self, inode: Inode, place: bytes) -> None:
        self._run.folders += 1
        if self._run.is_dry:
            return
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            if not os.path.isdir(place):
                sentence = "a file is where this folder is to go; remove it first"
                raise PosixError(errno.ENOTDIR, sentence) from None
        self._folders.append((place, inode.ino))

    def _turn(self) -> None:
        self._run.check()
        if self._files is not None:
            self._files.turn()

    def _take(self, path: bytes, inode: Inode, folder: bytes, name: bytes) -> None:
        try:
            self._entry(path, inode, folder, name)
        except CancelledError:
            raise
        except OSError as error:
            self._failed_name(inode, error)
            self._run.fail(path, error)

    def _entry(self, path: bytes, inode: Inode, folder: bytes, name: bytes) -> None:
        """Anything but a folder."""
        run = self._run
        run.walked += 1
        if not run.walked % _TURN_COUNT:
            self._turn()
        if run.is_dry:
            run.files += 1
            run.bytes += inode.size if stat.S_ISREG(inode.mode) else 0
            return
        target = os.path.join(folder, name)
        if inode.nlink > 1:
            first = self._first_names.get(inode.ino)
            if isinstance(first, list):
                first.append((path, target))
                return
            if first is not None:
                self._link(first, target)
                return
            self._first_names[inode.ino] = []
        if stat.S_ISREG(inode.mode):
            assert self._files is not None
            self._files.begin(path, inode, folder, name, self._looks(inode))
            return
        self._special(inode, folder, name)
        self._named(inode, target)

    def _looks(self, inode: Inode) -> Dress:
        names = self._index.list_xattrs(inode) if self._vfs.nodes.has_xattrs else []
        xattrs = [(n, self._index.get_xattr(inode, n)) for n in names if is_copied_xattr(n)]
        uid, gid = (inode.uid, inode.gid) if self._keeps_owner else (-1, -1)
        mode = stat.S_IMODE(inode.mode)
        return Dress(mode, uid, gid, inode.atime_ns, inode.mtime_ns, xattrs)

    def _special(self, inode: Inode, folder: bytes, name: bytes) -> None:
        """A symlink, FIFO, socket or device node."""
        target, looks = os.path.join(folder, name), self._looks(inode)
        with contextlib.suppress(FileNotFoundError):
            there = os.lstat(target)
            is_same = stat.S_IFMT(there.st_mode) == stat.S_IFMT(inode.mode)
            is_same = is_same and there.st_mtime_ns == inode.mtime_ns
            if is_same and stat.S_ISLNK(inode.mode):
                is_same = os.readlink(target) == inode.target
            if is_same:
                self._run.skipped += 1
                return
        fresh = os.path.join(folder, part_name(name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        if stat.S_ISLNK(inode.mode):
            os.symlink(inode.target, fresh)
        else:
            os.mknod(fresh, inode.mode, inode.rdev)
        if looks.uid != -1:
            os.chown(fresh, looks.uid, looks.gid, follow_symlinks=False)
        if not stat.S_ISLNK(inode.mode):
            os.chmod(fresh, looks.mode)
        os.utime(fresh, ns=(looks.atime_ns, looks.mtime_ns), follow_symlinks=False)
        os.rename(fresh, target)
        self._run.files += 1

    # Hard links, and what files tell

    def _done(self, file: OutFile) -> None:
        self._named(file.inode, os.path.join(file.folder, file.name))

    def _failed(self, file: OutFile, error: OSError) -> None:
        if not isinstance(error, CancelledError):
            self._run.fail(file.path, error)
        self._failed_name(file.inode, error)

    def _named(self, inode: Inode, target: bytes) -> None:
        waiting = self._first_names.get(inode.ino)
        if not isinstance(waiting, list):
            return
        self._first_names[inode.ino] = target
        for path, other in waiting:
            try:
                self._link(target, other)
            except OSError as error:
                self._run.fail(path, error)

    def _failed_name(self, inode: Inode, error: OSError) -> None:
        waiting = self._first_names.get(inode.ino)
        if isinstance(waiting, list):
            del self._first_names[inode.ino]
            for path, _ in waiting:
                self._run.fail(path, error)

    def _link(self, first: bytes, target: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samefile(first, target):
                self._run.skipped += 1
                return
        folder, name = os.path.split(target)
        fresh = os.path.join(folder, part_name(name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        os.link(first, fresh, follow_symlinks=False)
        os.rename(fresh, target)
        self._run.files += 1

    # The end

    def _end(self) -> None:
        """Waits for everything under way; folders get their looks when all is in them."""
        if self._files is not None:
            self._files.drain(self._run.check)
        for place, ino in reversed(self._folders):
            try:
                looks = self._looks(self._index.inode(ino))
                for name, value in looks.xattrs:
                    os.setxattr(place, name, value)
                if looks.uid != -1:
                    os.chown(place, looks.uid, looks.gid)
                os.chmod(place, looks.mode)
                os.utime(place, ns=(looks.atime_ns, looks.mtime_ns))
            except OSError as error:
                self._run.fail(place, error)
        for root in self._roots:
            opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sync_file_system(opened)
            finally:
                os.close(opened)
