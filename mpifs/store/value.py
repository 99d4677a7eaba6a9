"""The stored value of a chunk: its image, in `large/` with padding zeros behind it."""

from __future__ import annotations

from mpifs.core.checksum import Buffer, function_of
from mpifs.core.errors import DamageError
from mpifs.core.image import IMAGE_HEADER_BYTES, ImageHeader, decode_header
from mpifs.core.limits import SMALL_VALUE_BYTES_MAX
from mpifs.core.types import ChecksumKind


def stored_bytes(length: int) -> int:
    """Size of the stored value of a chunk with `length` payload bytes."""
    if length <= SMALL_VALUE_BYTES_MAX:
        return IMAGE_HEADER_BYTES + length
    return IMAGE_HEADER_BYTES + (1 << (length - 1).bit_length())


def header_of(value: Buffer) -> ImageHeader | None:
    """The header of a stored value, None if it cannot be read."""
    try:
        return decode_header(value)
    except DamageError:
        return None


def has_payload(value: memoryview, length: int, checksum: bytes, kind: ChecksumKind) -> bool:
    """Whether the payload behind the header, whatever that says, has this length and sum."""
    end = IMAGE_HEADER_BYTES + length
    return end <= len(value) and function_of(kind)(value[IMAGE_HEADER_BYTES:end]) == checksum


def is_whole(value: memoryview) -> bool:
    """Whether the header can be read and the payload has the sum that it tells."""
    header = header_of(value)
    if header is None:
        return False
    try:
        kind = ChecksumKind(header.checksum_kind)
    except ValueError:
        return False
    return has_payload(value, header.length, header.checksum, kind)
