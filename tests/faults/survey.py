"""Everything that can be read of a volume: names, attributes, bytes, errors, piece by piece.

`survey_folder` reads a mounted one.  As a program this file reads a volume at rest, with its stores
and its index in one process (loopback transport): a quick mount, whose crash is seen from outside.

    python -m tests.faults.survey FOLDER OUTPUT
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mpifs.core.types import Caller
from mpifs.vfs.facade import Vfs
from tests.vfs.loopback import LoopbackVolume

PIECE = 64 * 1024
CALLER = Caller(0, 0)


@dataclass
class Entry:
    """What a name shows.  Of a regular file `pieces` has each chunk's bytes or an errno."""

    mode: int = 0
    nlink: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    ino: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes | int] = field(default_factory=list)
    error: int = 0
    """Why there is no more than this."""

    def attributes(self) -> tuple[object, ...]:
        """What must come back whole."""
        size = 0 if stat.S_ISDIR(self.mode) else self.size
        return (self.mode, self.nlink, self.uid, self.gid, size, self.mtime_ns, self.target)


Survey = dict[bytes, Entry]


class Readable(Protocol):
    """The few calls that a survey makes."""

    def lstat(self, path: bytes) -> os.stat_result: ...
    def names(self, path: bytes) -> list[bytes]: ...
    def target(self, path: bytes) -> bytes: ...
    def xattrs(self, path: bytes) -> dict[bytes, bytes]: ...
    def reader(self, path: bytes) -> contextlib.AbstractContextManager[Callable[[int], bytes]]: ...


class Mounted:
    """A mount point, seen through the kernel."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fsencode(folder)

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._folder, path) if path else self._folder

    def lstat(self, path: bytes) -> os.stat_result:
        return os.lstat(self._at(path))

    def names(self, path: bytes) -> list[bytes]:
        return os.listdir(self._at(path))

    def target(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        at = self._at(path)
        names = [n for n in os.listxattr(at, follow_symlinks=False) if n != "user.mpifs.layout"]
        return {os.fsencode(n): os.getxattr(at, n, follow_symlinks=False) for n in names}

    @contextlib.contextmanager
    def reader(self, path: bytes) -> Iterator[Callable[[int], bytes]]:
        fd = os.open(self._at(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            # The kernel reads ahead: of an error it would then tell at another place.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            yield lambda offset: os.pread(fd, PIECE, offset)
        finally:
            os.close(fd)


class InProcess:
    """A Vfs, called directly."""

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs

    def lstat(self, path: bytes) -> os.stat_result:
        s = self._vfs.getattr(b"/" + path)
        times = (s.atime_ns // 10**9, s.mtime_ns // 10**9, s.ctime_ns // 10**9)
        extra = {"st_mtime_ns": s.mtime_ns}
        return os.stat_result(
            (s.mode, s.ino, 0, s.nlink, s.uid, s.gid, s.size, *times),
            extra,
        )

    def names(self, path: bytes) -> list[bytes]:
        handle = self._vfs.opendir(b"/" + path)
        try:
            return [n for n, _, _ in self._vfs.readdir(handle) if n not in (b".", b"..")]
        finally:
            self._vfs.releasedir(handle)

    def target(self, path: bytes) -> bytes:
        return self._vfs.readlink(b"/" + path)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        names = self._vfs.listxattr(b"/" + path)
        return {
            name: self._vfs.getxattr(b"/" + path, name)
            for name in names
            if name != b"user.mpifs.layout"
        }

    @contextlib.contextmanager
    def reader(self, path: bytes) -> Iterator[Callable[[int], bytes]]:
        handle = self._vfs.open(b"/" + path, os.O_RDONLY, CALLER)
        buffer = memoryview(bytearray(PIECE))
        try:
            yield lambda offset: bytes(buffer[: self._vfs.read(handle, buffer, offset)])
        finally:
            self._vfs.release(handle)


def take(place: Readable, known: list[bytes] | None = None) -> Survey:
    """Reads everything that is reached from the root, and `known` paths even if no listing has
    them."""
    found: Survey = {}
    waiting = [b"", *(known or [])]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = entry = _look(place, path)
            if stat.S_ISDIR(entry.mode):
                try:
                    names = place.names(path)
                except OSError as error:
                    entry.error = error.errno or -1
                    continue
                waiting += [os.path.join(path, name) if path else name for name in names]
    return found


def _look(place: Readable, path: bytes) -> Entry:
    entry = Entry()
    try:
        s = place.lstat(path)
        entry.mode, entry.nlink, entry.size, entry.ino = s.st_mode, s.st_nlink, s.st_size, s.st_ino
        entry.uid, entry.gid, entry.mtime_ns = s.st_uid, s.st_gid, s.st_mtime_ns
        if stat.S_ISLNK(s.st_mode):
            entry.target = place.target(path)
        if stat.S_ISREG(s.st_mode):
            with place.reader(path) as read:
                entry.pieces = [_piece(read, at) for at in range(0, s.st_size, PIECE)]
        if stat.S_ISREG(s.st_mode) or stat.S_ISDIR(s.st_mode):
            entry.xattrs = place.xattrs(path)
    except OSError as error:
        entry.error = error.errno or -1
    return entry


def _piece(read: Callable[[int], bytes], offset: int) -> bytes | int:
    try:
        return read(offset)
    except OSError as error:
        return error.errno or -1
    except Exception:  # noqa: BLE001 - the FUSE adapter answers EIO; it is a defect all the same.
        print(traceback.format_exc(), file=sys.stderr)
        return errno.EIO


def survey_folder(folder: Path, known: list[bytes] | None = None) -> Survey:
    """Of a mounted volume."""
    return take(Mounted(folder), known)


class Existing(LoopbackVolume):
    """A volume that is there already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers = max(
            int(name.removeprefix("worker-"))
            for name in os.listdir(folder)
            if name.startswith("worker-") and name[7:].isdigit()
        )
        self.vfs = None


def main(folder: str, output: str) -> None:
    """Surveys a volume at rest; what is known of its paths comes on standard input."""
    known = pickle.load(sys.stdin.buffer)
    volume = Existing(Path(folder))
    # A volume that cannot be served says so and ends; threads of its stores must not hold it.
    try:
        found = take(InProcess(volume.open()), known)
        with contextlib.suppress(OSError):
            volume.close()
    except OSError as error:
        found = {b"": Entry(error=error.errno or -1, target=str(error).encode())}
    Path(output).write_bytes(pickle.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    # By its name, so that what is pickled is known to the reader.
    from importlib import import_module

    import_module("tests.faults.survey").main(*sys.argv[1:])
