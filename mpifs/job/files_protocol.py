"""Files of one place, whatever it is made of: the words shared by local and remote files.

Paths are bytes.  Every error is an OSError with its errno.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from mpifs.core.checksum import Buffer


class Attributes(NamedTuple):
    """What stat(2) says of a file; times in ns.  `device` is 0 where only one can be meant."""

    device: int
    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def is_folder(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


class Wanted(NamedTuple):
    """Attributes to set; None leaves one as it is."""

    mode: int | None = None
    owner: tuple[int, int] | None = None
    times_ns: tuple[int, int] | None = None


class OpenFile(Protocol):
    """A regular file opened by Files.open or Files.create; used by one thread."""

    def attributes(self) -> Attributes:
        """As they are now."""

    def read_into(self, into: memoryview, offset: int) -> int:
        """Fills `into` from `offset` on; the number of bytes, 0 at the end of the file."""

    def write(self, data: Buffer, offset: int) -> None:
        """Writes all of `data` at `offset`."""

    def seek(self, offset: int, whence: int) -> int:
        """The next data or hole (os.SEEK_DATA, os.SEEK_HOLE) at or after `offset`.

        ENXIO: none.  EINVAL or ENOTSUP: this place does not know its holes.
        """

    def truncate(self, size: int) -> None:
        """Sets the length."""

    def close(self) -> None:
        """Closes; an error of an earlier write may come out here.  May be repeated."""


class Files(Protocol):
    """Operations on the files of one place.  Symlinks in the folders of a path are followed; the
    last name of a path only where `follow` says so."""

    def stat(self, path: bytes, *, follow: bool = False) -> Attributes:
        """Attributes of what `path` names."""

    def scan(self, path: bytes) -> Iterator[tuple[bytes, Attributes]]:
        """Names in a folder with their attributes, without . and .., in no order."""

    def open(self, path: bytes, *, follow: bool = False) -> OpenFile:
        """Opens a regular file for reading."""

    def create(self, path: bytes, mode: int) -> OpenFile:
        """Makes a new regular file (EEXIST if the name is taken) and opens it for writing."""

    def mkdir(self, path: bytes, mode: int) -> None:
        """Makes a folder."""

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        """Makes a FIFO, a socket or a device node."""

    def symlink(self, target: bytes, path: bytes) -> None:
        """Makes a symbolic link `path` that says `target`."""

    def readlink(self, path: bytes) -> bytes:
        """What a symbolic link says."""

    def link(self, existing: bytes, path: bytes) -> None:
        """Gives a file another name."""

    def rename(self, old: bytes, new: bytes) -> None:
        """Renames, in place of what `new` names."""

    def unlink(self, path: bytes) -> None:
        """Takes the name of anything but a folder away."""

    def rmdir(self, path: bytes) -> None:
        """Takes an empty folder away."""

    def set_attributes(self, path: bytes, wanted: Wanted) -> None:
        """Owner, then mode (a change of owner clears set-id bits), then times; never through a
        symlink, and never the mode of one."""

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        """The attributes `user.…` of a file or folder, without mpifs's own; empty where the place
        has none."""

    def set_xattr(self, path: bytes, name: bytes, value: bytes) -> None:
        """Sets one attribute."""

    def layout(self, path: bytes) -> dict[str, Any]:
        """Where the chunks of a file lie, in the shape of `mpifs layout --json` without `path`."""

    def sync(self) -> None:
        """Returns when everything written is durable, as far as this place promises it."""


OWN_XATTR_PREFIX = b"user.mpifs."
"""Attributes that mpifs makes itself; never copied."""


def is_copied_xattr(name: bytes) -> bool:
    """Whether an attribute belongs to the user and goes along with a copy."""
    return name.startswith(b"user.") and not name.startswith(OWN_XATTR_PREFIX)


def join(folder: bytes, name: bytes) -> bytes:
    """Path of `name` in `folder`; an empty folder is the current one."""
    if not folder:
        return name
    return folder + name if folder.endswith(b"/") else folder + b"/" + name
