"""Names of staged files: folders, new and replaced files, hard links, all made in the index.

What is new appears at once under its name.  What takes the place of a file is made beside it and
renamed.  The kernel, which has not asked for any of it, is told of each name and folder, also of
names that it has looked for in vain: it may remember that they are not there.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import NamedTuple

from mpifs.core.errors import PosixError
from mpifs.core.limits import INDEX_REF_BYTES, INDEX_ROW_BYTES, STAGE_COUNT_MAX, STAGE_TOLD_MAX
from mpifs.core.stage_messages import Identity
from mpifs.core.types import ROOT_INODE, Caller, ChunkRef
from mpifs.index.inode import Inode
from mpifs.index.staged import Fresh, Numbers
from mpifs.job.files import follow_links
from mpifs.job.files_protocol import is_copied_xattr
from mpifs.job.stage_run import part_name
from mpifs.vfs.facade import Vfs
from mpifs.vfs.protection import check_addition, check_change

IDENTITY_XATTR = b"user.mpifs.source"
"""On an unfinished large file: which state of its source its chunks are of."""


class Looks(NamedTuple):
    """Attributes of a source that its copy gets."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    rdev: int
    xattrs: list[tuple[bytes, bytes]]


class Places:
    """Makes names; used by the run's thread.  `caller` owns what is made unless it is root, for
    whom the sources' owners are kept.  `settle` waits until the kernel has heard what it was told.
    """

    def __init__(self, vfs: Vfs, caller: Caller, settle: Callable[[], object]) -> None:
        self._vfs = vfs
        self._index = vfs.index
        self._caller = caller
        self._keeps_owner = caller.uid == 0
        self._settle = settle
        self._inodes: set[int] = set()
        self._entries: list[tuple[int, bytes]] = []
        self._told = 0

    def root(self) -> Inode:
        """The volume's root."""
        return self._index.inode(ROOT_INODE)

    def next_numbers(self) -> Numbers:
        """Of a new file object."""
        return self._index.next_inode()

    def find_folder(self, path: bytes) -> Inode:
        """The folder that a path means; symlinks are followed.  Raises ENOENT, ENOTDIR."""
        inode = self._index.resolve(follow_links(self._vfs, path or b"/", last=True))
        if not inode.is_directory:
            raise PosixError(errno.ENOTDIR)
        return inode

    def make_folders(self, path: bytes) -> Inode:
        """The same, made where it is not there, as mkdir -p does."""
        try:
            return self.find_folder(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            above, _, name = path.rstrip(b"/").rpartition(b"/")
            parent = self.make_folders(above)
            now_ns = time.time_ns()
            caller = self._caller
            looks = Looks(stat.S_IFDIR | 0o755, caller.uid, caller.gid, now_ns, now_ns, 0, [])
            return self.make(parent, name, self.next_numbers(), self.fresh(looks))

    def _changed(self, parent: Inode, name: bytes, *inodes: Inode) -> None:
        """The kernel is to be told of a name, and of what else has changed with it."""
        self._entries.append((parent.ino, name))
        self._inodes.add(parent.ino)
        self._inodes.update(inode.ino for inode in inodes)
        if len(self._entries) >= STAGE_COUNT_MAX:
            self.tell()

    def tell(self) -> None:
        """Tells the kernel of what was made since."""
        if self._inodes or self._entries:
            self._vfs.nodes.on_change(self._inodes, self._entries)
            self._told += len(self._inodes) + len(self._entries)
            self._inodes, self._entries = set(), []
            if self._told > STAGE_TOLD_MAX:
                self.settle()

    def settle(self) -> None:
        """Tells the kernel, and waits until it has heard."""
        self.tell()
        self._told = 0
        self._settle()

    def looks(self, found: os.stat_result, xattrs: list[tuple[bytes, bytes]]) -> Looks:
        """What a copy of a source looks like."""
        owner = (found.st_uid, found.st_gid)
        uid, gid = owner if self._keeps_owner else (self._caller.uid, self._caller.gid)
        return Looks(
            found.st_mode, uid, gid, found.st_atime_ns, found.st_mtime_ns, found.st_rdev, xattrs
        )

    def fresh(
        self,
        looks: Looks,
        *,
        size: int = 0,
        target: bytes = b"",
        refs: list[tuple[int, ChunkRef]] | None = None,
    ) -> Fresh:
        """A file object with these looks."""
        return Fresh(
            looks.mode,
            looks.uid,
            looks.gid,
            looks.atime_ns,
            looks.mtime_ns,
            size,
            looks.rdev,
            target,
            looks.xattrs,
            refs or (),
            inherits_group=not self._keeps_owner,
        )

    def there(self, parent: Inode, name: bytes) -> Inode | None:
        """What a name names now."""
        ino = self._index.lookup(parent.ino, name)
        return self._index.inode(ino) if ino else None

    def make(self, parent: Inode, name: bytes, numbers: Numbers, fresh: Fresh) -> Inode:
        """Makes a file object under a new name.  Raises OSError; then nothing is done."""
        check_addition(parent)
        room = INDEX_ROW_BYTES + len(fresh.target) + INDEX_REF_BYTES * len(fresh.refs)
        room += sum(INDEX_ROW_BYTES + len(value) for _, value in fresh.xattrs)
        self._vfs.committer.claim_room(room)
        inode = self._index.place(parent, name, numbers, fresh, time.time_ns())
        self._vfs.committer.kick()
        self._changed(parent, name)
        return inode

    def part_name(self, name: bytes) -> bytes:
        """Where a file stands until it has its name."""
        return part_name(name)

    def path(self, parent: Inode, name: bytes) -> bytes:
        """A path in the volume."""
        return self._index.path_of(parent.ino).rstrip(b"/") + b"/" + name

    def remove(self, parent: Inode, name: bytes) -> None:
        """Takes a name that an earlier run has left."""
        self._vfs.unlink(self.path(parent, name))
        self._changed(parent, name)

    def rename(self, parent: Inode, old: bytes, new: bytes) -> None:
        """Renames in one folder, in place of what is there; who has that open keeps it."""
        replaced = self.there(parent, new)
        self._vfs.rename(self.path(parent, old), self.path(parent, new))
        self._changed(parent, old)
        self._changed(parent, new, *([replaced] if replaced is not None else []))

    def link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """One more name."""
        self._vfs.link(self._index.path_of(inode.ino), self.path(parent, name))
        self._changed(parent, name, inode)

    def dress(self, inode: Inode, looks: Looks) -> None:
        """Gives an existing file object these looks."""
        check_change(inode)
        now_ns = time.time_ns()
        with self._index.lock:
            for name, value in looks.xattrs:
                self._index.set_xattr(inode, name, value, now_ns=now_ns)
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(looks.mode)
            if self._keeps_owner:
                inode.uid, inode.gid = looks.uid, looks.gid
            inode.atime_ns, inode.mtime_ns = looks.atime_ns, looks.mtime_ns
            inode.ctime_ns = now_ns
            self._index.touch(inode)
        self._vfs.committer.kick()
        self._inodes.add(inode.ino)

    def set_times(self, inode: Inode, atime_ns: int, mtime_ns: int) -> None:
        """Of a folder, when everything is in it."""
        with self._index.lock:
            inode.atime_ns, inode.mtime_ns = atime_ns, mtime_ns
            self._index.touch(inode)
        self._inodes.add(inode.ino)

    # Large files that are not whole yet

    def begin_partial(
        self, parent: Inode, name: bytes, numbers: Numbers, identity: Identity
    ) -> Inode:
        """The unfinished file of an earlier run, if it is of the same source; else a new one."""
        left = self.there(parent, name)
        text = b"%d %d %d %d" % identity
        if left is not None:
            if self._identity_of(left) == text and stat.S_ISREG(left.mode):
                return left
            self.remove(parent, name)
        caller = self._caller
        fresh = Fresh(
            stat.S_IFREG | 0o600,
            caller.uid,
            caller.gid,
            time.time_ns(),
            time.time_ns(),
            identity.size,
            xattrs=((IDENTITY_XATTR, text),),
        )
        return self.make(parent, name, numbers, fresh)

    def _identity_of(self, inode: Inode) -> bytes:
        try:
            return self._index.get_xattr(inode, IDENTITY_XATTR)
        except PosixError as error:
            if error.errno != errno.ENODATA:
                raise
            return b""

    def add_ref(self, inode: Inode, chunk: int, ref: ChunkRef) -> None:
        """A chunk of an unfinished file is durable."""
        self._vfs.committer.claim_room(INDEX_REF_BYTES)
        self._index.set_refs(inode, [(chunk, ref)])
        self._vfs.committer.kick()

    def end_partial(self, inode: Inode, looks: Looks) -> None:
        """It is whole: it gets its looks; its name is the caller's business."""
        self._index.remove_xattr(inode, IDENTITY_XATTR, now_ns=time.time_ns())
        self.dress(inode, looks)


def xattrs_of(path: bytes) -> list[tuple[bytes, bytes]]:
    """The user's extended attributes of a source file or folder.  Raises OSError."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return []
        raise
    found = []
    for name in map(os.fsencode, names):
        if is_copied_xattr(name):
            try:
                found.append((name, os.getxattr(path, name, follow_symlinks=False)))
            except OSError as error:
                if error.errno != errno.ENODATA:  # taken away meanwhile.
                    raise
    return found
