"""The folder of an index: its superblock, and the lock that keeps a second process out."""

from __future__ import annotations

import fcntl
import os

from mpifs.core import superblock
from mpifs.core.errors import FormatError, InUseError
from mpifs.core.superblock import SUPERBLOCK_NAME, Role, Superblock

LOCK_NAME = "lock"


def make_folder(folder: str) -> None:
    """Makes the folder of a new index, mode 0700.

    Raises FormatError if there is something in it: a volume is never made over another.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.path.exists(os.path.join(folder, SUPERBLOCK_NAME)):
        raise FormatError(f"{folder} holds a volume already; remove it first or choose another")
    if os.listdir(folder):
        raise FormatError(f"{folder} is not empty; empty it or choose another folder")
    os.chmod(folder, 0o700)


def lock_folder(folder: str) -> int:
    """A descriptor that holds the folder's lock until it is closed.  Raises InUseError."""
    try:
        lock = os.open(
            os.path.join(folder, LOCK_NAME), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{folder} is no volume; make one with mpifs mkfs") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InUseError(f"{folder} is in use by another process (is it mounted?)") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def read_superblock(folder: str) -> Superblock:
    """The superblock of an index.  Raises FormatError with what to do."""
    path = os.path.join(folder, SUPERBLOCK_NAME)
    try:
        with open(path, "rb") as file:
            data = file.read(superblock.SUPERBLOCK_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{folder} is no volume; make one with mpifs mkfs") from None
    block = superblock.decode(data, path)
    if block.role is not Role.INDEX:
        raise FormatError(f"{path} is that of a chunk store, not of an index")
    return block


def write_superblock(folder: str, block: Superblock) -> None:
    """Writes it durably and whole; it comes last, so that a half-made volume has none."""
    path = os.path.join(folder, SUPERBLOCK_NAME)
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(superblock.encode(block))
        file.flush()
        os.fsync(descriptor)
    os.rename(path + ".new", path)
    for each in (folder, os.path.dirname(os.path.abspath(folder))):
        directory = os.open(each, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
