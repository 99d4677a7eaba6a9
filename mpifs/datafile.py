"""An LMDB data file seen from outside: its meta pages, its blocks, its disk.  Knows no lmdb.

LMDB 0.9 trusts a file's meta pages, so they are checked before LMDB sees the file.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mpifs.core.errors import DamageError, FormatError, FullError, MpifsError, PosixError
from mpifs.core.limits import KV_SLACK_BYTES, MIB

DATA_NAME = "data.mdb"
_MAGIC = 0xBEEFC0DE
_VERSION = 1
_NO_PAGE = 2**64 - 1
_DEPTH_MAX = 32  # CURSOR_STACK of LMDB
_PAGE_HEADER_BYTES = 16
# MDB_meta of LMDB 0.9: magic, version, address, map size, two MDB_db, last page, transaction id.
# MDB_db: pad (of the first one: page size), flags, depth, branch, leaf, overflow, entries, root.
_META = struct.Struct("=IIQQ" + "IHHQQQQQ" * 2 + "QQ")
_META_BYTES = _PAGE_HEADER_BYTES + _META.size
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUT_OF = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_NO_ACCESS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
)


def check_file(path: str) -> None:
    """Checks a data file as far as its meta pages tell.

    A file that ends before its last page may be whole: LMDB does not write pages that the same
    transaction frees.  Raises FormatError: damaged, or made on another kind of machine.
    """
    try:
        with open(path, "rb") as file:
            first = file.read(_META_BYTES)
            page_bytes = _page_bytes(first)
            file.seek(page_bytes)
            second = file.read(_META_BYTES)
    except OSError as error:
        raise disk_failure(error, error.errno, path) from error
    if not page_bytes:
        raise FormatError(f"{path} is damaged (its first page is no LMDB page); run mpifs fsck")
    if _page_bytes(second) != page_bytes:
        raise FormatError(f"{path} is damaged (its second page is no LMDB page); run mpifs fsck")
    metas = [_META.unpack_from(page, _PAGE_HEADER_BYTES) for page in (first, second)]
    newest = max(metas, key=lambda fields: int(fields[-1]))
    last_page = newest[-2]
    for depth, root in ((newest[6], newest[11]), (newest[14], newest[19])):
        if depth > _DEPTH_MAX or (root != _NO_PAGE and not 2 <= root <= last_page):
            raise FormatError(f"{path} is damaged (impossible root page); run mpifs fsck")


def _page_bytes(page: bytes) -> int:
    """Page size that a meta page names, or 0 if it is none."""
    if len(page) < _META_BYTES:
        return 0
    fields = _META.unpack_from(page, _PAGE_HEADER_BYTES)
    size = int(fields[4])
    is_meta = fields[0] == _MAGIC and fields[1] == _VERSION
    return size if is_meta and 512 <= size <= 65536 and size & (size - 1) == 0 else 0


def has_content(path: str) -> bool:
    """Whether the file is there and not empty."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise disk_failure(error, error.errno, path) from error


def make_folder(path: str) -> None:
    """Makes a folder for its owner alone, if it is not there."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        os.chmod(path, 0o700)
    except OSError as error:
        raise disk_failure(error, error.errno, path) from error


def allocated_bytes(fd: int) -> int:
    """How much of the file has blocks; a sparse tail does not count."""
    stat = os.fstat(fd)
    return min(stat.st_size, stat.st_blocks * 512)


def grow_file(fd: int, start: int, end: int) -> bool:
    """Allocates blocks for the range.  False if the disk is full; a file system that cannot
    allocate ahead is left to grow as it is written.

    Requires: nobody writes behind `start` meanwhile (glibc may emulate it by writing zeros).
    """
    try:
        os.posix_fallocate(fd, start, end - start)
    except OSError as error:
        if error.errno in _NO_SPACE:
            return False
        if error.errno not in _NOT_SUPPORTED:
            raise disk_failure(error, error.errno, "a data file") from error
    return True


def stream(produce: Callable[[int], None], write: Callable[[bytes], None]) -> int:
    """Gives `write` what `produce`, in a thread of its own, writes to the descriptor it is given.

    Gives the number of bytes.  What `write` or, if that does not, `produce` raises comes through.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def run() -> None:
        try:
            produce(writer)
        finally:
            os.close(writer)

    total = 0
    with ThreadPoolExecutor(1, "copy") as pool:
        made = pool.submit(run)
        try:
            while data := os.read(reader, MIB):
                write(data)
                total += len(data)
        finally:
            os.close(reader)  # then the other end's writes fail, if it is not at its end
    made.result()
    return total


def disk_free_bytes(path: str) -> int:
    """Bytes that the disk of `path` has for us."""
    try:
        stat = os.statvfs(path)
    except OSError as error:
        raise disk_failure(error, error.errno, path) from error
    return stat.f_bavail * stat.f_frsize


def disk_failure(error: Exception, code: int | None, path: str) -> MpifsError:
    """What an error of the operating system means; LMDB shows a full disk as EIO."""
    if code in _NO_SPACE or (code == errno.EIO and _is_full(path)):
        return FullError(f"the disk of {path} is full")
    if code in _OUT_OF:
        return PosixError(code, f"{path}: {os.strerror(code)} (a limit of this process)")
    if code in _NO_ACCESS:
        return FormatError(f"{path} cannot be opened: {os.strerror(code)}")
    return DamageError(f"{path} cannot be read or written ({error}); is its disk failing?")


def _is_full(path: str) -> bool:
    """Less room than one more commit may need."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return False
    return stat.f_bavail * stat.f_frsize < KV_SLACK_BYTES
