"""One rank's local folder, DIR/rank-K: opens what lies in it and never anything outside.

A name is walked part by part from a descriptor of the folder, and no part of it may be a symbolic
link (O_NOFOLLOW): so no link leads out, and none that is put there at the last moment does.
Absolute names and `..` are refused before anything is opened.  Thread-safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from mpifs.core.checksum import guard64
from mpifs.core.errors import PosixError
from mpifs.core.limits import FOLDER_DEPTH_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX
from mpifs.core.transfer_messages import FILE, FOLDER, LINK, OTHER, Entry

PART_PREFIX, PART_SUFFIX = b".mpifs-", b".part"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def shown(path: bytes) -> str:
    """A name in a sentence: what cannot be printed stands as an escape."""
    text = path.decode("utf-8", "backslashreplace") or "."
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def parts_of(path: bytes) -> list[bytes]:
    """The parts of a name, [] for the folder itself.  Raises PosixError for one that climbs out."""
    if path.startswith(b"/"):
        raise PosixError(
            errno.EPERM,
            f"{shown(path)} is absolute; names are relative to the rank's own folder",
        )
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise PosixError(errno.EPERM, f"{shown(path)} climbs out of the rank's folder by ..")
    if b"\0" in path:
        raise PosixError(errno.EINVAL, f"{shown(path)} has a NUL in it")
    if len(path) > PATH_BYTES_MAX or len(parts) > FOLDER_DEPTH_MAX:
        raise PosixError(errno.ENAMETOOLONG, f"{shown(path[:80])}… is too long a name")
    if any(len(part) > NAME_BYTES_MAX for part in parts):
        raise PosixError(errno.ENAMETOOLONG, f"{shown(path)} has a part of over 255 bytes")
    return parts


def joined(*paths: bytes) -> bytes:
    """Names one below the other; empty ones and dots are left out."""
    return b"/".join(part for path in paths for part in path.split(b"/") if part not in (b"", b"."))


def part_name(name: bytes) -> bytes:
    """Under which name a file is received until it is whole."""
    if len(PART_PREFIX) + len(name) + len(PART_SUFFIX) > NAME_BYTES_MAX:
        name = b"%016x" % guard64(name)
    return PART_PREFIX + name + PART_SUFFIX


def is_part(name: bytes) -> bool:
    """Whether it is such a name: not to be listed or moved."""
    return name.startswith(PART_PREFIX) and name.endswith(PART_SUFFIX)


def leads_out(path: bytes, target: bytes) -> bool:
    """Whether a symbolic link at `path` with this text points out of the rank's folder."""
    depth = len(parts_of(path)) - 1
    if target.startswith(b"/"):
        return True
    for part in target.split(b"/"):
        depth += {b"..": -1, b".": 0, b"": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def entry_at(folder: int, name: bytes, path: bytes) -> Entry:
    """What `name` in an open folder is."""
    return entry_of(path, os.stat(name, dir_fd=folder, follow_symlinks=False), folder, name)


def entry_of(path: bytes, found: os.stat_result, folder: int = -1, name: bytes = b"") -> Entry:
    """The entry of a file that has been looked at; a link is read in its folder."""
    kind, link = OTHER, b""
    if stat.S_ISREG(found.st_mode):
        kind = FILE
    elif stat.S_ISDIR(found.st_mode):
        kind = FOLDER
    elif stat.S_ISLNK(found.st_mode):
        kind, link = LINK, os.readlink(name, dir_fd=folder)
    return Entry(
        path,
        kind,
        found.st_size if kind == FILE else 0,
        stat.S_IMODE(found.st_mode),
        found.st_mtime_ns,
        found.st_atime_ns,
        found.st_ctime_ns,
        found.st_dev,
        found.st_ino,
        found.st_blocks,
        link,
    )


class LocalFolder:
    """The folder at `path`, which is made if it is not there.  Its last part is no link."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        above, name = os.path.split(self.path)
        try:
            os.makedirs(above, exist_ok=True)
            outer = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise PosixError(
                error.errno or errno.EIO,
                f"{above}: {error.strerror}; give a folder that every host can have with --local",
            ) from None
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=outer)
            self._root = os.open(name, _FOLDER_FLAGS, dir_fd=outer)
        except OSError as error:
            raise PosixError(
                error.errno or errno.EIO, f"{self.path} is no folder of mpifs: {error.strerror}"
            ) from None
        finally:
            os.close(outer)

    def close(self) -> None:
        """Ends its use; no other method may be called afterwards."""
        os.close(self._root)

    def free_bytes(self) -> int:
        """What its disk can take."""
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize

    @contextlib.contextmanager
    def opened(self, path: bytes, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the folder `path` for the block; missing ones are made if `make`.

        Raises PosixError with a sentence.
        """
        descriptor = os.dup(self._root)
        try:
            done = b""
            for part in parts_of(path):
                done = joined(done, part)
                inner = self._step(descriptor, part, done, make=make)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _step(self, descriptor: int, part: bytes, done: bytes, *, make: bool) -> int:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o777, dir_fd=descriptor)
                os.fsync(descriptor)
        try:
            return os.open(part, _FOLDER_FLAGS, dir_fd=descriptor)
        except OSError as error:
            raise self._refusal(descriptor, part, done, error) from None

    @contextlib.contextmanager
    def place(self, path: bytes, *, make: bool = False) -> Iterator[tuple[int, bytes]]:
        """(descriptor of the folder around `path`, its last part) for the block."""
        parts = parts_of(path)
        if not parts:
            raise PosixError(errno.EISDIR, "name a file in the rank's folder, not the folder")
        with self.opened(b"/".join(parts[:-1]), make=make) as folder:
            yield folder, parts[-1]

    @contextlib.contextmanager
    def reading(self, path: bytes) -> Iterator[int]:
        """A descriptor of a regular file for the block.  Raises PosixError with a sentence."""
        with self.place(path) as (folder, name):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                descriptor = os.open(name, flags, dir_fd=folder)
            except OSError as error:
                raise self._refusal(folder, name, path, error) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PosixError(errno.EINVAL, f"{shown(path)} is no regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    def look(self, path: bytes) -> Entry:
        """What is there, a link not followed.  Raises PosixError(ENOENT) with a sentence."""
        parts = parts_of(path)
        if not parts:
            return entry_of(b"", os.fstat(self._root))
        with self.place(path) as (folder, name):
            try:
                return entry_at(folder, name, b"/".join(parts))
            except OSError as error:
                raise self._refusal(folder, name, path, error) from None

    def entries(self, path: bytes, after: bytes, count: int) -> tuple[list[Entry], bool]:
        """At most `count` entries of a folder in the order of names, those behind `after`, and
        whether these are all; partial files are left out."""
        with self.opened(path) as folder:
            names = sorted(
                name for name in map(os.fsencode, os.listdir(folder)) if not is_part(name)
            )
            if after:
                names = [name for name in names if name > after]
            found = []
            for name in names[:count]:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    found.append(entry_at(folder, name, joined(path, name)))
            return found, len(names) <= count

    def _refusal(self, folder: int, name: bytes, path: bytes, error: OSError) -> PosixError:
        """The sentence for a name that cannot be opened."""
        code = error.errno or errno.EIO
        with contextlib.suppress(OSError):
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                return PosixError(
                    errno.ELOOP,
                    f"{shown(path)} is a symbolic link, which could lead out of {self.path}; "
                    "name what it points to",
                )
        if code == errno.ENOENT:
            return PosixError(code, f"{shown(path)}: no such file in {self.path}")
        return PosixError(code, f"{shown(path)}: {os.strerror(code)} in {self.path}")
