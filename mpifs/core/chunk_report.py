"""What a store says of one of its chunks when it verifies itself ↔ bytes (doc/wire.md)."""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

from mpifs.core.checksum import Buffer
from mpifs.core.errors import ProtocolError
from mpifs.core.types import ChunkKey

_ROW = struct.Struct(">QQQIIQQQ16s")
_GOOD = struct.Struct(">24sII24s16s")
REPORT_BYTES = 72
assert _ROW.size == _GOOD.size == REPORT_BYTES


class Fault(IntFlag):
    """What is wrong with a stored chunk by itself; 0: nothing.  Numbers are sent."""

    NO_IMAGE = 1
    """Listed in `headers`, but there is no image."""
    NOT_LISTED = 2
    """There is an image, but `headers` does not list it."""
    LIST_DAMAGED = 4
    """The listed header is damaged or differs from the image's."""
    HEADER_DAMAGED = 8
    """The image's own header cannot be read."""
    WRONG_KEY = 16
    """The image's header is whole and names another chunk than the key does."""
    CUT = 32
    """The stored value is shorter than its header says."""
    SUM_WRONG = 64
    """The recomputed checksum of the payload is not the one in the image's header."""
    TWICE = 128
    """The same key is in more than one environment of the store."""


class ChunkReport(NamedTuple):
    """One stored chunk.  `length` and `checksum` are the payload's: of the image's header if it
    can be read (else 0 and zeros); the checksum is recomputed unless the request was for headers
    only, or the payload is cut.  `named` is the chunk that the image's header names, `key` if that
    cannot be read.
    """

    key: ChunkKey
    faults: int
    length: int
    checksum: bytes
    named: ChunkKey


def encode_report(report: ChunkReport) -> bytes:
    """72 bytes."""
    return _ROW.pack(*report.key, report.faults, report.length, *report.named, report.checksum)


def encode_good(key: bytes, length: int, checksum: bytes) -> bytes:
    """The report of a chunk without faults, from its encoded key (image.py): 72 bytes."""
    return _GOOD.pack(key, 0, length, key, checksum)


def decode_reports(data: Buffer) -> list[ChunkReport]:
    """Raises ProtocolError if the bytes are no whole number of reports."""
    if len(data) % REPORT_BYTES:
        raise ProtocolError("list of chunk reports is cut")
    return [
        ChunkReport(
            ChunkKey(inode, chunk, generation),
            faults,
            length,
            checksum,
            ChunkKey(named_inode, named_chunk, named_generation),
        )
        for (
            inode,
            chunk,
            generation,
            faults,
            length,
            named_inode,
            named_chunk,
            named_generation,
            checksum,
        ) in _ROW.iter_unpack(data)
    ]


def unpack_reports(
    data: Buffer,
) -> list[tuple[int, int, int, int, int, int, int, int, bytes]]:
    """As decode_reports, plain: key (3 numbers), faults, length, named (3 numbers), checksum.

    Four times faster, for whoever compares millions of good ones."""
    if len(data) % REPORT_BYTES:
        raise ProtocolError("list of chunk reports is cut")
    return list(_ROW.iter_unpack(data))
