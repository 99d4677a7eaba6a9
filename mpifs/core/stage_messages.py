"""Orders of stage-in and stage-out ↔ bytes: the bodies of STAGE_IN, STAGE_OUT and their replies.

MessagePack, and behind it guard64 of it: a long body has no other guard, and a wrong offset would
be wrong bytes in a file.  Rows are arrays without names: an order has hundreds of them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeVar

import msgspec

from mpifs.core.checksum import CHECKSUM_BYTES, Buffer, guard64
from mpifs.core.errors import ProtocolError
from mpifs.core.limits import CHUNK_BYTES_MAX, FILE_BYTES_MAX, STAGE_COUNT_MAX


class Identity(NamedTuple):
    """By what a source is known again; another value of one of them: it has changed."""

    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int


class StagePart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes of one file that become one chunk.  The file is `name` in folder number `folder` of
    the order; `offset` and `length` are a range of it."""

    folder: int
    name: bytes
    source: Identity
    offset: int
    length: int
    inode: int
    chunk: int
    generation: int


class StageOrder(msgspec.Struct, frozen=True):
    """Parts to be read, summed and stored."""

    folders: list[bytes]
    items: list[StagePart]


class StageDone(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one part: `code` 0 and the checksum, or an errno and a sentence.  Of a
    stage-out, `was_there` says that it had been written before."""

    code: int
    checksum: bytes
    detail: str = ""
    was_there: bool = False


class StageReply(msgspec.Struct, frozen=True):
    """One row per part of the order, in its order."""

    items: list[StageDone]


class Dress(msgspec.Struct, frozen=True, array_like=True):
    """Attributes of a file that is written: uid -1 leaves the owner."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    xattrs: list[tuple[bytes, bytes]]


class StageOutPart(msgspec.Struct, frozen=True, array_like=True):
    """One chunk that belongs at `offset` of the file `name` in folder number `folder`.

    `checks`: what is there first is compared, and not written when it is right.  `writes` false:
    only that.  With `final` the file is this chunk alone: it is made as `name`, dressed and renamed
    to `final` (which is what `checks` looks at); without, the asker makes and renames it.  Of the
    chunk's `length` bytes the first `keep` belong to the file: it may have been cut since.
    """

    folder: int
    name: bytes
    offset: int
    inode: int
    chunk: int
    generation: int
    length: int
    checksum: bytes
    checks: bool
    writes: bool
    final: bytes
    dress: Dress | None
    keep: int


class StageOutOrder(msgspec.Struct, frozen=True):
    """Chunks to be written and proved.  `probe` is a file that the asker has made: who does not
    see it has another file system at these paths and must write nothing."""

    folders: list[bytes]
    items: list[StageOutPart]
    probe: bytes


_Body = TypeVar("_Body", StageOrder, StageOutOrder, StageReply)
_GUARD = struct.Struct("<Q")
_encoder = msgspec.msgpack.Encoder()
_decoders = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (StageOrder, StageOutOrder, StageReply)
}


def encode_body(value: StageOrder | StageOutOrder | StageReply) -> bytes:
    """A body with its guard."""
    packed = _encoder.encode(value)
    return packed + _GUARD.pack(guard64(packed))


def decode_body(data: Buffer, kind: type[_Body]) -> _Body:
    """Raises ProtocolError if the bytes are damaged, no such structure, or an impossible one."""
    view = memoryview(data)
    packed, guard = view[: -_GUARD.size], view[-_GUARD.size :]
    if len(view) <= _GUARD.size or _GUARD.unpack(guard)[0] != guard64(packed):
        raise ProtocolError(f"a {kind.__name__} was damaged on the way: its guard is wrong")
    try:
        body = _decoders[kind].decode(packed)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"body is no {kind.__name__}: {error}") from None
    assert isinstance(body, kind)
    if len(body.items) > STAGE_COUNT_MAX:
        raise ProtocolError(f"an order of {len(body.items)} parts; {STAGE_COUNT_MAX} are allowed")
    if not isinstance(body, StageReply):
        _check(body)
    return body


def _check(order: StageOrder | StageOutOrder) -> None:
    for item in order.items:
        is_possible = (
            0 <= item.folder < len(order.folders)
            and _is_name(item.name)
            and 0 <= item.offset <= FILE_BYTES_MAX - CHUNK_BYTES_MAX
            and 0 <= item.length <= CHUNK_BYTES_MAX
            and all(0 <= n < 2**64 for n in (item.inode, item.chunk, item.generation))
        )
        if isinstance(item, StageOutPart):
            is_possible &= len(item.checksum) == CHECKSUM_BYTES
            is_possible &= 0 < item.keep <= item.length
            is_possible &= not item.final or (_is_name(item.final) and item.dress is not None)
        else:
            is_possible &= item.inode > 0 and item.length > 0
        if not is_possible:
            raise ProtocolError("an order with an impossible name, range or key")


def _is_name(name: bytes) -> bool:
    return bool(name) and b"/" not in name and b"\0" not in name
