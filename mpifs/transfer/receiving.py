"""One long file being received on this rank: chunks into a partial file, then its name.

    opened ──have(of_file): all chunks there──▶ finish: modes and times of the file that is there
       └──have──▶ part made, locked, what is in it summed ──write…──▶ have ──▶ finish: named

The partial file `.mpifs-NAME.part` stands beside its place.  What it holds is known by nothing but
the checksums of its bytes, so a reception that was killed goes on wherever it stopped, also when
the source has changed in between: chunks that are the same are kept.  Nothing counts as there
before it has been read back.  It is locked (flock) while it is received.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time

from mpifs import faultpoint
from mpifs.core.checksum import CHECKSUM_BYTES, Buffer
from mpifs.core.errors import DamageError, PosixError, ProtocolError
from mpifs.core.layout import chunk_bytes as bytes_of_chunk
from mpifs.core.transfer_messages import Entry, checked_chunks
from mpifs.transfer.chunks import (
    next_data,
    sum_of,
    sum_of_sums,
    sum_of_zeros,
    sums_of,
    write_at,
)
from mpifs.transfer.folder import LocalFolder, part_name, shown
from mpifs.transfer.part_file import open_part


class Reception:
    """Any thread; `_lock` guards everything, so that no descriptor is used after its end."""

    def __init__(
        self, folder: LocalFolder, entry: Entry, chunk_bytes: int, checksum: bytes
    ) -> None:
        self.used_s = time.monotonic()
        self._folder = folder
        self._entry = entry
        self._chunk_bytes = chunk_bytes
        self._checksum = checksum
        self._count = checked_chunks(entry.size, chunk_bytes)
        self._sums = bytearray(CHECKSUM_BYTES * self._count)
        self._is_there = bytearray(self._count)
        self._lock = threading.Lock()
        self._part = -1
        self._is_ended = False

    def has_file(self) -> bool:
        """Whether a regular file of that name and size is there.  Raises PosixError when what
        is there cannot be replaced."""
        with self._folder.place(self._entry.path, make=True) as (folder, name):
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                return False
            if not stat.S_ISREG(found.st_mode):
                raise PosixError(
                    errno.EEXIST,
                    f"{shown(self._entry.path)} is there and no regular file; remove it first",
                )
            return found.st_size == self._entry.size

    def have(self, first: int, sums: Buffer, *, of_file: bool) -> bytes:
        """See ends.Sink.  What is to be zeros and is not becomes so here: zeros never travel."""
        count = len(sums) // CHECKSUM_BYTES
        if len(sums) % CHECKSUM_BYTES or not 0 <= first <= first + count <= self._count:
            raise ProtocolError("checksums of chunks that a file does not have")
        with self._lock:
            self._check()
            self._sums[first * CHECKSUM_BYTES : (first + count) * CHECKSUM_BYTES] = sums
            if of_file:
                with self._folder.reading(self._entry.path) as descriptor:
                    found = self._sums_in(descriptor, first, count)
            else:
                self._open_part()
                found = self._sums_in(self._part, first, count)
            there = bytearray(count)
            for place in range(count):
                at = place * CHECKSUM_BYTES
                wanted = bytes(sums[at : at + CHECKSUM_BYTES])
                there[place] = found[at : at + CHECKSUM_BYTES] == wanted
                if not there[place] and not of_file:
                    there[place] = self._is_made_zero(first + place, wanted)
            self._is_there[first : first + count] = there
            return bytes(there)

    def _sums_in(self, descriptor: int, first: int, count: int) -> bytes:
        return sums_of(descriptor, self._entry.size, self._chunk_bytes, first, count)

    def _is_made_zero(self, index: int, wanted: bytes) -> bool:
        length = bytes_of_chunk(index, self._entry.size, self._chunk_bytes)
        if wanted != sum_of_zeros(length):
            return False
        write_at(self._part, index * self._chunk_bytes, bytes(length))
        return True

    def write(self, index: int, data: Buffer, checksum: bytes) -> None:
        """See ends.Sink.  EBADMSG: the bytes are not what they were when they were sent."""
        if not 0 <= index < self._count:
            raise ProtocolError("a chunk that the file does not have")
        at = index * CHECKSUM_BYTES
        length = bytes_of_chunk(index, self._entry.size, self._chunk_bytes)
        wanted = self._sums[at : at + CHECKSUM_BYTES]
        if len(data) != length or sum_of(data) != checksum or checksum != wanted:
            raise PosixError(
                errno.EBADMSG, f"chunk {index} of {shown(self._entry.path)} was damaged on its way"
            )
        with self._lock:
            self._check()
            self._open_part()
            faultpoint.reach("transfer.write")
            start = index * self._chunk_bytes
            is_hole = (
                self._entry.is_sparse
                and next_data(self._part, start, self._entry.size) >= start + length
            )
            write_at(self._part, start, data, is_sparse=is_hole)
            self._is_there[index] = 0  # until it has been read back

    def finish(self) -> None:
        """See ends.Sink."""
        with self._lock:
            self._check()
            name = shown(self._entry.path)
            if not all(self._is_there):
                index = self._is_there.index(0)
                raise DamageError(f"{name}: chunk {index} is not there; nothing got its name")
            if sum_of_sums(self._entry.size, self._sums) != self._checksum:
                raise DamageError(f"{name}: its checksum is another one; nothing got its name")
            if self._part < 0 and self._is_kept():
                self._close()
                return
            self._open_part()
            if os.fstat(self._part).st_size != self._entry.size:
                raise DamageError(f"{name}: its size is another one; nothing got its name")
            self._adorn(self._part)
            os.fsync(self._part)
            faultpoint.reach("transfer.synced")
            with self._folder.place(self._entry.path) as (folder, last):
                os.rename(part_name(last), last, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
            faultpoint.reach("transfer.named")
            self._close()

    def _is_kept(self) -> bool:
        """Whether all chunks were found in the file that has the name already."""
        if not self._count:
            return False
        with self._folder.reading(self._entry.path) as descriptor:
            if os.fstat(descriptor).st_size != self._entry.size:
                raise DamageError(f"{shown(self._entry.path)} changed while it was compared")
            self._adorn(descriptor)
            os.fsync(descriptor)
        return True

    def _adorn(self, descriptor: int) -> None:
        os.fchmod(descriptor, self._entry.mode & 0o7777)
        os.utime(descriptor, ns=(self._entry.atime_ns, self._entry.mtime_ns))

    def abandon(self) -> None:
        """See ends.Sink."""
        with self._lock:
            self._close()

    def _check(self) -> None:
        self.used_s = time.monotonic()
        if self._is_ended:
            raise ProtocolError("a transfer that has ended")

    def _open_part(self) -> None:
        """Opens and locks the partial file.  Raises PosixError: in use, no room for what is not
        there yet."""
        if self._part >= 0:
            return
        with self._folder.place(self._entry.path, make=True) as (folder, last):
            self._part = open_part(folder, last, self._entry.path)
        found = os.fstat(self._part)
        needed = min(self._entry.blocks * 512, self._entry.size) - found.st_blocks * 512
        free = self._folder.free_bytes()
        if needed > free:
            if not found.st_size:
                self._remove_part()
            self._close_part()
            raise PosixError(
                errno.ENOSPC,
                f"{shown(self._entry.path)}: no space left in {self._folder.path} "
                f"({needed:,} bytes are needed, {free:,} are free)",
            )
        os.ftruncate(self._part, self._entry.size)

    def _remove_part(self) -> None:
        """Only one that this reception has made and never written to."""
        with self._folder.place(self._entry.path) as (folder, last):
            os.unlink(part_name(last), dir_fd=folder)

    def _close_part(self) -> None:
        descriptor, self._part = self._part, -1
        os.close(descriptor)

    def _close(self) -> None:
        self._is_ended = True
        if self._part >= 0:
            self._close_part()
