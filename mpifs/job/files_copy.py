"""Copies trees from one place to another, as `cp -a` does: `put` and `get` are this.

Modes, times, symlinks, FIFOs and device nodes, attributes `user.…`, holes, and hard links within
one copy are kept; owners too when root copies.  A file appears under its name only when it is
whole: it is written under a temporary name and renamed.  Never follows a symlink of the source.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from typing import NamedTuple

from mpifs.core.errors import PosixError
from mpifs.core.limits import PIECE_BYTES
from mpifs.job.files_protocol import Attributes, Files, OpenFile, Wanted, join
from mpifs.job.files_tree import Listener, report

_NO_LINKS = (errno.EMLINK, errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
_NO_HOLES = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
TEMPORARY_PREFIX = b".mpifs-"


class _Step(NamedTuple):
    """A file or folder to copy, or (`is_filled`) a folder whose attributes are to be set."""

    source: bytes
    target: bytes
    found: Attributes | None = None
    is_filled: bool = False


def data_extents(file: OpenFile, found: Attributes) -> Iterator[tuple[int, int]]:
    """Where a file has data, as (start, end) in order; what lies between reads as zeros."""
    if found.blocks * 512 >= found.size:
        yield 0, found.size
        return
    position = 0
    while position < found.size:
        try:
            start = file.seek(position, os.SEEK_DATA)
            end = min(file.seek(start, os.SEEK_HOLE), found.size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno not in _NO_HOLES:
                raise
            start, end = position, found.size
        if start < end:
            yield start, end
        position = max(end, position + 1)


class Copier:
    """Copies from one Files to another; used by one thread.

    Hard links are kept among everything that one Copier copies.
    """

    def __init__(
        self, source: Files, target: Files, listener: Listener, *, keeps_owner: bool
    ) -> None:
        self._source = source
        self._target = target
        self._listener = listener
        self._keeps_owner = keeps_owner
        self._buffer = memoryview(bytearray(PIECE_BYTES))
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._made: set[tuple[int, int]] = set()
        self._has_warned_xattrs = False

    def copy(self, source: bytes, target: bytes) -> None:
        """Copies a file to the name `target`, or a folder's content and attributes into it.

        `target` may be there: a file is replaced, a folder added to.  Errors go to the listener.
        """
        todo = [_Step(source, target)]
        while todo:
            step = todo.pop()
            try:
                found = step.found or self._source.stat(step.source)
                if step.is_filled:
                    self._dress(step, found)
                    self._listener.on_done(step.source, found)
                elif found.is_folder:
                    inner = self._enter(step, found)
                    todo.append(step._replace(found=found, is_filled=True))
                    todo += inner
                else:
                    self._copy_one(step, found)
                    self._listener.on_done(step.source, found)
            except OSError as error:
                report(self._listener, step.source, error)

    def write_stream(self, stream: int, target: bytes, mode: int) -> int:
        """Copies a file descriptor's bytes to its end into the file `target`; their number."""
        size = 0
        with self._fresh(target) as fresh:
            with contextlib.closing(self._target.create(fresh, 0o600)) as writer:
                while count := os.readv(stream, [self._buffer]):
                    writer.write(self._buffer[:count], size)
                    size += count
                    self._listener.on_bytes(count)
            self._target.set_attributes(fresh, Wanted(mode=mode))
        return size

    def _enter(self, step: _Step, found: Attributes) -> list[_Step]:
        """Makes the target folder if it is not there; the steps for what is in the source."""
        entries = sorted(self._source.scan(step.source), reverse=True)
        try:
            self._target.mkdir(step.target, 0o700)
            present = self._target.stat(step.target)
        except FileExistsError:
            present = self._target.stat(step.target, follow=True)
            if not present.is_folder:
                raise PosixError(
                    errno.ENOTDIR, "a file is where this folder is to go; remove it first"
                ) from None
        if present.device and _identity(present) == _identity(found):
            raise PosixError(errno.EINVAL, "source and target are the same folder")
        if _identity(found) in self._made:
            raise PosixError(errno.EINVAL, "a folder cannot be copied into itself")
        if present.device:
            self._made.add(_identity(present))
        return [
            _Step(join(step.source, name), join(step.target, name), entry)
            for name, entry in entries
            if not (entry.is_folder and entry.device and _identity(entry) in self._made)
        ]

    def _copy_one(self, step: _Step, found: Attributes) -> None:
        """Anything but a folder."""
        if found.nlink > 1:
            first = self._first_names.get(_identity(found))
            if first is not None and self._link(first, step.target, step.source):
                return
        if found.is_regular:
            with contextlib.closing(self._source.open(step.source)) as reader:
                # The file as it is opened, which may be a newer one than the scan has seen.
                found = reader.attributes()
                with self._fresh(step.target) as fresh:
                    with contextlib.closing(self._target.create(fresh, 0o600)) as writer:
                        self._pump(reader, writer, found)
                    self._dress(step._replace(target=fresh), found)
        else:
            with self._fresh(step.target) as fresh:
                if found.is_symlink:
                    self._target.symlink(self._source.readlink(step.source), fresh)
                else:
                    self._target.mknod(fresh, found.mode, found.rdev)
                self._dress(step._replace(target=fresh), found)
        if found.nlink > 1:
            self._first_names[_identity(found)] = step.target

    def _link(self, first: bytes, target: bytes, source: bytes) -> bool:
        """Makes `target` another name of the copied `first`; False if links cannot be made."""
        if first == target:
            return True
        try:
            with self._fresh(target) as fresh:
                self._target.link(first, fresh)
            # rename(2) leaves both names when they were already one file.
            with contextlib.suppress(FileNotFoundError):
                self._target.unlink(fresh)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._listener.on_warning(source, "copied once more: hard links cannot be made there")
            return False
        return True

    @contextlib.contextmanager
    def _fresh(self, target: bytes) -> Iterator[bytes]:
        """A temporary name beside `target` that becomes `target`, or goes away on any error."""
        folder, slash, _ = target.rpartition(b"/")
        name = TEMPORARY_PREFIX + secrets.token_hex(8).encode() + b".part"
        fresh = folder + slash + name
        try:
            yield fresh
            self._target.rename(fresh, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self._target.unlink(fresh)
            raise

    def _pump(self, reader: OpenFile, writer: OpenFile, found: Attributes) -> None:
        """Copies the bytes; holes stay holes, and a file that grows is copied to its end."""
        position = is_at_end = 0
        for start, end in data_extents(reader, found):
            position = start
            while position < end:
                is_last = end == found.size
                into = self._buffer if is_last else self._buffer[: end - position]
                count = reader.read_into(into, position)
                if count == 0:
                    raise PosixError(errno.EIO, "became shorter while it was copied; try again")
                writer.write(into[:count], position)
                self._listener.on_bytes(count)
                position += count
                is_at_end = is_last and count < len(into)
        if position < found.size:
            writer.truncate(found.size)
            return
        while not is_at_end and (count := reader.read_into(self._buffer, position)):
            writer.write(self._buffer[:count], position)
            self._listener.on_bytes(count)
            position += count
            is_at_end = count < len(self._buffer)

    def _dress(self, step: _Step, found: Attributes) -> None:
        """Attributes of the source for the target; times last, since all else changes them."""
        if found.is_regular or found.is_folder:
            for name, value in self._source.xattrs(step.source).items():
                try:
                    self._target.set_xattr(step.target, name, value)
                except OSError as error:
                    if error.errno != errno.ENOTSUP:
                        raise
                    if not self._has_warned_xattrs:
                        sentence = "extended attributes cannot be kept there; copied without"
                        self._listener.on_warning(step.source, sentence)
                    self._has_warned_xattrs = True
        owner = (found.uid, found.gid) if self._keeps_owner else None
        mode = None if found.is_symlink else found.mode & 0o7777
        times_ns = (found.atime_ns, found.mtime_ns)
        self._target.set_attributes(step.target, Wanted(mode, owner, times_ns))


def stream_out(files: Files, path: bytes, stream: int, listener: Listener) -> Attributes:
    """Writes a file's bytes to a file descriptor; symlinks are followed.  Its attributes."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    with contextlib.closing(files.open(path, follow=True)) as reader:
        found, position = reader.attributes(), 0
        while count := reader.read_into(buffer, position):
            left = buffer[:count]
            while left:
                left = left[os.write(stream, left) :]
            position += count
            listener.on_bytes(count)
    return found


def _identity(found: Attributes) -> tuple[int, int]:
    return found.device, found.ino
