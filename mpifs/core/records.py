"""What is stored in the index ↔ bytes.  Layout in doc/format.md, section 4.

Invariants: a record ends with guard64 of its key and its body, so that a flipped bit, a cut
record and a record under a foreign key are all found.  Encoders raise struct.error for values out
of range (a programmer error).  Decoders take any bytes and raise DamageError, naming database and
key, and nothing else.  Keys begin big-endian, so that LMDB's order is the order of the numbers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, TypeVar

from mpifs.core.checksum import Buffer, guard64
from mpifs.core.errors import DamageError
from mpifs.core.limits import NAME_BYTES_MAX, REPLICAS_MAX, STORES_MAX
from mpifs.core.types import ChunkKey, ChunkRef, StoreEntry, StoreId, StoreState

META = "meta"
INODES = "inodes"
DENTRIES = "dentries"
REFS = "refs"
XATTRS = "xattrs"
ORPHANS = "orphans"
GARBAGE = "garbage"
DATABASES = (META, INODES, DENTRIES, REFS, XATTRS, ORPHANS, GARBAGE)

KEY_COUNTERS = b"counters"
KEY_GENERATION_LIMIT = b"generation-limit"
KEY_INODE_LIMIT = b"inode-limit"
KEY_RESTORED = b"restored"
KEY_STORES = b"stores"

INODE_VERSION = 1

FLAG_IMMUTABLE = 1 << 0
"""Reserved for chattr +i; nothing sets it yet."""
FLAG_APPEND = 1 << 1
"""Reserved for chattr +a; nothing sets it yet."""
FLAG_XATTRS = 1 << 8
"""The inode has at least one extended attribute; without it none is looked for."""

NS_PER_S = 1_000_000_000

_GUARD = struct.Struct("<Q")
_KEY1 = struct.Struct(">Q")
_KEY2 = struct.Struct(">QQ")
_KEY3 = struct.Struct(">QQQ")
_INODE = struct.Struct("<BBHHHIIIIIIQQQQqqqIIII")
_INODE_BODY_BYTES = 104
assert _INODE.size == _INODE_BODY_BYTES
_DENTRY = struct.Struct("<QB")
_DENTRY_GUARDED = struct.Struct("<QBQ")
_REFS = tuple(struct.Struct(f"<QI16sB{count}H") for count in range(REPLICAS_MAX + 1))
_REFS_GUARDED = tuple(struct.Struct(layout.format + "Q") for layout in _REFS)
_REF_COUNT_AT = 28
_GARBAGE = tuple(struct.Struct(f"<B{count}H") for count in range(REPLICAS_MAX + 1))
_COUNTERS = struct.Struct("<QQQQ")
_NUMBER = struct.Struct("<Q")
_STORES_HEAD = struct.Struct("<I")
_STORE_ROW = struct.Struct("<HBx16s")
_TYPE_BITS = frozenset((0o01, 0o02, 0o04, 0o06, 0o10, 0o12, 0o14))

_pack_guard = _GUARD.pack
_pack_key1 = _KEY1.pack


@dataclass(slots=True)
class InodeRecord:
    """What of an inode is stored.

    `stable_size` counts, for a directory, its entries, and for a symbolic link the bytes of its
    target.  `parent` and `name` are one name of the inode, the newest; parent 0: not known.
    """

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    stable_size: int
    bytes_stored: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    parent: int
    name: bytes
    start: int
    chunk_size: int
    replicas: int
    flags: int
    target: bytes


_Record = TypeVar("_Record", bound=InodeRecord)


class Counters(NamedTuple):
    """Totals of a volume, committed with the changes that they count.

    `files` counts inode records that are no directory, `directories` the others (the root
    included), `payload_bytes` the lengths of all chunk refs, `orphans` rows of that table.
    """

    files: int
    directories: int
    payload_bytes: int
    orphans: int


def _damaged(database: str, key: Buffer, what: str) -> NoReturn:
    raise DamageError(f"index: {database} record {bytes(key).hex() or '(empty key)'} {what}")


def _guarded(key: bytes, body: bytes) -> bytes:
    return body + _pack_guard(guard64(key + body))


def _body(database: str, key: Buffer, value: Buffer) -> bytes:
    """The record without its guard, which is checked."""
    data = bytes(value)
    body = data[:-8]
    if len(data) < _GUARD.size or _pack_guard(guard64(bytes(key) + body)) != data[-8:]:
        _damaged(database, key, "fails its own checksum")
    return body


def inode_key(ino: int) -> bytes:
    """Key in `inodes` and `orphans`, and beginning of the keys of all that belongs to it."""
    return _pack_key1(ino)


def name_key(ino: int, name: bytes) -> bytes:
    """Key in `dentries` (directory, name) and `xattrs` (inode, attribute)."""
    return _pack_key1(ino) + name


def ref_key(ino: int, chunk: int) -> bytes:
    """Key in `refs`."""
    return _KEY2.pack(ino, chunk)


def garbage_key(key: ChunkKey) -> bytes:
    """Key in `garbage`."""
    return _KEY3.pack(*key)


def decode_inode_key(database: str, key: Buffer) -> int:
    """Inode number of a key of 8 bytes."""
    if len(key) != _KEY1.size:
        _damaged(database, key, "has a key of the wrong length")
    return int(_KEY1.unpack(key)[0])


def decode_name_key(database: str, key: Buffer) -> tuple[int, bytes]:
    """Inode number and name of a key in `dentries` or `xattrs`."""
    if not _KEY1.size < len(key) <= _KEY1.size + NAME_BYTES_MAX:
        _damaged(database, key, "has a key of the wrong length")
    data = bytes(key)
    return int(_KEY1.unpack_from(data)[0]), data[8:]


def decode_ref_key(key: Buffer) -> tuple[int, int]:
    """Inode number and chunk index of a key in `refs`."""
    if len(key) != _KEY2.size:
        _damaged(REFS, key, "has a key of the wrong length")
    ino, chunk = _KEY2.unpack(key)
    return ino, chunk


def decode_garbage_key(key: Buffer) -> ChunkKey:
    """Chunk key of a key in `garbage`."""
    if len(key) != _KEY3.size:
        _damaged(GARBAGE, key, "has a key of the wrong length")
    return ChunkKey(*_KEY3.unpack(key))


def encode_inode(inode: InodeRecord) -> bytes:
    """Record of an inode, to be stored under inode_key(inode.ino)."""
    atime_s, atime_ns = divmod(inode.atime_ns, NS_PER_S)
    mtime_s, mtime_ns = divmod(inode.mtime_ns, NS_PER_S)
    ctime_s, ctime_ns = divmod(inode.ctime_ns, NS_PER_S)
    name = inode.name
    target = inode.target
    body = (
        _INODE.pack(
            INODE_VERSION,
            inode.replicas,
            len(name),
            len(target),
            inode.start,
            inode.mode,
            inode.uid,
            inode.gid,
            inode.nlink,
            inode.chunk_size,
            inode.flags,
            inode.rdev,
            inode.stable_size,
            inode.bytes_stored,
            inode.parent,
            atime_s,
            mtime_s,
            ctime_s,
            atime_ns,
            mtime_ns,
            ctime_ns,
            0,
        )
        + name
        + target
    )
    return body + _pack_guard(guard64(_pack_key1(inode.ino) + body))


def decode_inode(key: Buffer, value: Buffer, make: type[_Record]) -> _Record:
    """A `make` (InodeRecord or a subclass with the same constructor) of a stored record.

    Raises DamageError for any bytes but an inode record stored under `key`.
    """
    ino = decode_inode_key(INODES, key)
    body = _body(INODES, key, value)
    if len(body) < _INODE_BODY_BYTES:
        _damaged(INODES, key, "is cut")
    (
        version,
        replicas,
        name_bytes,
        target_bytes,
        start,
        mode,
        uid,
        gid,
        nlink,
        chunk_size,
        flags,
        rdev,
        size,
        bytes_stored,
        parent,
        atime_s,
        mtime_s,
        ctime_s,
        atime_ns,
        mtime_ns,
        ctime_ns,
        reserved,
    ) = _INODE.unpack_from(body)
    if version != INODE_VERSION or reserved:
        _damaged(INODES, key, f"has an unknown version ({version})")
    name_end = _INODE_BODY_BYTES + name_bytes
    if len(body) != name_end + target_bytes or name_bytes > NAME_BYTES_MAX:
        _damaged(INODES, key, "has lengths that do not agree")
    if max(atime_ns, mtime_ns, ctime_ns) >= NS_PER_S or mode >> 12 not in _TYPE_BITS:
        _damaged(INODES, key, "has an impossible time or type")
    return make(
        ino,
        mode,
        uid,
        gid,
        nlink,
        rdev,
        size,
        bytes_stored,
        atime_s * NS_PER_S + atime_ns,
        mtime_s * NS_PER_S + mtime_ns,
        ctime_s * NS_PER_S + ctime_ns,
        parent,
        body[_INODE_BODY_BYTES:name_end],
        start,
        chunk_size,
        replicas,
        flags,
        body[name_end:],
    )


def encode_dentry(key: bytes, ino: int, kind: int) -> bytes:
    """Record of a name: the inode it names and that one's type (`mode >> 12`)."""
    body = _DENTRY.pack(ino, kind)
    return body + _pack_guard(guard64(key + body))


def decode_dentry(key: Buffer, value: Buffer) -> tuple[int, int]:
    """(inode, type) as encode_dentry took them; DamageError for anything else."""
    if len(value) != _DENTRY_GUARDED.size:
        _damaged(DENTRIES, key, "has the wrong length")
    data = bytes(value)
    ino, kind, guard = _DENTRY_GUARDED.unpack(data)
    if guard != guard64(bytes(key) + data[:9]):
        _damaged(DENTRIES, key, "fails its own checksum")
    if not ino or kind not in _TYPE_BITS:
        _damaged(DENTRIES, key, "names no inode or no type")
    return ino, kind


def encode_ref(key: bytes, ref: ChunkRef) -> bytes:
    """Record of a chunk ref.  Requires: at most REPLICAS_MAX stores, a checksum of 16 bytes."""
    stores = ref.stores
    count = len(stores)
    body = _REFS[count].pack(ref.generation, ref.length, ref.checksum, count, *stores)
    return body + _pack_guard(guard64(key + body))


def decode_ref(key: Buffer, value: Buffer) -> ChunkRef:
    """Raises DamageError for any bytes but a ref stored under `key`."""
    data = bytes(value)
    count = data[_REF_COUNT_AT] if len(data) > _REF_COUNT_AT else 0
    if count > REPLICAS_MAX or len(data) != _REFS_GUARDED[count].size:
        _damaged(REFS, key, "is cut, or names too many stores")
    generation, length, checksum, _, *stores, guard = _REFS_GUARDED[count].unpack(data)
    if guard != guard64(bytes(key) + data[:-8]):
        _damaged(REFS, key, "fails its own checksum")
    return ChunkRef(generation, length, checksum, tuple(stores))


def encode_garbage(key: bytes, stores: tuple[int, ...]) -> bytes:
    """Record of a chunk to be deleted from `stores`.  Requires: at most REPLICAS_MAX of them."""
    return _guarded(key, _GARBAGE[len(stores)].pack(len(stores), *stores))


def decode_garbage(key: Buffer, value: Buffer) -> tuple[int, ...]:
    """The stores; raises DamageError for any bytes but a garbage record stored under `key`."""
    body = _body(GARBAGE, key, value)
    if not body or body[0] > REPLICAS_MAX or len(body) != _GARBAGE[body[0]].size:
        _damaged(GARBAGE, key, "has the wrong length")
    return tuple(_GARBAGE[body[0]].unpack(body)[1:])


def encode_xattr(key: bytes, value: bytes) -> bytes:
    """Record of an extended attribute."""
    return _guarded(key, value)


def decode_xattr(key: Buffer, value: Buffer) -> bytes:
    """The attribute's value; DamageError if its guard is wrong."""
    return _body(XATTRS, key, value)


def encode_orphan(key: bytes) -> bytes:
    """Record of an inode without a name; it says nothing more."""
    return _guarded(key, b"")


def decode_orphan(key: Buffer, value: Buffer) -> int:
    """Number of the inode."""
    if _body(ORPHANS, key, value):
        _damaged(ORPHANS, key, "has the wrong length")
    return decode_inode_key(ORPHANS, key)


def encode_number(key: bytes, number: int) -> bytes:
    """Record of a limit of numbers, in `meta`."""
    return _guarded(key, _NUMBER.pack(number))


def decode_number(key: bytes, value: Buffer) -> int:
    """Raises DamageError for any bytes but a number stored under `key`."""
    body = _body(META, key, value)
    if len(body) != _NUMBER.size:
        _damaged(META, key, "has the wrong length")
    return int(_NUMBER.unpack(body)[0])


def encode_counters(counters: Counters) -> bytes:
    """Record under KEY_COUNTERS."""
    return _guarded(KEY_COUNTERS, _COUNTERS.pack(*counters))


def decode_counters(value: Buffer) -> Counters:
    """Raises DamageError for any bytes but a counters record."""
    body = _body(META, KEY_COUNTERS, value)
    if len(body) != _COUNTERS.size:
        _damaged(META, KEY_COUNTERS, "has the wrong length")
    return Counters(*_COUNTERS.unpack(body))


def encode_stores(stores: list[StoreEntry]) -> bytes:
    """Record under KEY_STORES: the volume's table of stores, in its order."""
    rows = [_STORE_ROW.pack(entry.store, entry.state, entry.uuid) for entry in stores]
    return _guarded(KEY_STORES, _STORES_HEAD.pack(len(rows)) + b"".join(rows))


def decode_stores(value: Buffer) -> list[StoreEntry]:
    """Raises DamageError for any bytes but a table of stores with different ids."""
    body = _body(META, KEY_STORES, value)
    head = _STORES_HEAD.size
    if len(body) < head or len(body) != head + _STORE_ROW.size * _STORES_HEAD.unpack_from(body)[0]:
        _damaged(META, KEY_STORES, "has the wrong length")
    entries = []
    for store, state, uuid in _STORE_ROW.iter_unpack(body[head:]):
        try:
            entries.append(StoreEntry(StoreId(store), uuid, StoreState(state)))
        except ValueError:
            _damaged(META, KEY_STORES, "names an unknown state of a store")
    if len({entry.store for entry in entries}) != len(entries) or len(entries) > STORES_MAX:
        _damaged(META, KEY_STORES, "names a store twice")
    return entries
