"""Chunk images for the tests of the store."""

from __future__ import annotations

from mpifs.core.checksum import function_of
from mpifs.core.image import IMAGE_HEADER_BYTES, ImageHeader, decode_header, encode_header_into
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.store.chunks import ChunkStore, Image

VOLUME = b"v" * 16
STORE = b"s" * 16
KIND = ChecksumKind.XXH3_128


def image_bytes(key: ChunkKey, payload: bytes) -> bytes:
    """Header and payload."""
    buffer = bytearray(IMAGE_HEADER_BYTES + len(payload))
    checksum = function_of(KIND)(payload)
    encode_header_into(buffer, 0, KIND, key, len(payload), checksum)
    buffer[IMAGE_HEADER_BYTES:] = payload
    return bytes(buffer)


def image(key: ChunkKey, payload: bytes) -> Image:
    """As the service hands it to the store."""
    data = image_bytes(key, payload)
    header: ImageHeader = decode_header(data)
    return Image(header, memoryview(data))


def open_store(folder: str, *, create: bool = True, **other: object) -> ChunkStore:
    """A store with the usual identity, or another one."""
    wanted: dict[str, object] = {
        "volume_uuid": VOLUME,
        "store_uuid": STORE,
        "store": 3,
        "chunk_size": 1 << 20,
        "checksum": KIND,
    }
    return ChunkStore.open(folder, create=create, **{**wanted, **other})  # type: ignore[arg-type]  # options of a test
