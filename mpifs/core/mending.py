"""Finds the one wrong byte of something that carries a guard.

A guard of 64 bits tells not only that bytes are wrong: try each change of one byte, and the change
after which the guard is right is what happened.  The chance that a wrong one passes is the number
of tries over 2^64, below 2^-40 for anything that is tried here.  Changes of one bit come first, as
they are the likely ones; the result does not depend on anything but the bytes.

Budget: a step is tried only if it hashes at most WORK_BYTES_MAX, about half a second.  So any byte
is found in up to about 4,000 bytes and a flipped bit in up to about 23,000; longer things, and
things with more than one wrong byte, give None.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from mpifs.core import image, superblock
from mpifs.core.checksum import guard64
from mpifs.core.errors import DamageError, FormatError

WORK_BYTES_MAX = 1 << 32

_GUARD = struct.Struct("<Q")
_BITS = tuple(1 << bit for bit in range(8))
_OTHERS = tuple(change for change in range(1, 256) if change not in _BITS)


def correct_byte(data: bytes, is_right: Callable[[bytes], bool]) -> bytes | None:
    """The bytes with at most one of them changed so that `is_right`; None if there are none.

    The bytes themselves if they are right.  Requires: a test that hardly anything passes.
    """
    if is_right(data):
        return data
    for changes in _affordable_changes(len(data)):
        for at, byte in enumerate(data):
            head, tail = data[:at], data[at + 1 :]
            for change in changes:
                candidate = b"%b%c%b" % (head, byte ^ change, tail)
                if is_right(candidate):
                    return candidate
    return None


def correct_record(
    key: bytes, value: bytes, is_right: Callable[[bytes, bytes], bool] | None = None
) -> tuple[bytes, bytes] | None:
    """Key and value of a record of the index as they were before one byte of the row changed.

    The byte may be in the key, the body or the guard.  With `is_right` (the row can be decoded) it
    may also be in the lengths of key and value: the guard does not tell where the key ends.
    The row itself if it is right; None if it cannot be mended.
    """
    if len(value) >= _GUARD.size:
        body, guard = value[: -_GUARD.size], value[-_GUARD.size :]
        fixed = _correct_guarded(key + body, guard)
        if fixed is not None:
            row = fixed[: len(key)], fixed[len(key) :]
            if is_right is None or is_right(*row):
                return row
    if is_right is None:
        return None
    return next((row for row in _other_lengths(key, value) if is_right(*row)), None)


def correct_header(header: bytes) -> bytes | None:
    """The header of a chunk image as it was before one byte changed, or None."""

    if len(header) != image.IMAGE_HEADER_BYTES:
        return None
    fixed = _correct_guarded(header[: -_GUARD.size], header[-_GUARD.size :])
    try:
        image.decode_header(fixed or b"")
    except DamageError:
        return None
    return fixed


def correct_superblock(data: bytes) -> bytes | None:
    """A superblock as it was before one byte changed, or None."""
    if len(data) != superblock.SUPERBLOCK_BYTES:
        return None
    fixed = _correct_guarded(data[: -_GUARD.size], data[-_GUARD.size :])
    try:
        superblock.decode(fixed or b"", "superblock")
    except FormatError:
        return None
    return fixed


def _affordable_changes(length: int) -> Iterator[tuple[int, ...]]:
    """What to try on each byte: its bits, then everything else, as far as the budget goes."""
    for changes in (_BITS, _OTHERS):
        if length * length * len(changes) <= WORK_BYTES_MAX:
            yield changes


def _correct_guarded(body: bytes, guard: bytes) -> bytes | None:
    """Body and guard after the change of at most one byte of the two, or None."""
    right = _GUARD.pack(guard64(body))
    if sum(map(int.__ne__, right, guard)) <= 1:
        return body + right
    (wanted,) = _GUARD.unpack(guard)
    buffer = bytearray(body)
    for changes in _affordable_changes(len(body)):
        for at, byte in enumerate(body):
            for change in changes:
                buffer[at] = byte ^ change
                if guard64(buffer) == wanted:
                    return bytes(buffer) + guard
            buffer[at] = byte
    return None


def _other_lengths(key: bytes, value: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Rows with a right guard if the length of the key or of the value was wrong by one.

    LMDB stores key and value side by side in an even number of bytes; so a wrong length takes in
    the byte after the value, or leaves its last one out.
    """
    row = key + value
    rows = [row, row[:-1], *(row + bytes((last,)) for last in range(256))]
    for longer in rows:
        if len(longer) >= _GUARD.size and longer[-8:] == _GUARD.pack(guard64(longer[:-8])):
            for split in (len(key), len(key) - 1, len(key) + 1):
                if 0 < split <= len(longer) - _GUARD.size:
                    yield longer[:split], longer[split:]
