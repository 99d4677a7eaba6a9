"""One of the two environments of a chunk store, with its counters.

The counters stand in `meta` under COUNTERS_KEY and are written in the transaction that changes
them.  A record that is damaged or disagrees with the number of headers is counted anew at open.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mpifs.core.checksum import guard64
from mpifs.core.errors import DamageError, FullError
from mpifs.core.image import IMAGE_HEADER_BYTES, decode_header
from mpifs.kv import Environment, WriteTransaction

COUNTERS_KEY = b"counters"
_COUNTERS = struct.Struct("<QQ")
_GUARD = struct.Struct("<Q")
_DATABASES = ("chunks", "headers", "meta")
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
        """The stored value, valid until the next call."""
        return self._transaction.get("chunks", key)

    def put(self, key: bytes, value: memoryview, length: int) -> None:
        """Stores the value of a new chunk with `length` payload bytes.  Requires: not has(key)."""
        self._transaction.put("headers", key, value[:IMAGE_HEADER_BYTES])
        self._transaction.put("chunks", key, value)
        self.counters = Counters(self.counters.chunks + 1, self.counters.payload_bytes + length)

    def delete(self, key: bytes) -> bool:
        """Removes a chunk; False if there is none."""
        header = self._transaction.get("headers", key)
        if header is None:
            return self._transaction.delete("chunks", key)
        length = _length(header)
        self._transaction.delete("headers", key)
        self._transaction.delete("chunks", key)
        self.counters = Counters(
            self.counters.chunks - 1, max(0, self.counters.payload_bytes - length)
        )
        return True


class Side:
    """An environment.  Reading is for all threads, `make_room` and `change` for one."""

    def __init__(self, path: str, *, create: bool, relaxed: bool) -> None:
        self.environment = Environment(
            path, _DATABASES, sync="relaxed" if relaxed else "full", create=create
        )
        self.counters = self._read_counters()

    def make_room(self, needed_bytes: int, count: int) -> None:
        """Prepares for `count` values with `needed_bytes` in all.  Raises FullError.

        Without any (only deletes) a full disk is no error: KV_SLACK_BYTES were kept for them.
        """
        try:
            extra = count * _PAGE_BYTES + _COMMIT_BYTES if count else 0
            self.environment.preallocate_ahead(needed_bytes + extra)
        except FullError:
            if count:
                raise

    @contextmanager
    def change(self) -> Iterator[SideChange]:
        """The write transaction; commits at the end, unless nothing was changed."""
        with self.environment.write() as transaction:
            change = SideChange(transaction, self.counters)
            yield change
            if change.counters != self.counters:
                transaction.put("meta", COUNTERS_KEY, _encode(change.counters))
        self.counters = change.counters

    def close(self) -> None:
        """Closes the environment; its map stays as long as a reader is open."""
        self.environment.close()

    def _read_counters(self) -> Counters:
        with self.environment.read() as transaction:
            count = transaction.count("headers")
            counters = _decode(transaction.get("meta", COUNTERS_KEY))
            if counters is not None and counters.chunks == count:
                return counters
            total = sum(_length(header) for _, header in transaction.scan("headers"))
            return Counters(count, total)


def _length(header: memoryview) -> int:
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
