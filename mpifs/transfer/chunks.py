"""Checksums of a local file's chunks, and writing chunks without filling holes.

A file's checksum is the xxh3-128 of its size and its chunks' checksums: so it can be told part by
part, and by a file of which only some chunks have to be read.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache

import xxhash

from mpifs.core.checksum import CHECKSUM_BYTES, Buffer
from mpifs.core.errors import PosixError
from mpifs.core.layout import chunk_bytes as bytes_of_chunk
from mpifs.core.limits import CHUNK_BYTES_MAX, KIB

HOLE_BYTES = 64 * KIB  # zeros of a sparse file that are so long, and aligned, become a hole.
sum_of = xxhash.xxh3_128_digest
_ZEROS = bytes(HOLE_BYTES)


@lru_cache(maxsize=64)
def sum_of_zeros(length: int) -> bytes:
    """The checksum of a chunk that is a hole."""
    return sum_of(bytes(min(length, CHUNK_BYTES_MAX)))


def sum_of_sums(size: int, sums: Buffer) -> bytes:
    """A whole file's checksum."""
    return sum_of(size.to_bytes(8, "little") + bytes(sums))


def sums_of(descriptor: int, size: int, chunk_bytes: int, first: int, count: int) -> bytes:
    """Checksums of `count` chunks of an open file of `size` bytes; holes are not read.

    A file that is shorter by now gives other checksums, never an error.
    """
    buffer = bytearray(chunk_bytes)
    view = memoryview(buffer)
    found = []
    data_at = -1
    for index in range(first, first + count):
        start = index * chunk_bytes
        length = bytes_of_chunk(index, size, chunk_bytes)
        if data_at < start:
            data_at = next_data(descriptor, start, size)
        if data_at >= start + length:
            found.append(sum_of_zeros(length))
        else:
            got = read_at(descriptor, start, view[:length])
            found.append(sum_of(view[:got]))
    assert all(len(each) == CHECKSUM_BYTES for each in found)
    return b"".join(found)


def next_data(descriptor: int, offset: int, size: int) -> int:
    """Where the next byte that is no hole may be; `size` if there is none."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else offset  # EINVAL: it knows no holes


def read_at(descriptor: int, offset: int, into: memoryview) -> int:
    """Fills `into` from `offset` on; how many bytes there were."""
    done = 0
    while done < len(into):
        got = os.preadv(descriptor, [into[done:]], offset + done)
        if not got:
            break
        done += got
    return done


def write_at(descriptor: int, offset: int, data: Buffer, *, is_sparse: bool = False) -> None:
    """Writes all of it.  With `is_sparse` long zeros are left out: what stands there must be a
    hole already.  Raises OSError."""
    view = memoryview(data)
    if is_sparse:
        done = 0
        while done < len(view):
            end = min(len(view), (offset + done) // HOLE_BYTES * HOLE_BYTES + HOLE_BYTES - offset)
            piece = view[done:end]
            if piece != _ZEROS[: len(piece)]:
                _write(descriptor, offset + done, piece)
            done = end
        return
    _write(descriptor, offset, view)


def _write(descriptor: int, offset: int, view: memoryview) -> None:
    done = 0
    while done < len(view):
        put = os.pwrite(descriptor, view[done:], offset + done)
        if not put:
            raise PosixError(errno.EIO, "a write of a local file wrote nothing")
        done += put
