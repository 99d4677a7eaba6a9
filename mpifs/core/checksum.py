"""Checksums of chunk payloads.

xxh3-128 (https://github.com/Cyan4973/xxHash) finds accidents, BLAKE3 (https://github.com/BLAKE3-team)
also intent.  Both are stored as 16 bytes; of BLAKE3 these are the first 16 bytes of its output.
Large buffers are hashed without the GIL by both libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import blake3
import xxhash

from mpifs.core.types import ChecksumKind

CHECKSUM_BYTES = 16

Buffer: TypeAlias = "bytes | bytearray | memoryview"
ChecksumFunction: TypeAlias = Callable[[Buffer], bytes]

NAMES: dict[str, ChecksumKind] = {
    "xxh3-128": ChecksumKind.XXH3_128,
    "blake3": ChecksumKind.BLAKE3,
}


def _blake3(data: Buffer) -> bytes:
    return blake3.blake3(data).digest(length=CHECKSUM_BYTES)


def function_of(kind: ChecksumKind) -> ChecksumFunction:
    """The function that sums a buffer to CHECKSUM_BYTES bytes."""
    if kind is ChecksumKind.XXH3_128:
        return xxhash.xxh3_128_digest
    return _blake3


def block_sums(payload: memoryview, block_bytes: int, checksum: ChecksumFunction) -> bytes:
    """The sums of all blocks of a payload, one behind the other; the last block may be shorter."""
    return b"".join(
        [checksum(payload[at : at + block_bytes]) for at in range(0, len(payload), block_bytes)]
    )


def name_of(kind: ChecksumKind) -> str:
    """The command line's name of a checksum kind."""
    return next(name for name, value in NAMES.items() if value is kind)


def guard64(data: Buffer) -> int:
    """64-bit sum that guards small structures (headers, records, superblocks) against damage."""
    return xxhash.xxh3_64_intdigest(data)
