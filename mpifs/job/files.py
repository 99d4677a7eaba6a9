"""The file service of rank 0: file operations of commands, answered from the Vfs.

Calls `files.*` of the control socket; the other end is files_remote.RemoteFiles, and each method
`_…` below states the arguments and the result of its call.  Paths are absolute bytes inside the
volume.  The Vfs knows no symlinks in the folders of a path (the kernel walks paths for FUSE), so
they are followed here.  Permissions are not checked: only the volume's owner and root get here.
What a client has open is closed when it goes away.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable
from typing import Any, TypeVar

from mpifs.core.errors import PosixError, ProtocolError
from mpifs.core.limits import (
    CONTROL_HANDLES_MAX,
    PAGE_ENTRIES,
    PATH_BYTES_MAX,
    PIECE_BYTES,
    SYMLINKS_MAX,
)
from mpifs.job.control import Answer, ControlServer, Session
from mpifs.vfs.facade import Vfs

_Value = TypeVar("_Value")


class _Opened:
    """What one client has open: files, folders, and the layout it is paging through."""

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self.files: set[int] = set()
        self.folders: set[int] = set()
        self.layout: tuple[bytes, dict[str, Any]] | None = None

    def check_room(self) -> None:
        """Raises EMFILE when this client may open no more."""
        if len(self.files) + len(self.folders) >= CONTROL_HANDLES_MAX:
            raise PosixError(errno.EMFILE)

    def close(self, handle: int) -> None:
        """Closes one handle; an error of an earlier write comes out here."""
        if handle in self.folders:
            self.folders.remove(handle)
            self._vfs.releasedir(handle)
        elif handle in self.files:
            self.files.remove(handle)
            try:
                self._vfs.flush(handle)
            finally:
                self._vfs.release(handle)
        else:
            raise PosixError(errno.EBADF)

    def close_all(self) -> None:
        """Closes what is left; raises the last error after all have been closed."""
        failure: OSError | None = None
        for handle in [*self.files, *self.folders]:
            try:
                self.close(handle)
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure


def _take(args: dict[str, Any], name: str, kind: type[_Value]) -> _Value:
    value = args.get(name)
    if type(value) is not kind:
        raise ProtocolError(f"the control call has no valid argument {name!r}")
    return value


def _take_count(args: dict[str, Any], name: str) -> int:
    value = _take(args, name, int)
    if value < 0:
        raise PosixError(errno.EINVAL)
    return value


def _take_path(args: dict[str, Any], name: str = "path") -> bytes:
    path = _take(args, name, bytes)
    if not path.startswith(b"/") or b"\0" in path:
        raise PosixError(errno.EINVAL, "a path in a volume begins with / and holds no NUL")
    if len(path) >= PATH_BYTES_MAX:
        raise PosixError(errno.ENAMETOOLONG)
    return path


def _take_pair(args: dict[str, Any], name: str) -> tuple[int, int] | None:
    value = args.get(name)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or [type(part) for part in value] != [int, int]:
        raise ProtocolError(f"the control call has no valid argument {name!r}")
    return value[0], value[1]


def follow_links(vfs: Vfs, path: bytes, *, last: bool) -> bytes:
    """`path` without symlinks in its folders, and with `last` without one at its end.

    Raises ELOOP after SYMLINKS_MAX links, and what looking up a folder raises.
    """
    todo, done, links = path.split(b"/")[::-1], b"", 0
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            done = done.rpartition(b"/")[0]
            continue
        here = done + b"/" + part
        is_last = not any(rest not in (b"", b".") for rest in todo)
        if is_last and not last:
            return here
        try:
            mode = vfs.getattr(here).mode
        except OSError as error:
            if is_last and error.errno == errno.ENOENT:
                return here
            raise
        if stat.S_ISLNK(mode):
            links += 1
            if links > SYMLINKS_MAX:
                raise PosixError(errno.ELOOP)
            target = vfs.readlink(here)
            if target.startswith(b"/"):
                done = b""
            todo.extend(target.split(b"/")[::-1])
        elif not is_last and not stat.S_ISDIR(mode):
            raise PosixError(errno.ENOTDIR)
        else:
            done = here
    return done or b"/"


class FileService:
    """Answers `files.*`.  Handlers run in their client's thread; what a client has open belongs
    to that thread.  Create it, then register() it before the server starts."""

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self._opened: dict[Session, _Opened] = {}

    def register(self, server: ControlServer) -> None:
        """Adds all calls to a control server that has not been started."""
        for name, simple in self._simple_calls().items():
            server.register(f"files.{name}", simple)
        server.register_data("files.open", self._open)
        server.register_data("files.create", self._create)
        server.register_data("files.open_folder", self._open_folder)
        server.register_data("files.list", self._list)
        server.register_data("files.stat_open", self._stat_open)
        server.register_data("files.read", self._read)
        server.register_data("files.write", self._write)
        server.register_data("files.seek", self._seek)
        server.register_data("files.truncate", self._truncate)
        server.register_data("files.close", self._close)
        server.register_data("files.mkdir", self._mkdir)
        server.register_data("files.mknod", self._mknod)
        server.register_data("files.symlink", self._symlink)
        server.register_data("files.layout", self._layout)

    def _simple_calls(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        return {
            "stat": self._stat,
            "readlink": self._readlink,
            "link": self._link,
            "rename": self._rename,
            "unlink": self._unlink,
            "rmdir": self._rmdir,
            "set_attributes": self._set_attributes,
            "list_xattrs": self._list_xattrs,
            "get_xattr": self._get_xattr,
            "set_xattr": self._set_xattr,
            "remove_xattr": self._remove_xattr,
            "sync": self._sync,
        }

    def _place(self, args: dict[str, Any], name: str = "path", *, follow: bool = False) -> bytes:
        return follow_links(self._vfs, _take_path(args, name), last=follow)

    def _of(self, session: Session) -> _Opened:
        opened = self._opened.get(session)
        if opened is None:
            opened = self._opened[session] = _Opened(self._vfs)
            session.on_end(lambda: self._forget(session))
        return opened

    def _forget(self, session: Session) -> None:
        self._opened.pop(session).close_all()

    def _file(self, session: Session, args: dict[str, Any]) -> int:
        handle = _take(args, "handle", int)
        if handle not in self._of(session).files:
            raise PosixError(errno.EBADF)
        return handle

    # Names and attributes

    def _stat(self, args: dict[str, Any]) -> dict[str, Any]:
        """path, follow → stat (the twelve numbers of types.Stat)."""
        return {"stat": self._vfs.getattr(self._place(args, follow=_take(args, "follow", bool)))}

    def _readlink(self, args: dict[str, Any]) -> dict[str, Any]:
        """path → target."""
        return {"target": self._vfs.readlink(self._place(args))}

    def _link(self, args: dict[str, Any]) -> dict[str, Any]:
        """path, new → {}."""
        self._vfs.link(self._place(args), self._place(args, "new"))
        return {}

    def _rename(self, args: dict[str, Any]) -> dict[str, Any]:
        """path, new → {}."""
        self._vfs.rename(self._place(args), self._place(args, "new"))
        return {}

    def _unlink(self, args: dict[str, Any]) -> dict[str, Any]:
        """path → {}."""
        self._vfs.unlink(self._place(args))
        return {}

    def _rmdir(self, args: dict[str, Any]) -> dict[str, Any]:
        """path → {}."""
        self._vfs.rmdir(self._place(args))
        return {}

    def _mkdir(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """path, mode → {}."""
        mode = stat.S_IMODE(_take_count(args, "mode"))
        self._vfs.mkdir(self._place(args), mode, session.caller)
        return Answer({})

    def _mknod(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """path, mode, rdev → {}."""
        mode, rdev = _take_count(args, "mode"), _take_count(args, "rdev")
        if stat.S_IFMT(mode) not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            raise PosixError(errno.EINVAL)
        self._vfs.mknod(self._place(args), mode, rdev, session.caller)
        return Answer({})

    def _symlink(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """path, target → {}."""
        self._vfs.symlink(_take(args, "target", bytes), self._place(args), session.caller)
        return Answer({})

    def _set_attributes(self, args: dict[str, Any]) -> dict[str, Any]:
        """path, mode | None, owner [uid, gid] | None, times_ns [atime, mtime] | None → {}."""
        path = self._place(args)
        owner, times_ns = _take_pair(args, "owner"), _take_pair(args, "times_ns")
        if owner is not None:
            self._vfs.chown(path, *owner)
        if args.get("mode") is not None:
            mode = stat.S_IMODE(_take_count(args, "mode"))
            if not stat.S_ISLNK(self._vfs.getattr(path).mode):
                self._vfs.chmod(path, mode)
        if times_ns is not None:
            self._vfs.utimens(path, *times_ns)
        return {}

    def _list_xattrs(self, args: dict[str, Any]) -> dict[str, Any]:
        """path → names."""
        return {"names": self._vfs.listxattr(self._place(args))}

    def _get_xattr(self, args: dict[str, Any]) -> dict[str, Any]:
        """path, name → value."""
        return {"value": self._vfs.getxattr(self._place(args), _take(args, "name", bytes))}

    def _set_xattr(self, args: dict[str, Any]) -> dict[str, Any]:
        """path, name, value → {}."""
        name, value = _take(args, "name", bytes), _take(args, "value", bytes)
        self._vfs.setxattr(self._place(args), name, value, 0)
        return {}

    def _remove_xattr(self, args: dict[str, Any]) -> dict[str, Any]:
        """path, name → {}."""
        self._vfs.removexattr(self._place(args), _take(args, "name", bytes))
        return {}

    def _sync(self, args: dict[str, Any]) -> dict[str, Any]:
        """{} → {} when everything written so far is durable."""
        self._vfs.sync()
        return {}

    # Folders

    def _open_folder(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """path → handle."""
        opened = self._of(session)
        opened.check_room()
        handle = self._vfs.opendir(self._place(args, follow=True))
        opened.folders.add(handle)
        return Answer({"handle": handle})

    def _list(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """handle, offset → entries [[name, stat]], following (next offset, None at the end)."""
        handle, offset = _take(args, "handle", int), _take_count(args, "offset")
        if handle not in self._of(session).folders:
            raise PosixError(errno.EBADF)
        page = list(itertools.islice(self._vfs.readdir(handle, offset), PAGE_ENTRIES))
        entries = [(name, found) for name, found, _ in page if name not in (b".", b"..")]
        following = page[-1][2] if len(page) == PAGE_ENTRIES else None
        return Answer({"entries": entries, "following": following})

    # Open files

    def _open(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """path, follow → handle, for reading a regular file."""
        opened = self._of(session)
        opened.check_room()
        path = self._place(args, follow=_take(args, "follow", bool))
        mode = self._vfs.getattr(path).mode
        if stat.S_ISDIR(mode):
            raise PosixError(errno.EISDIR)
        if not stat.S_ISREG(mode):
            raise PosixError(errno.EINVAL, "not a regular file")
        handle = self._vfs.open(path, os.O_RDONLY, session.caller)
        opened.files.add(handle)
        return Answer({"handle": handle})

    def _create(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """path, mode → handle of a new file, for reading and writing."""
        opened = self._of(session)
        opened.check_room()
        mode = stat.S_IMODE(_take_count(args, "mode"))
        path = self._place(args)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        handle = self._vfs.create(path, mode, flags, session.caller)
        opened.files.add(handle)
        return Answer({"handle": handle})

    def _stat_open(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """handle → stat."""
        return Answer({"stat": self._vfs.getattr(None, self._file(session, args))})

    def _read(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """handle, offset, size → the bytes, raw; fewer only at the end of the file."""
        size = min(_take_count(args, "size"), PIECE_BYTES)
        into = memoryview(session.buffer)[:size]
        count = self._vfs.read(self._file(session, args), into, _take_count(args, "offset"))
        return Answer({}, into[:count])

    def _write(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """handle, offset, raw bytes → count."""
        handle, offset = self._file(session, args), _take_count(args, "offset")
        return Answer({"count": self._vfs.write(handle, body, offset, session.caller)})

    def _seek(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """handle, offset, whence (SEEK_DATA, SEEK_HOLE) → offset."""
        whence = _take(args, "whence", int)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise PosixError(errno.EINVAL)
        handle, offset = self._file(session, args), _take_count(args, "offset")
        return Answer({"offset": self._vfs.lseek(handle, offset, whence)})

    def _truncate(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """handle, size → {}."""
        handle = self._file(session, args)
        self._vfs.truncate(None, _take_count(args, "size"), handle, session.caller)
        return Answer({})

    def _close(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """handle → {}; an error of an earlier write comes out here."""
        self._of(session).close(_take(args, "handle", int))
        return Answer({})

    def _layout(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        """path, first (position in the list) → size, chunk_size, replicas, chunks (a page),
        following (position of the next page, None at the end)."""
        opened = self._of(session)
        path, first = self._place(args, follow=True), _take_count(args, "first")
        # One look at the file for all its pages: a page must not tell of another moment.
        if first == 0 or opened.layout is None or opened.layout[0] != path:
            found: dict[str, Any] = dict(self._vfs.layout(path))
            found.pop("path", None)
            opened.layout = (path, found)
        whole = opened.layout[1]
        end = first + PAGE_ENTRIES
        following = end if end < len(whole["chunks"]) else None
        page = {**whole, "chunks": whole["chunks"][first:end], "following": following}
        if following is None:
            opened.layout = None
        return Answer(page)
