"""The folder of a chunk store: its name, its superblock, its lock.

`worker-N/` in the volume's folder (a symlink to another disk is fine) holds `superblock`, `lock`,
`small/` and `large/`.  The superblock is written last when a store is made, so a folder without
one is a store that was never finished, or none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil

from mpifs.core.errors import DamageError, FormatError, FullError, InUseError, MpifsError
from mpifs.core.superblock import SUPERBLOCK_BYTES, SUPERBLOCK_NAME, Role, Superblock
from mpifs.core.superblock import decode as decode_superblock
from mpifs.core.superblock import encode as encode_superblock
from mpifs.datafile import DATA_NAME

LOCK_NAME = "lock"
_PREFIX = "worker-"
_NAME = re.compile(r"worker-([1-9][0-9]{0,4})\Z")


def store_folder(volume_folder: str, store: int) -> str:
    """Where a volume keeps the store with this id."""
    return os.path.join(volume_folder, f"{_PREFIX}{store}")


def data_path(volume_folder: str, store: int, side: str) -> str:
    """The data file of one of a store's environments."""
    return os.path.join(store_folder(volume_folder, store), side, DATA_NAME)


def find_stores(volume_folder: str) -> list[tuple[int, bytes, bytes]]:
    """(store id, volume UUID, store UUID) of each store here; damaged ones are left out."""
    found = []
    try:
        names = os.listdir(volume_folder)
    except OSError:
        return []
    for name in names:
        match = _NAME.match(name)
        if match is None:
            continue
        try:
            block = read_superblock(os.path.join(volume_folder, name))
        except MpifsError:
            continue
        if block is not None and block.role is Role.STORE and block.store == int(match[1]):
            found.append((block.store, block.volume_uuid, block.own_uuid))
    return sorted(found)


def read_superblock(folder: str) -> Superblock | None:
    """The superblock in a folder, or None if there is none.  Raises FormatError, DamageError."""
    data = superblock_bytes(folder)
    return None if data is None else decode_superblock(data, os.path.join(folder, SUPERBLOCK_NAME))


def superblock_bytes(folder: str) -> bytes | None:
    """What stands where a folder's superblock should, or None.  Raises FormatError, DamageError."""
    path = os.path.join(folder, SUPERBLOCK_NAME)
    try:
        with open(path, "rb") as file:
            return file.read(SUPERBLOCK_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _failure(error, path) from error


def write_superblock(folder: str, block: Superblock) -> None:
    """Stores a superblock whole or not at all, durably."""
    path = os.path.join(folder, SUPERBLOCK_NAME)
    fresh = path + ".new"
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, encode_superblock(block))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(fresh, path)
        for place in (folder, os.path.dirname(os.path.abspath(folder))):
            _sync_folder(place)
    except OSError as error:
        raise _failure(error, path) from error


def put_in_place(fresh: str, path: str) -> None:
    """Renames what is durable already, durably; a file replaces one that is there."""
    try:
        os.rename(fresh, path)
        for place in {os.path.dirname(os.path.abspath(name)) for name in (fresh, path)}:
            _sync_folder(place)
    except OSError as error:
        raise _failure(error, path) from error


def remove_folder(folder: str) -> None:
    """Removes a folder with all that is in it, if it is there."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failure(error, folder) from error


def retire_folder(folder: str) -> None:
    """Removes a store for ever: first its superblock, so that what a crash leaves is no store."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, SUPERBLOCK_NAME))
        _sync_folder(folder)
        for name in ("small", "large", "copy"):
            remove_folder(os.path.join(folder, name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, LOCK_NAME))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failure(error, folder) from error
    with contextlib.suppress(OSError):  # a mount point, or a link to another disk
        os.rmdir(folder)


def make_folder(folder: str) -> None:
    """Makes the folder, only for its owner, if it is not there."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise _failure(error, folder) from error


def check_identity(
    folder: str,
    found: Superblock,
    *,
    volume_uuid: bytes,
    store_uuid: bytes,
    store: int,
    chunk_size: int,
    checksum: int,
) -> None:
    """Raises FormatError if the folder is not the store that the volume means."""
    if found.role is not Role.STORE:
        raise FormatError(f"{folder} is an index and no chunk store")
    if found.volume_uuid != volume_uuid:
        raise FormatError(
            f"{folder} belongs to another volume ({found.volume_uuid.hex()}); "
            "put back the right folder, or move this one away"
        )
    if found.store != store or found.own_uuid != store_uuid:
        raise FormatError(
            f"{folder} holds store {found.store} ({found.own_uuid.hex()}) instead of "
            f"store {store} ({store_uuid.hex()}); were folders or disks exchanged?"
        )
    if found.chunk_size != chunk_size or found.checksum != checksum:
        raise FormatError(f"{folder} has another chunk size or checksum than its volume's index")


def lock_folder(folder: str) -> int:
    """Takes the store for this process; closing the returned descriptor gives it back.

    Raises InUseError, with the other's process id where it is known.
    """
    path = os.path.join(folder, LOCK_NAME)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _failure(error, path) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise InUseError(
                f"{folder} is in use by process {owner or '?'}; unmount the volume there first"
            ) from None
        raise _failure(error, path) from error
    return fd


def check_unused(folder: str) -> None:
    """Raises InUseError if a process serves the store; touches nothing."""
    path = os.path.join(folder, LOCK_NAME)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failure(error, path) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise _failure(error, path) from error
        raise InUseError(f"{folder} is in use; unmount the volume there first") from None
    finally:
        os.close(fd)


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failure(error: OSError, path: str) -> MpifsError:
    code = error.errno or errno.EIO
    if code in (errno.ENOSPC, errno.EDQUOT):
        return FullError(f"the disk of {path} is full")
    if code == errno.EIO:
        return DamageError(f"{path} cannot be read or written; is its disk failing?")
    return FormatError(f"{path} cannot be used: {os.strerror(code)}")


def disk_of(folder: str) -> str:
    """Names the file system that a folder lies on: equal for folders that share its space.

    Device numbers are the kernel's, so the kernel's boot id stands before them.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            kernel = file.read().strip()
    except OSError:
        kernel = os.uname().nodename
    return f"{kernel}:{os.stat(folder).st_dev}"
