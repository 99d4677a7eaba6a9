"""The stored value of a chunk: its image, in `large/` with padding zeros behind it and the table
of its blocks (core/block_table.py)."""

from __future__ import annotations

from mpifs.core.block_table import add_table, stored_bytes
from mpifs.core.checksum import Buffer, function_of
from mpifs.core.errors import DamageError
from mpifs.core.image import IMAGE_HEADER_BYTES, ImageHeader, decode_header, encode_key
from mpifs.core.types import ChecksumKind


def value_of(header: ImageHeader, data: memoryview) -> memoryview:
    """The stored value of a chunk with this header: `data`, if it is all of it, else a copy of the
    image with what belongs behind it."""
    size = stored_bytes(header.length)
    if len(data) == size:
        return data
    image = data[: IMAGE_HEADER_BYTES + header.length]
    value = memoryview(bytearray(size))
    value[: len(image)] = image
    key = encode_key(header.key)
    add_table(value, key, header.length, header.checksum, header.checksum_kind)
    return value


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
