"""One of the three environments of a chunk store, with its counters.

The counters stand in `meta` under COUNTERS_KEY and are written in the transaction that changes
them.  A record that is damaged or disagrees with the number of headers is counted anew at open.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from mpifs import faultpoint
from mpifs.core.checksum import Buffer, guard64
from mpifs.core.errors import DamageError, FullError
from mpifs.core.image import IMAGE_HEADER_BYTES, decode_header, encode_key
from mpifs.core.limits import KV_SLACK_BYTES
from mpifs.core.types import ChunkKey
from mpifs.kv import Environment, WriteTransaction
from mpifs.store.cold import ColdGets

COUNTERS_KEY = b"counters"
SIDES = ("small", "large", "copy")
DATABASES = ("chunks", "headers", "meta")
_COUNTERS = struct.Struct("<QQ")
_GUARD = struct.Struct("<Q")
_PAGE_BYTES = 4096
_COMMIT_BYTES = 16 * _PAGE_BYTES  # pages of the trees and the free list that a commit rewrites


class Counters(NamedTuple):
    """Chunks, and the bytes of their payloads."""

    chunks: int = 0
    payload_bytes: int = 0


class SideChange:
    """A side's write transaction and the counters as they will be after it."""

    def __init__(self, transaction: WriteTransaction, counters: Counters) -> None:
        self._transaction = transaction
        self.counters = counters

    def has(self, key: bytes) -> bool:
        """Whether a chunk is stored; reads no payload."""
        return self._transaction.get("headers", key) is not None

    def image(self, key: bytes) -> memoryview | None:
        """The stored value, valid until the next change."""
        return self._transaction.get("chunks", key)

    def listed(self, key: bytes) -> memoryview | None:
        """The header in the listing, valid until the next change."""
        return self._transaction.get("headers", key)

    def put(self, key: bytes, value: Buffer, length: int) -> None:
        """Stores the value of a new chunk with `length` payload bytes.  Requires: not has(key)."""
        self._transaction.put("headers", key, value[:IMAGE_HEADER_BYTES])
        self._transaction.put("chunks", key, value)
        self.counters = Counters(self.counters.chunks + 1, self.counters.payload_bytes + length)

    def relist(self, key: bytes, header: bytes) -> None:
        """Makes `header` the listed one of a chunk whose image is there, listed or not."""
        old = self.listed(key)
        chunks, payload_bytes = self.counters
        payload_bytes += length_of(header) - (0 if old is None else length_of(old))
        self.counters = Counters(chunks + (old is None), max(0, payload_bytes))
        self._transaction.put("headers", key, header)

    def delete(self, key: bytes) -> bool:
        """Removes a chunk; False if there is none."""
        header = self._transaction.get("headers", key)
        if header is None:
            return self._transaction.delete("chunks", key)
        length = length_of(header)
        self._transaction.delete("headers", key)
        self._transaction.delete("chunks", key)
        self.counters = Counters(
            self.counters.chunks - 1, max(0, self.counters.payload_bytes - length)
        )
        return True


class GroupChange:
    """The changes of one commit to the environments of a store: a write transaction is begun in
    those that need one, when they do.  An empty one costs as much as storing a small chunk.

    The writing thread's; ends with `stack`.
    """

    def __init__(self, stack: ExitStack, sides: Sequence[Side]) -> None:
        self._stack = stack
        self._sides = sides
        self._open: dict[Side, SideChange] = {}

    def of(self, side: Side) -> SideChange:
        """The transaction in an environment."""
        change = self._open.get(side)
        if change is None:
            change = self._open[side] = self._stack.enter_context(side.change())
        return change

    def holders(self, key: bytes) -> list[SideChange]:
        """Of the environments that list a chunk."""
        return [self.of(side) for side in self._sides if self._lists(side, key)]

    def _lists(self, side: Side, key: bytes) -> bool:
        change = self._open.get(side)
        if change is not None:
            return change.has(key)
        with side.environment.read() as reading:
            return reading.get("headers", key) is not None

    def delete(self, key: bytes) -> None:
        """Removes a chunk wherever it is; one that is not listed may be there unlisted."""
        for change in self.holders(key) or [self.of(side) for side in self._sides]:
            change.delete(key)


class Side:
    """An environment.  Reading is for all threads, `make_room` and `change` for one."""

    def __init__(self, path: str, *, create: bool, relaxed: bool) -> None:
        self.environment = Environment(
            path, DATABASES, sync="relaxed" if relaxed else "full", create=create
        )
        self.cold = ColdGets(path)
        self._is_stale = False
        self.counters = self._read_counters()

    @property
    def name(self) -> str:
        """`small`, `large` or `copy`."""
        return os.path.basename(self.environment.path)

    def make_room(self, needed_bytes: int, count: int, *, is_replacing: bool = False) -> None:
        """Prepares for `count` values with `needed_bytes` in all.  Raises FullError.

        Without any (only deletes) a full disk is no error: KV_SLACK_BYTES were kept for them.  Half
        of those are for what takes the place of something (`is_replacing`).
        """
        extra = count * _PAGE_BYTES + _COMMIT_BYTES if count else 0
        needed = needed_bytes + extra
        spare = self.environment.room.spare_bytes() if is_replacing else 0
        try:
            self.environment.preallocate_ahead(
                needed, may_use_slack=is_replacing and spare - KV_SLACK_BYTES // 2 >= needed
            )
        except FullError:
            if count:
                raise

    @contextmanager
    def change(self) -> Iterator[SideChange]:
        """The write transaction; commits at the end, unless nothing was changed."""
        with self.environment.write() as transaction:
            change = SideChange(transaction, self.counters)
            yield change
            if change.counters != self.counters or self._is_stale:
                transaction.put("meta", COUNTERS_KEY, _encode(change.counters))
        faultpoint.reach("store.side")
        self.counters, self._is_stale = change.counters, False

    def has_older(self, key: ChunkKey) -> bool:
        """Whether an older generation of the chunk is stored here."""
        first = encode_key(ChunkKey(key.inode, key.chunk, 0))
        with self.environment.read() as transaction:
            return next(transaction.scan_keys("headers", first, encode_key(key)), None) is not None

    def close(self) -> None:
        """Closes the environment; its map stays as long as a reader is open."""
        self.environment.close()

    def _read_counters(self) -> Counters:
        with self.environment.read() as transaction:
            count = transaction.count("headers")
            counters = _decode(transaction.get("meta", COUNTERS_KEY))
            if counters is not None and counters.chunks == count:
                return counters
            self._is_stale = count > 0 or counters is not None
            total = sum(length_of(header) for _, header in transaction.scan("headers"))
            return Counters(count, total)


def length_of(header: Buffer) -> int:
    """Payload bytes that a stored header tells; 0 if it is damaged."""
    try:
        return decode_header(header).length
    except DamageError:
        return 0


def _encode(counters: Counters) -> bytes:
    body = _COUNTERS.pack(*counters)
    return body + _GUARD.pack(guard64(body))


def _decode(record: memoryview | None) -> Counters | None:
    if record is None or len(record) != _COUNTERS.size + _GUARD.size:
        return None
    body = record[: _COUNTERS.size]
    if _GUARD.unpack_from(record, _COUNTERS.size)[0] != guard64(body):
        return None
    return Counters(*_COUNTERS.unpack(body))
