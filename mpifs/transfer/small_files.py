"""Small files received many at once: each is written, synced and renamed, each folder synced once.

A file that fails leaves nothing behind and does not stop the others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence

from mpifs import faultpoint
from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError, PosixError, ProtocolError
from mpifs.core.limits import BODY_BYTES_MAX
from mpifs.core.transfer_messages import Entry, Failure
from mpifs.transfer.chunks import read_at, sum_of, write_at
from mpifs.transfer.folder import LocalFolder, part_name, parts_of, shown
from mpifs.transfer.part_file import open_part


def has_file(folder: LocalFolder, entry: Entry, checksum: bytes) -> bool:
    """Whether the file is there with that content; it then has its mode and times, too."""
    if not 0 <= entry.size <= BODY_BYTES_MAX:
        raise ProtocolError("a small file that is not small")
    try:
        with folder.reading(entry.path) as descriptor:
            if os.fstat(descriptor).st_size != entry.size:
                return False
            buffer = bytearray(entry.size)
            got = read_at(descriptor, 0, memoryview(buffer))
            if got != entry.size or sum_of(buffer) != checksum:
                return False
            _adorn(descriptor, entry)
            return True
    except OSError:
        return False


def put_files(
    folder: LocalFolder, entries: Sequence[Entry], sums: Sequence[bytes], data: Sequence[Buffer]
) -> list[Failure]:
    """Stores them; all but those that are told are durable under their names."""
    if not len(entries) == len(sums) == len(data):
        raise ProtocolError("files without their checksums or bytes")
    failures: list[Failure] = []
    groups: dict[bytes, list[int]] = {}
    for place, entry in enumerate(entries):
        try:
            groups.setdefault(b"/".join(parts_of(entry.path)[:-1]), []).append(place)
        except MpifsError as error:
            failures.append(_failure(place, entry, error))
    for around, places in groups.items():
        try:
            with folder.opened(around, make=True) as opened:
                for place in places:
                    try:
                        _put(opened, entries[place], sums[place], data[place])
                    except OSError as error:
                        failures.append(_failure(place, entries[place], error))
                os.fsync(opened)
        except OSError as error:
            failed = {failure.item for failure in failures}
            failures += [_failure(p, entries[p], error) for p in places if p not in failed]
    return failures


def _put(folder: int, entry: Entry, checksum: bytes, data: Buffer) -> None:
    if len(data) != entry.size or sum_of(data) != checksum:
        raise PosixError(errno.EBADMSG, f"{shown(entry.path)} was damaged on its way")
    name = parts_of(entry.path)[-1]
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise PosixError(
                errno.EEXIST, f"{shown(entry.path)} is there and no regular file; remove it first"
            )
    part = part_name(name)
    descriptor = open_part(folder, name, entry.path)
    try:
        faultpoint.reach("transfer.small")
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, entry.size)
        write_at(descriptor, 0, data, is_sparse=entry.is_sparse)
        check = bytearray(entry.size)
        if read_at(descriptor, 0, memoryview(check)) != entry.size or sum_of(check) != checksum:
            raise PosixError(errno.EIO, f"{shown(entry.path)}: the disk gives other bytes back")
        _adorn(descriptor, entry)
        os.fsync(descriptor)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise
    finally:
        os.close(descriptor)


def _adorn(descriptor: int, entry: Entry) -> None:
    os.fchmod(descriptor, entry.mode & 0o7777)
    os.utime(descriptor, ns=(entry.atime_ns, entry.mtime_ns))


def _failure(place: int, entry: Entry, error: OSError) -> Failure:
    code = error.errno or errno.EIO
    is_said = isinstance(error, MpifsError)
    return Failure(place, code, str(error) if is_said else f"{shown(entry.path)}: "
                   f"{os.strerror(code)}")  # fmt: skip
