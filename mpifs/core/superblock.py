"""The superblock: what a volume's folder is, read before anything else in it.

One file `superblock` in `index/` and in each `worker-N/`, 128 bytes.  Layout in doc/format.md,
section 1.  An unknown version or feature bit is refused with a sentence that says what to do.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from mpifs.core.checksum import Buffer, guard64
from mpifs.core.errors import FormatError
from mpifs.core.layout import is_chunk_size
from mpifs.core.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, REPLICAS_MAX
from mpifs.core.types import ChecksumKind

MAGIC = b"mpifsVOL"
VERSION = 1
FEATURE_CAPACITY = 1
"""The volume's stores are bounded: `capacity_bytes` is not 0."""
KNOWN_FEATURES = FEATURE_CAPACITY
SUPERBLOCK_BYTES = 128
SUPERBLOCK_NAME = "superblock"
_BODY = struct.Struct("<8sHHI16s16sIIHHQQ44x")
_GUARD = struct.Struct("<Q")
assert _BODY.size + _GUARD.size == SUPERBLOCK_BYTES


class Role(IntEnum):
    """What a folder with a superblock is.  Numbers are stored."""

    INDEX = 1
    STORE = 2


@dataclass(frozen=True, slots=True)
class Superblock:
    """Identity and geometry.  `store` is 0 and `own_uuid` equals the volume's for the index.

    `capacity_bytes` is what one store may take of its disk; 0: all of it.
    """

    role: Role
    volume_uuid: bytes
    own_uuid: bytes
    store: int
    chunk_size: int
    replicas: int
    checksum: ChecksumKind
    created_s: int
    capacity_bytes: int = 0


def encode(block: Superblock) -> bytes:
    """128 bytes with their own checksum at the end."""
    body = _BODY.pack(
        MAGIC,
        VERSION,
        block.role,
        FEATURE_CAPACITY if block.capacity_bytes else 0,
        block.volume_uuid,
        block.own_uuid,
        block.store,
        block.chunk_size,
        block.replicas,
        block.checksum,
        block.created_s,
        block.capacity_bytes,
    )
    return body + _GUARD.pack(guard64(body))


def decode(data: Buffer, place: str) -> Superblock:
    """Reads and checks a superblock; `place` names its file in errors.

    Raises FormatError: damaged, foreign, or made by a newer mpifs.
    """
    if len(data) != SUPERBLOCK_BYTES or bytes(data[:8]) != MAGIC:
        raise FormatError(f"{place} is no mpifs superblock; is this the folder of a volume?")
    (
        _,
        version,
        role,
        features,
        volume,
        own,
        store,
        chunk_size,
        replicas,
        kind,
        created,
        capacity,
    ) = _BODY.unpack_from(data)
    if version != VERSION or features & ~KNOWN_FEATURES:
        raise FormatError(
            f"{place} was made by another mpifs (format {version}, features {features:#x}); "
            f"this one knows format {VERSION}: install the mpifs that made it, or a newer one"
        )
    (guard,) = _GUARD.unpack_from(data, _BODY.size)
    if guard != guard64(memoryview(data)[: _BODY.size]):
        raise FormatError(f"{place} is damaged (own checksum is wrong); run mpifs fsck")
    try:
        block = Superblock(
            Role(role),
            volume,
            own,
            store,
            chunk_size,
            replicas,
            ChecksumKind(kind),
            created,
            capacity if features & FEATURE_CAPACITY else 0,
        )
    except ValueError:
        raise FormatError(f"{place} names an unknown role or checksum; run mpifs fsck") from None
    if not is_chunk_size(chunk_size, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX) or not (
        1 <= replicas <= REPLICAS_MAX
    ):
        raise FormatError(f"{place} has an impossible geometry; run mpifs fsck")
    return block
