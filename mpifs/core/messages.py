"""What is sent between ranks ↔ bytes.  Layout in doc/wire.md; no pickle.

A message is a 64-byte header, its arguments (at most ARGS_BYTES_MAX) and, when it is short, its
body; a longer body follows as a message of its own on the data tag of the header's slot.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec
import xxhash

from mpifs.core.checksum import Buffer
from mpifs.core.errors import ProtocolError
from mpifs.core.limits import (
    ARGS_BYTES_MAX,
    BODY_BYTES_MAX,
    HEADER_BYTES,
    INLINE_BYTES_MAX,
    SLOT_COUNT_MAX,
)

MAGIC = 0x4D46  # "FM" in little-endian bytes
VERSION = 2

TAG_REPLY_BASE = 1 << 13
TAG_DATA_BASE = 1 << 14
assert SLOT_COUNT_MAX <= TAG_REPLY_BASE
assert TAG_DATA_BASE + SLOT_COUNT_MAX <= 32767  # the smallest MPI_TAG_UB the standard allows


BELL_BYTES = 16
_HEADER = struct.Struct("<HBBiIIQIII16s4xQ")
_GUARD = struct.Struct("<I")
_GUARD_AT = 52
assert _HEADER.size == HEADER_BYTES


class Header(NamedTuple):
    """Header of a request or reply.

    `status` is 0 or, in a reply, an errno (then the arguments are a UTF-8 sentence); `epoch`
    counts the worlds of a job: messages of an older one are ignored; `slot` picks the reply and
    data tags; `request` is unique in a client, and a reply repeats it; `bell` is where to ring the
    asker when the reply has been posted; `free` is, in a worker's reply, the bytes its store can
    still take.
    """

    kind: int
    status: int
    epoch: int
    slot: int
    request: int
    args_bytes: int
    body_bytes: int
    items: int
    bell: bytes
    free: int

    @property
    def is_inline(self) -> bool:
        """Whether the body stands behind the arguments in the same message."""
        return self.body_bytes <= INLINE_BYTES_MAX


def encode_header(header: Header) -> bytes:
    """64 bytes, without the guard.  Requires: fields in their ranges (struct.error else)."""
    return _HEADER.pack(
        MAGIC,
        VERSION,
        header.kind,
        header.status,
        header.epoch,
        header.slot,
        header.request,
        header.args_bytes,
        header.body_bytes,
        header.items,
        header.bell,
        header.free,
    )


def encode_message(header: Header, args: Buffer = b"", body: Buffer = b"") -> bytes:
    """A whole header message (`body`: an inline one) with its guard.

    Requires: args and body are as long as the header says.
    """
    head = encode_header(header)
    before, after = head[:_GUARD_AT], head[_GUARD_AT + _GUARD.size :]
    guard = xxhash.xxh3_64_intdigest(b"".join((before, after, args, body))) & 0xFFFFFFFF
    return b"".join((before, _GUARD.pack(guard), after, args, body))


def decode_message(message: memoryview) -> Header:
    """Reads and checks a whole header message; any bytes are allowed in.

    Raises ProtocolError: as decode_header, not as long as it says, or damaged on the way.
    """
    header = decode_header(message)
    inline_bytes = header.body_bytes if header.is_inline else 0
    if len(message) != HEADER_BYTES + header.args_bytes + inline_bytes:
        raise ProtocolError(f"message of {len(message)} bytes is not as long as it says")
    guarded = b"".join((message[:_GUARD_AT], message[_GUARD_AT + _GUARD.size :]))
    if _GUARD.unpack_from(message, _GUARD_AT)[0] != xxhash.xxh3_64_intdigest(guarded) & 0xFFFFFFFF:
        raise ProtocolError("message was damaged on the way: its guard is wrong")
    return header


def decode_header(data: Buffer) -> Header:
    """Reads and checks the first 64 bytes of a header message; any bytes are allowed in.

    Raises ProtocolError: short, wrong magic or version, a slot or size over its limit.
    """
    if len(data) < HEADER_BYTES:
        raise ProtocolError(f"message of {len(data)} bytes is shorter than its header")
    magic, version, kind, status, epoch, slot, request, args, body, items, bell, free = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC or version != VERSION:
        raise ProtocolError("message with a wrong magic or version: do all ranks run one mpifs?")
    if slot >= SLOT_COUNT_MAX or args > ARGS_BYTES_MAX or body > BODY_BYTES_MAX:
        raise ProtocolError("message with a slot or size over its limit")
    return Header(kind, status, epoch, slot, request, args, body, items, bell, free)


MESSAGE_BYTES_MAX = HEADER_BYTES + ARGS_BYTES_MAX + INLINE_BYTES_MAX


class HelloReply(msgspec.Struct, frozen=True):
    """A worker's answer to HELLO: which stores its host has at the volume's path."""

    host: str
    pid: int
    stores: list[tuple[int, bytes, bytes]]
    """(store id, volume UUID, store UUID) of each worker-* folder found, damaged ones left out."""


class Serve(msgspec.Struct, frozen=True):
    """Which store a worker is to open."""

    store: int
    volume_uuid: bytes
    store_uuid: bytes
    chunk_size: int
    checksum: int
    create: bool
    """Make the folder if it is not there (the index knows the store as fresh)."""
    relaxed: bool = False
    """`-o sync=relaxed`: commits without waiting for the disk."""
    capacity: int = 0
    """Bytes that the store may take of its disk; 0: all of it."""


class StoreStats(msgspec.Struct, frozen=True):
    """Figures of a store; `bytes` counts payload bytes of its chunks."""

    store: int
    chunks: int
    bytes: int
    free: int
    disk: str = ""
    """Names the file system that the store lies on: equal for stores that share its free bytes."""


class ListKeys(msgspec.Struct, frozen=True):
    """Where to go on listing: keys greater than `after` (encoded, b"" = from the start)."""

    after: bytes
    count: int


class FolderReport(msgspec.Struct, frozen=True):
    """One `worker-*` folder of a host.  `store` and the UUIDs are of its superblock (0, b"")."""

    name: str
    state: str
    """ok, empty (nothing or only a lock in it), bare (environments, no superblock), damaged."""
    store: int = 0
    volume_uuid: bytes = b""
    store_uuid: bytes = b""
    detail: str = ""
    chunk_size: int = 0
    checksum: int = 0
    """Geometry of a whole superblock (0 else): all there is when the index is lost."""


class SurveyReply(msgspec.Struct, frozen=True):
    """All folders named `worker-*` at the volume's path on a rank's host."""

    folders: list[FolderReport]


class Inspect(msgspec.Struct, frozen=True):
    """Which store's files to look at; `store` picks the folder."""

    store: int


class FileProblem(msgspec.Struct, frozen=True):
    """Something wrong with a data file as a file; `file` is relative to the store's folder."""

    file: str
    detail: str


class InspectReply(msgspec.Struct, frozen=True):
    """What is wrong with the files; at most 100 problems a file are told, `count` is of all."""

    problems: list[FileProblem]
    count: int


class Rebuild(msgspec.Struct, frozen=True):
    """What to make anew of the folder of `store`: a damaged or missing superblock, folders that
    were exchanged (renamed to where they belong), damaged environments, an emptied folder."""

    store: int
    volume_uuid: bytes
    store_uuid: bytes
    chunk_size: int
    checksum: int


class RebuildReply(msgspec.Struct, frozen=True):
    """Chunks that the new files hold, and sentences of what was done ("" = nothing had to be)."""

    chunks: int
    done: list[str]


_Key: TypeAlias = bytes  # in a structure with a field `bytes` that name means the field.


class VerifyKeys(msgspec.Struct, frozen=True):
    """Where to go on verifying: keys greater than `after` (encoded; b"" = from the start), at most
    `count` reports and about `bytes` payload bytes; `data` false: headers only."""

    after: _Key
    count: int
    bytes: int
    data: bool


class VerifyReply(msgspec.Struct, frozen=True):
    """`bytes` of payload were summed; `is_end`: there are no keys behind the last report."""

    bytes: int
    is_end: bool


class MendItem(msgspec.Struct, frozen=True, array_like=True):
    """One chunk as the index knows it, and under which key its image stands now (encoded keys)."""

    key: bytes
    found: bytes
    length: int
    checksum: bytes


class Mend(msgspec.Struct, frozen=True):
    """Images to be made whole: payload of `length` with that checksum is at `found`; afterwards it
    stands under `key` with a good header, listed."""

    items: list[MendItem]


class MendReply(msgspec.Struct, frozen=True):
    """Per item: whether it is whole now; false: the payload was not there."""

    mended: list[bool]


class TableWish(IntEnum):
    """Whether GET_PART is to give the table of the chunk's block sums."""

    NONE = 0
    ANY = 1
    """The one that is stored with it will do."""
    SUMMED = 2
    """From all its bytes, once they have been compared with the checksum."""


class GetPart(msgspec.Struct, frozen=True, array_like=True):
    """`count` blocks of a chunk from block `first` on; the chunk as the index knows it (encoded
    key).  `table` is a TableWish."""

    key: bytes
    length: int
    checksum: bytes
    first: int
    count: int
    table: int


class CopyItem(msgspec.Struct, frozen=True, array_like=True):
    """One chunk as the index knows it (encoded key)."""

    key: bytes
    length: int
    checksum: bytes


class Copy(msgspec.Struct, frozen=True):
    """Chunks that the asked rank is to fetch from the rank `source` with GET, to compare with
    these checksums, and to store durably in place of whatever it has under their keys."""

    source: int
    items: list[CopyItem]


class CopyFailure(msgspec.Struct, frozen=True, array_like=True):
    """An item that was not stored: its place in the request, an errno, a sentence."""

    item: int
    code: int
    detail: str


class CopyReply(msgspec.Struct, frozen=True):
    """The items that were not stored; all others are durable."""

    failures: list[CopyFailure]


class Retire(msgspec.Struct, frozen=True):
    """Which store is to be removed from its disk, for ever."""

    store: int
    volume_uuid: bytes
    store_uuid: bytes


_Args = TypeVar("_Args")
_encoder = msgspec.msgpack.Encoder()


def encode_args(value: msgspec.Struct) -> bytes:
    """MessagePack of a control message's arguments."""
    return _encoder.encode(value)


def decode_args(data: Buffer, kind: type[_Args]) -> _Args:
    """Raises ProtocolError if the bytes are not MessagePack of that structure."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"arguments are no {kind.__name__}: {error}") from None
