"""The chunk image: what is stored in a chunk store and what travels between ranks.

An image is a 64-byte header followed by the payload.  The header lets a store be verified, and a
lost index be rebuilt as far as possible, from the stores alone.  The checksum that counts on a
read is the index's; the header's copy must agree with it.  Layout in doc/format.md, section 2.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from mpifs.core.checksum import Buffer, guard64
from mpifs.core.errors import DamageError
from mpifs.core.limits import CHUNK_BYTES_MAX, SMALL_VALUE_BYTES_MAX
from mpifs.core.types import ChecksumKind, ChunkKey

MAGIC = b"mpCH"
VERSION = 1
_BODY = struct.Struct("<4sBBHQQQI4x16s")
_GUARD = struct.Struct("<Q")
_WHOLE = struct.Struct("<4sBBHQQQI4x16sQ")
IMAGE_HEADER_BYTES = 64
assert _BODY.size + _GUARD.size == _WHOLE.size == IMAGE_HEADER_BYTES

_KEY = struct.Struct(">QQQ")
KEY_BYTES = 24
assert _KEY.size == KEY_BYTES

COPY_INODE = 0
"""Inode number of the pieces of the index's copies; no file has it."""


def home_name(inode: int, length: int) -> str:
    """The environment of a store that a chunk with `length` payload bytes belongs to."""
    if inode == COPY_INODE:
        return "copy"
    return "small" if length <= SMALL_VALUE_BYTES_MAX else "large"


def slot_bytes(length: int) -> int:
    """Room for `length` payload bytes in a stored value: in `large/` a power of two, so that pages
    that become free fit the next chunk."""
    return length if length <= SMALL_VALUE_BYTES_MAX else 1 << (length - 1).bit_length()


class ImageHeader(NamedTuple):
    """Decoded header of a chunk image; `length` counts payload bytes."""

    checksum_kind: int
    inode: int
    chunk: int
    generation: int
    length: int
    checksum: bytes

    @property
    def key(self) -> ChunkKey:
        """The chunk that the image says it is."""
        return ChunkKey(self.inode, self.chunk, self.generation)


def encode_header_into(
    buffer: bytearray | memoryview,
    offset: int,
    kind: ChecksumKind,
    key: ChunkKey,
    length: int,
    checksum: bytes,
) -> None:
    """Writes the 64 bytes at `offset` of a writable buffer.  Requires: len(checksum) == 16."""
    _BODY.pack_into(buffer, offset, MAGIC, VERSION, kind, 0, *key, length, checksum)
    view = memoryview(buffer)[offset : offset + _BODY.size]
    _GUARD.pack_into(buffer, offset + _BODY.size, guard64(view))


def decode_header(data: Buffer, offset: int = 0) -> ImageHeader:
    """Reads and checks the header at `offset`; any bytes are allowed in.

    Raises DamageError: too short, wrong magic, version, guard or length.
    """
    if len(data) - offset < IMAGE_HEADER_BYTES:
        raise DamageError("chunk image shorter than its header")
    magic, version, kind, reserved, inode, chunk, generation, length, checksum = _BODY.unpack_from(
        data, offset
    )
    (guard,) = _GUARD.unpack_from(data, offset + _BODY.size)
    if magic != MAGIC or version != VERSION or reserved:
        raise DamageError("chunk image header has a wrong magic or version")
    if guard != guard64(memoryview(data)[offset : offset + _BODY.size]):
        raise DamageError("chunk image header fails its own checksum")
    if length > CHUNK_BYTES_MAX:
        raise DamageError("chunk image header has an impossible length")
    return ImageHeader(kind, inode, chunk, generation, length, checksum)


def unpack_header(head: bytes) -> tuple[bytes, int, bytes] | None:
    """Encoded key, length and checksum of a header of 64 bytes; None where decode_header raises.

    Twice as fast, for whoever looks at millions of good ones.
    """
    magic, version, _, reserved, inode, chunk, generation, length, checksum, guard = _WHOLE.unpack(
        head
    )
    if magic != MAGIC or version != VERSION or reserved or length > CHUNK_BYTES_MAX:
        return None
    if guard != guard64(head[: _BODY.size]):
        return None
    return _KEY.pack(inode, chunk, generation), length, checksum


def encode_key(key: ChunkKey) -> bytes:
    """LMDB key of a chunk: big-endian, so that a store is sorted by inode, index, generation."""
    return _KEY.pack(*key)


def decode_key(data: Buffer) -> ChunkKey:
    """Raises DamageError if the key has not 24 bytes."""
    if len(data) != KEY_BYTES:
        raise DamageError(f"chunk key of {len(data)} bytes instead of {KEY_BYTES}")
    return ChunkKey(*_KEY.unpack(data))


def encode_keys(keys: list[ChunkKey]) -> bytes:
    """Several keys in a row, as DELETE carries them."""
    return b"".join(_KEY.pack(*key) for key in keys)


def decode_keys(data: Buffer) -> list[ChunkKey]:
    """Raises DamageError if the bytes are no whole number of keys."""
    if len(data) % KEY_BYTES:
        raise DamageError("list of chunk keys is cut")
    return [ChunkKey(*fields) for fields in _KEY.iter_unpack(data)]


def padded(size: int) -> int:
    """Size of an image of `size` bytes in a batch: the next image starts at a multiple of 8."""
    return size + (-size % 8)


def split_batch(body: memoryview, count: int) -> list[tuple[ImageHeader, memoryview]]:
    """Cuts a PUT body into its images: header and view of header + payload of each.

    Raises DamageError for anything but exactly `count` whole images.
    """
    images = []
    position = 0
    for _ in range(count):
        header = decode_header(body, position)
        end = position + IMAGE_HEADER_BYTES + header.length
        if end > len(body):
            raise DamageError("batch of chunk images is cut")
        images.append((header, body[position:end]))
        position = padded(end)
    if position < len(body):
        raise DamageError("batch of chunk images has bytes left over")
    return images
