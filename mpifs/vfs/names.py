"""Names: paths to inodes, and everything that makes, moves and removes a name."""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Callable, Sequence

from mpifs.core.errors import PosixError
from mpifs.core.limits import INDEX_ROW_BYTES, SYMLINK_BYTES_MAX
from mpifs.core.types import Caller
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs.aliases import Aliases, Name
from mpifs.vfs.committer import Committer
from mpifs.vfs.file_data import FileData
from mpifs.vfs.handles import Handles
from mpifs.vfs.hidden import HiddenFiles
from mpifs.vfs.protection import check_change, check_new_entry


class Names:
    """Operations on names.  `on_change(paths, handles)` drops the kernel's caches of other names of
    a changed file; it is called with no lock held."""

    def __init__(
        self,
        index: Index,
        handles: Handles,
        committer: Committer,
        on_change: Callable[[list[bytes], list[int]], None],
        *,
        refuse_links: bool,
    ) -> None:
        self._on_change = on_change
        self._index = index
        self._handles = handles
        self._committer = committer
        self._refuse_links = refuse_links
        self._hidden = HiddenFiles()
        self._aliases = Aliases(self._drop_names)

    def find(self, path: bytes | None, fh: int | None = None) -> Inode:
        """The inode of a handle, else of a path."""
        if fh is not None:
            inode = self._handles.find(fh)
            if inode is not None:
                return inode
        if path is None:
            raise PosixError(errno.EBADF)
        hidden = self._hidden.find(path)
        if hidden is not None:
            return hidden
        return self._index.resolve(path)

    def alias(self, path: bytes | None) -> Name | None:
        if path is None or path == b"/":
            return None
        try:
            parent, name = self._index.resolve_parent(path)
        except OSError:
            return None
        return parent.ino, name

    def seen(self, inode: Inode, alias: Name | None) -> None:
        """The kernel is shown a file under a name: remember names of files that have several."""
        if inode.nlink > 1 and alias is not None and not stat.S_ISDIR(inode.mode):
            self._aliases.saw(inode.ino, alias)

    def changed(self, inode: Inode, alias: Name | None) -> None:
        """A file has changed through `alias`; its other names must not show old state."""
        if self._aliases:
            names = self._aliases.others(inode.ino, alias)
            if names:
                data = inode.data
                handles = list(data.handles) if isinstance(data, FileData) else []
                self._drop_names(names, handles)

    def _drop_names(self, names: list[Name], handles: Sequence[int] = ()) -> None:
        paths = []
        for parent, name in names:
            folder = self._index.path_of(parent)
            paths.append(folder.rstrip(b"/") + b"/" + name)
        self._on_change(paths, list(handles))

    def is_shared(self, inode: Inode) -> bool:
        """Whether the kernel may know the file by several names, now or a while ago."""
        return inode.nlink > 1 or bool(self._aliases.others(inode.ino, None))

    def make(
        self,
        path: bytes,
        mode: int,
        caller: Caller,
        rdev: int = 0,
        target: bytes = b"",
    ) -> tuple[Inode, Name]:
        self._committer.claim_room(INDEX_ROW_BYTES + len(target))
        parent, name = self._index.resolve_parent(path)
        check_new_entry(parent)
        inode = self._index.create(
            parent,
            name,
            mode,
            caller.uid,
            caller.gid,
            rdev=rdev,
            target=target,
            now_ns=time.time_ns(),
        )
        self._committer.kick()
        return inode, (parent.ino, name)

    def mknod(self, path: bytes, mode: int, rdev: int, caller: Caller) -> None:
        """mknod(2)."""
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        self.make(path, mode, caller, rdev)

    def mkdir(self, path: bytes, mode: int, caller: Caller) -> None:
        """mkdir(2)."""
        self.make(path, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def symlink(self, target: bytes, path: bytes, caller: Caller) -> None:
        """symlink(2)."""
        if not target:
            raise PosixError(errno.ENOENT)
        if len(target) > SYMLINK_BYTES_MAX:
            raise PosixError(errno.ENAMETOOLONG)
        self.make(path, stat.S_IFLNK | 0o777, caller, target=target)

    def readlink(self, path: bytes) -> bytes:
        """readlink(2)."""
        inode = self.find(path)
        if not stat.S_ISLNK(inode.mode):
            raise PosixError(errno.EINVAL)
        return inode.target

    def link(self, source: bytes, path: bytes) -> None:
        """link(2)."""
        if self._refuse_links:
            raise PosixError(errno.EPERM, "no hard links with -o writeback: writes would be lost")
        inode = self.find(source)
        check_change(inode)
        parent, name = self._index.resolve_parent(path)
        check_new_entry(parent)
        self._committer.claim_room(INDEX_ROW_BYTES)
        old = self.alias(source)
        self._index.link(inode, parent, name, time.time_ns())
        self._committer.kick()
        new = (parent.ino, name)
        self._aliases.saw(inode.ino, *([old, new] if old else [new]))
        self.changed(inode, new)

    def unlink(self, path: bytes) -> None:
        """unlink(2); also libfuse's farewell to a removed open file."""
        if self._hidden.remove(path) is not None:
            return
        parent, name = self._index.resolve_parent(path)
        self._unlink(parent, name)

    def _unlink(self, parent: Inode, name: bytes) -> Inode:
        self._check_removal(parent, name)
        inode = self._index.unlink(parent, name, time.time_ns())
        self._committer.removed(inode)
        self._committer.kick()
        if self._aliases:
            self._aliases.gone(inode.ino, (parent.ino, name))
            self.changed(inode, None)
        self._committer.after_removal()
        return inode

    def _check_removal(self, parent: Inode, name: bytes) -> None:
        """Raises EPERM if a name must stay: its file or its directory is protected."""
        check_change(parent)
        ino = self._index.lookup(parent.ino, name)
        if ino:
            check_change(self._index.inode(ino))

    def rmdir(self, path: bytes) -> None:
        """rmdir(2)."""
        if path == b"/":
            raise PosixError(errno.EBUSY)
        parent, name = self._index.resolve_parent(path)
        self._check_removal(parent, name)
        self._index.rmdir(parent, name, time.time_ns())
        self._committer.kick()
        self._committer.after_removal()

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """renameat2(2) with NOREPLACE and EXCHANGE."""
        parent, name = self._index.resolve_parent(old)
        new_parent, new_name = self._index.resolve_parent(new)
        self._check_removal(parent, name)
        check_new_entry(new_parent)
        if self._index.lookup(new_parent.ino, new_name):
            self._check_removal(new_parent, new_name)
        self._committer.claim_room(INDEX_ROW_BYTES, is_growth=False)
        with self._committer.rename_gate:
            with self._index.lock:
                ino = self._index.lookup(parent.ino, name)
                moved = self._index.inode(ino) if ino else None
                replaced = self._index.rename(
                    parent, name, new_parent, new_name, flags, time.time_ns()
                )
            data = moved.data if moved is not None else None
            self._committer.renamed_over(data if isinstance(data, FileData) else None)
        if replaced is not None:
            self._committer.removed(replaced)
        self._committer.kick()
        if self._aliases and moved is not None:
            self._rename_aliases(moved, replaced, (parent.ino, name), (new_parent.ino, new_name))

    def _rename_aliases(self, moved: Inode, replaced: Inode | None, old: Name, new: Name) -> None:
        if replaced is not None and replaced is not moved:
            self._aliases.gone(replaced.ino, new)
            self.changed(replaced, None)
        self._aliases.moved(moved.ino, old, new)
        self.changed(moved, new)

    def hide(self, path: bytes, hidden: bytes, keeps_name: bool) -> None:
        """libfuse renames an open file that is to go to a hidden name.

        If the user has asked for its removal, that is the unlink.  If the user has asked for a
        rename over it (`keeps_name`), the second rename follows at once and replaces it: until
        then it keeps its name, so that the name is never missing, nor can a commit miss it.
        """
        parent, name = self._index.resolve_parent(path)
        ino = self._index.lookup(parent.ino, name)
        if not ino:
            raise PosixError(errno.ENOENT)
        self._hidden.add(hidden, self._index.inode(ino))
        if not keeps_name:
            self._unlink(parent, name)
