"""Where files come from, on this rank's own disk.  Nothing is kept between calls: any thread, any
number at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError, PosixError, ProtocolError
from mpifs.core.limits import (
    BODY_BYTES_MAX,
    TRANSFER_LIST_COUNT,
    TRANSFER_PACK_BYTES,
    TRANSFER_SMALL_BYTES,
)
from mpifs.core.transfer_messages import FILE, Entry, Failure, ListReply, checked_chunks
from mpifs.transfer.chunks import read_at, sum_of, sums_of
from mpifs.transfer.ends import Kept, Taken
from mpifs.transfer.folder import LocalFolder, entry_of, shown


class LocalSource:
    """See ends.Source."""

    def __init__(self, folder: LocalFolder) -> None:
        self._folder = folder

    def look(self, path: bytes) -> Entry:
        """See ends.Source."""
        return self._folder.look(path)

    def entries(self, path: bytes, after: bytes = b"") -> ListReply:
        """See ends.Source."""
        return ListReply(*self._folder.entries(path, after, TRANSFER_LIST_COUNT))

    def sums(self, entry: Entry, chunk_bytes: int, first: int, count: int) -> bytes:
        """See ends.Source."""
        chunks = checked_chunks(entry.size, chunk_bytes)
        if not 0 <= first <= first + count <= chunks:
            raise ProtocolError("checksums of chunks that a file does not have")
        with self._folder.reading(entry.path) as descriptor:
            _check(descriptor, entry)
            sums = sums_of(descriptor, entry.size, chunk_bytes, first, count)
            _check(descriptor, entry)
            return sums

    def read(self, entry: Entry, offset: int, length: int) -> Kept[Buffer]:
        """See ends.Source."""
        if not 0 <= length <= BODY_BYTES_MAX or not 0 <= offset <= offset + length <= entry.size:
            raise ProtocolError("bytes that a file does not have")
        with self._folder.reading(entry.path) as descriptor:
            return Kept(memoryview(self._read(descriptor, entry, offset, length)))

    @staticmethod
    def _read(descriptor: int, entry: Entry, offset: int, length: int) -> bytearray:
        _check(descriptor, entry)
        buffer = bytearray(length)
        got = read_at(descriptor, offset, memoryview(buffer))
        _check(descriptor, entry)
        if got < length:
            raise changed(entry)
        return buffer

    def take(self, entries: Sequence[Entry]) -> list[Taken]:
        """See ends.Source."""
        if sum(entry.size for entry in entries) > TRANSFER_PACK_BYTES + TRANSFER_SMALL_BYTES:
            raise ProtocolError("too many small files at once")
        return [self._take(place, entry) for place, entry in enumerate(entries)]

    def _take(self, place: int, entry: Entry) -> Taken:
        try:
            with self._folder.reading(entry.path) as descriptor:
                data = self._read(descriptor, entry, 0, entry.size)
        except MpifsError as error:
            failure = Failure(place, error.errno or errno.EIO, str(error))
        except OSError as error:
            code = error.errno or errno.EIO
            failure = Failure(place, code, f"{shown(entry.path)}: {os.strerror(code)}")
        else:
            return Taken(data, sum_of(data), None)
        return Taken(b"", b"", failure)


def _check(descriptor: int, entry: Entry) -> None:
    if entry_of(entry.path, os.fstat(descriptor)).version != entry.version or entry.kind != FILE:
        raise changed(entry)


def changed(entry: Entry) -> PosixError:
    """The sentence for a file that is not what it was when its transfer began."""
    return PosixError(
        errno.ESTALE,
        f"{shown(entry.path)} changed while it was sent; nothing got its name, send it again",
    )
