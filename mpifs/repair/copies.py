"""Copies of the index on the stores: what they are made of, and where they are.

A copy is a compacted LMDB file of the index, cut into pieces that the stores keep as chunk images
of inode 0 (no file has that number): piece p of the copy with generation g is chunk (0, p, g).
Piece 0 is the manifest: it is stored last, so a copy without one is unfinished and never taken.
A generation is never used twice, so pieces of one generation are the same bytes on every store.
Layout in doc/format.md, section 5.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from mpifs.core import superblock
from mpifs.core.checksum import CHECKSUM_BYTES, Buffer, function_of
from mpifs.core.errors import DamageError, FormatError, MpifsError
from mpifs.core.image import (
    IMAGE_HEADER_BYTES,
    ImageHeader,
    decode_header,
    encode_key,
)
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    INDEX_COPY_PIECE_BYTES,
    INDEX_COPY_PIECES_MAX,
    LIST_COUNT_MAX,
    REQUEST_TIMEOUT_S,
)
from mpifs.core.messages import ListKeys, encode_args
from mpifs.core.superblock import SUPERBLOCK_BYTES, Superblock
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.transport.client import Client

log = logging.getLogger(__name__)

COPY_INODE = 0
MANIFEST_PIECE = 0
MAGIC = b"mpifsCPY"
VERSION = 1
HOLDERS_MAX = 8

_HEAD = struct.Struct(f"<8sHHIQQQI4x{HOLDERS_MAX}H")
_SUMS_AT = _HEAD.size + SUPERBLOCK_BYTES
assert _HEAD.size == 64
assert _SUMS_AT + INDEX_COPY_PIECES_MAX * CHECKSUM_BYTES <= INDEX_COPY_PIECE_BYTES
FIRST_KEY = encode_key(ChunkKey(COPY_INODE, 0, 0))
"""Before every key of a copy, since generations begin with 1."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a copy is.  `sums` are the checksums of pieces 1, 2, … (of the volume's kind); `holders`
    are the stores that were given all pieces; `date_s` counts seconds since 1970."""

    generation: int
    date_s: int
    size_bytes: int
    holders: tuple[int, ...]
    geometry: Superblock
    sums: tuple[bytes, ...]

    @property
    def pieces(self) -> int:
        """Number of pieces, the manifest not counted."""
        return len(self.sums)

    @property
    def date(self) -> str:
        """When it was made, as users read it."""
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.date_s))

    def piece_bytes(self, piece: int) -> int:
        """Length of piece 1, 2, …; only the last one may be shorter than the others."""
        return min(INDEX_COPY_PIECE_BYTES, self.size_bytes - (piece - 1) * INDEX_COPY_PIECE_BYTES)


def encode_manifest(manifest: Manifest) -> bytes:
    """Payload of piece 0.  Requires: at most HOLDERS_MAX holders, INDEX_COPY_PIECES_MAX pieces."""
    assert manifest.pieces <= INDEX_COPY_PIECES_MAX
    holders = manifest.holders + (0,) * (HOLDERS_MAX - len(manifest.holders))
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        len(manifest.holders),
        INDEX_COPY_PIECE_BYTES,
        manifest.generation,
        manifest.date_s,
        manifest.size_bytes,
        manifest.pieces,
        *holders,
    )
    return head + superblock.encode(manifest.geometry) + b"".join(manifest.sums)


def decode_manifest(data: Buffer, generation: int) -> Manifest:
    """Raises DamageError for any bytes but the manifest of the copy with that generation."""
    if len(data) < _SUMS_AT:
        raise DamageError("the manifest of a copy of the index is cut")
    magic, version, count, piece_bytes, stored, date_s, size, pieces, *holders = _HEAD.unpack_from(
        data
    )
    if magic != MAGIC or version != VERSION or piece_bytes != INDEX_COPY_PIECE_BYTES:
        raise DamageError("the manifest of a copy of the index has an unknown version")
    wanted = -(-size // INDEX_COPY_PIECE_BYTES)
    if (
        stored != generation
        or pieces != wanted
        or pieces > INDEX_COPY_PIECES_MAX
        or len(data) != _SUMS_AT + pieces * CHECKSUM_BYTES
        or not 1 <= count <= HOLDERS_MAX
        or any(holders[count:])
    ):
        raise DamageError("the manifest of a copy of the index contradicts itself")
    try:
        block = superblock.decode(
            bytes(data[_HEAD.size : _SUMS_AT]), "the superblock in a copy of the index"
        )
    except FormatError as error:
        raise DamageError(str(error)) from error
    sums = bytes(data[_SUMS_AT:])
    return Manifest(
        generation,
        date_s,
        size,
        tuple(holders[:count]),
        block,
        tuple(sums[at : at + CHECKSUM_BYTES] for at in range(0, len(sums), CHECKSUM_BYTES)),
    )


@dataclass(frozen=True, slots=True)
class CopyStores:
    """The stores as places of copies; every method may be called from any thread.

    `rank_of` maps a store id to the rank that serves it, `live` tells the stores that can be asked,
    in the order of placement; `kind` is the volume's; `disk_of` names the disk of a store (equal
    for stores that share one), as far as it is known.
    """

    client: Client
    rank_of: Callable[[int], int]
    live: Callable[[], list[int]]
    kind: ChecksumKind
    disk_of: Mapping[int, str] = field(default_factory=dict)

    def headers(self, store: int, after: bytes = b"") -> Iterator[ImageHeader]:
        """Headers of all chunks of a store with keys greater than `after`, in key order; those
        that the store calls damaged have checksum kind 0.  Raises MpifsError."""
        rank = self.rank_of(store)
        while True:
            args = encode_args(ListKeys(after, LIST_COUNT_MAX))
            reply = self.client.call(rank, Kind.LIST, args=args)
            for at in range(0, len(reply.body), IMAGE_HEADER_BYTES):
                header = decode_header(reply.body, at)
                yield header
            if reply.header.items < LIST_COUNT_MAX:
                return
            after = encode_key(header.key)

    def pieces(self, store: int) -> Iterator[ImageHeader]:
        """Headers of all pieces of copies that a store has, in key order.  Raises MpifsError."""
        for header in self.headers(store, FIRST_KEY):
            if header.inode != COPY_INODE:
                return
            yield header

    def payload(
        self, store: int, key: ChunkKey, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> memoryview:
        """A piece, verified against its own header.  Raises MpifsError (DamageError: not it)."""
        reply = self.client.call(
            self.rank_of(store), Kind.GET, args=encode_key(key), timeout_s=timeout_s
        )
        return self.payload_of(reply.body, key)

    def payload_of(
        self, image: memoryview, key: ChunkKey, checksum: bytes | None = None
    ) -> memoryview:
        """The payload of a piece's image; `checksum` is what it must sum to, if that is known.

        Raises DamageError if it is not that piece, whole.
        """
        header = decode_header(image)
        payload = image[IMAGE_HEADER_BYTES:]
        if header.key != key or header.length != len(payload) or header.checksum_kind != self.kind:
            raise DamageError(f"a store gave something else for {key}")
        if function_of(self.kind)(payload) != (checksum or header.checksum):
            raise DamageError(f"{key} fails its checksum")
        return payload


@dataclass(frozen=True, slots=True)
class IndexCopy:
    """A finished copy and the pieces (1, 2, …) of it that each store lists."""

    manifest: Manifest
    holdings: Mapping[int, frozenset[int]]

    def holders_of(self, piece: int) -> list[int]:
        """The stores that list a piece."""
        return [store for store, pieces in self.holdings.items() if piece in pieces]

    @property
    def is_whole(self) -> bool:
        """Whether every piece is on some store."""
        wanted = set(range(1, self.manifest.pieces + 1))
        return wanted.issubset(frozenset().union(*self.holdings.values()))


def find_copies(stores: CopyStores) -> list[IndexCopy]:
    """All finished copies, the newest first, whole or not.  Stores that fail are left out."""
    held: dict[int, dict[int, set[int]]] = {}
    for store in stores.live():
        try:
            for header in stores.pieces(store):
                if header.checksum_kind:
                    of_store = held.setdefault(header.generation, {})
                    of_store.setdefault(store, set()).add(header.chunk)
        except MpifsError as error:
            log.warning("worker %d cannot be asked for copies of the index: %s", store, error)
    copies = []
    for generation in sorted(held, reverse=True):
        holdings = held[generation]
        having = [store for store, pieces in holdings.items() if MANIFEST_PIECE in pieces]
        manifest = read_manifest(stores, having, generation)
        if manifest is not None:
            whole = {store: frozenset(pieces - {0}) for store, pieces in holdings.items()}
            copies.append(IndexCopy(manifest, whole))
    return copies


def read_manifest(stores: CopyStores, having: list[int], generation: int) -> Manifest | None:
    """The manifest of a copy from the first of the stores that has it undamaged."""
    key = ChunkKey(COPY_INODE, MANIFEST_PIECE, generation)
    for store in having:
        try:
            return decode_manifest(stores.payload(store, key), generation)
        except MpifsError as error:
            log.warning("copy %d of the index on worker %d: %s", generation, store, error)
    return None
