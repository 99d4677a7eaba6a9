"""Parts: a few blocks of a chunk instead of all of it, for small reads at random.

Each block is compared with the table of the chunk's block sums.  A table is stored with the chunk,
bound to the checksum in the index (core/block_table.py), or made by whoever has compared the whole
chunk with that checksum in the same moment; so never a byte is handed out that was not verified.
Anything else than good bytes is left to the whole chunk's fetch (gather.py), which knows about
damage, replicas and dead workers.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from mpifs.core.block_table import checked_table, has_table, table_bytes
from mpifs.core.checksum import CHECKSUM_BYTES, block_sums, function_of
from mpifs.core.errors import tells_damage
from mpifs.core.image import encode_key, slot_bytes
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    PART_BLOCK_BYTES,
    PART_CHUNK_BYTES_MAX,
    PART_CHUNK_BYTES_MIN,
    PART_TABLE_BYTES_MAX,
)
from mpifs.core.messages import GetPart, TableWish, encode_args
from mpifs.core.types import ChecksumKind, ChunkKey, ChunkRef
from mpifs.data.local_stores import LocalStores
from mpifs.data.stores import Stores
from mpifs.transport.client import Client

log = logging.getLogger(__name__)

_ENTRY_BYTES = 300  # of a table's key and its place, beside its sums.


class BlockTables:
    """Tables of block sums by chunk key; the least recently used leave first.  Any thread.

    A key holds the generation, so a table can never be stale.  `_lock` guards all fields.
    """

    def __init__(self, bytes_max: int = PART_TABLE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._tables: OrderedDict[ChunkKey, bytes] = OrderedDict()
        self.bytes_used = 0

    def get(self, key: ChunkKey) -> bytes | None:
        """The table of a chunk, if it is here."""
        with self._lock:
            table = self._tables.get(key)
            if table is not None:
                self._tables.move_to_end(key)
            return table

    def put(self, key: ChunkKey, table: bytes) -> None:
        """Keeps a table."""
        with self._lock:
            self._drop(key)
            self._tables[key] = table
            self.bytes_used += len(table) + _ENTRY_BYTES
            while self.bytes_used > self._bytes_max:
                self._drop(next(iter(self._tables)))

    def drop(self, key: ChunkKey) -> None:
        """Forgets a table."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Forgets all tables."""
        with self._lock:
            self._tables.clear()
            self.bytes_used = 0

    def _drop(self, key: ChunkKey) -> None:
        table = self._tables.pop(key, None)
        if table is not None:
            self.bytes_used -= len(table) + _ENTRY_BYTES


class _Wanted(NamedTuple):
    """Blocks of a chunk in one of its stores."""

    store: int
    key: ChunkKey
    ref: ChunkRef
    first: int
    blocks: int

    @property
    def begin(self) -> int:
        """The first byte's place in the chunk."""
        return self.first * PART_BLOCK_BYTES

    @property
    def size(self) -> int:
        """Bytes; the chunk's last block is a short one."""
        return min(self.blocks * PART_BLOCK_BYTES, self.ref.length - self.begin)


class Parts:
    """Fetches parts of chunks; any thread may call.

    `on_damage` as in Gather.  Here it hears only of stores that have replicas beside them: the
    whole chunk's fetch, which comes next, may ask another one first.
    """

    def __init__(
        self,
        client: Client,
        stores: Stores,
        kind: ChecksumKind,
        on_damage: Callable[[ChunkKey, ChunkRef, int, str], None],
        local: LocalStores,
    ) -> None:
        self._client = client
        self._stores = stores
        self._local = local
        self._kind = kind
        self._sum = function_of(kind)
        self._on_damage = on_damage
        self.tables = BlockTables()
        self._scratch = bytearray()
        self._scratch_lock = threading.Lock()

    def forget(self) -> None:
        """Drops all tables (caches are dropped for a cold measurement)."""
        self.tables.clear()

    def read(self, key: ChunkKey, ref: ChunkRef, start: int, into: memoryview) -> bool:
        """Fills `into` with verified bytes of the chunk from `start` on.

        False if the whole chunk must be fetched; `into` is as it was then.
        Requires: 0 < len(into), start + len(into) <= ref.length.
        """
        if not PART_CHUNK_BYTES_MIN < ref.length <= PART_CHUNK_BYTES_MAX:
            return False
        first = start // PART_BLOCK_BYTES
        count = (start + len(into) - 1) // PART_BLOCK_BYTES + 1 - first
        store = self._choose(ref.stores, first)
        wanted = _Wanted(store, key, ref, first, count)
        table = self.tables.get(key) or self._table_here(store, key, ref)
        try:
            body = self._blocks_here(wanted, table)
            if body is None:
                body = self._fetch(wanted, table)
            if body is None:
                # Damaged on the way, or in the store: it shall sum the chunk.
                self.tables.drop(key)
                body = self._fetch(wanted, None, is_summed=True)
        except OSError as error:
            log.info("part of %s: %s", key, error)
            if len(ref.stores) > 1 and tells_damage(error):
                self._on_damage(key, ref, store, str(error))
            return False
        if body is None:
            log.info("part of %s did not come as it should", key)
            return False
        skip = start - wanted.begin
        into[:] = body[skip : skip + len(into)]
        return True

    def _table_here(self, store: int, key: ChunkKey, ref: ChunkRef) -> bytes | None:
        """The table, of a chunk that can be had past the worker."""
        table = None
        if has_table(ref.length, self._kind):
            stored = bytearray(table_bytes(ref.length))
            # Not every chunk has one: that it is wrong does not tell that its place is.
            if not self._local.read(store, key, ref, slot_bytes(ref.length), stored, lambda: True):
                return None  # the kernel would begin to read all of the chunk if asked for it
            table = checked_table(stored, encode_key(key), ref.length, ref.checksum)
        if table is None:
            table = self._summed_table(store, key, ref)
        if table is not None:
            self.tables.put(key, table)
        return table

    def _summed_table(self, store: int, key: ChunkKey, ref: ChunkRef) -> bytes | None:
        """One thread sums a chunk at a time; others ask the worker."""
        if not self._scratch_lock.acquire(blocking=False):
            return None
        try:
            if len(self._scratch) < ref.length:
                self._scratch = bytearray(ref.length)
            payload = memoryview(self._scratch)[: ref.length]

            def is_right() -> bool:
                return self._sum(payload) == ref.checksum

            if not self._local.read(store, key, ref, 0, payload, is_right):
                return None
            return block_sums(payload, PART_BLOCK_BYTES, self._sum)
        finally:
            self._scratch_lock.release()

    def _blocks_here(self, wanted: _Wanted, table: bytes | None) -> memoryview | None:
        """The blocks, verified, if there is a table and they can be had past the worker."""
        if table is None:
            return None
        store, key, ref, first, _ = wanted
        body = memoryview(bytearray(wanted.size))

        def are_right() -> bool:
            return self._are_right(body, table, first)

        return body if self._local.read(store, key, ref, wanted.begin, body, are_right) else None

    def _fetch(
        self, wanted: _Wanted, table: bytes | None, *, is_summed: bool = False
    ) -> memoryview | None:
        """The blocks, verified; None if they, or a table that was asked for, are wrong.

        Memory of its own and not the reader's is received into: a late reply may still come.
        """
        store, key, ref, first, count = wanted
        is_new = table is None
        wish = TableWish.ANY if is_new else TableWish.NONE
        if is_new and (is_summed or not has_table(ref.length, self._kind)):
            wish = TableWish.SUMMED
        asked = GetPart(encode_key(key), ref.length, ref.checksum, first, count, wish)
        reply = self._client.call(
            self._stores.rank_of(store), Kind.GET_PART, args=encode_args(asked)
        )
        if table is None:
            table = bytes(reply.args)
            if len(table) != -(-ref.length // PART_BLOCK_BYTES) * CHECKSUM_BYTES:
                return None
        body = reply.body
        if len(body) != wanted.size or not self._are_right(body, table, first):
            return None
        if is_new:
            self.tables.put(key, table)
        return body

    def _are_right(self, body: memoryview, table: bytes, first: int) -> bool:
        """Whether these blocks have the sums that stand in the table, from block `first` on."""
        place = first * CHECKSUM_BYTES
        for offset in range(0, len(body), PART_BLOCK_BYTES):
            block = body[offset : offset + PART_BLOCK_BYTES]
            if self._sum(block) != table[place : place + CHECKSUM_BYTES]:
                return False
            place += CHECKSUM_BYTES
        return True

    def _choose(self, stores: tuple[int, ...], turn: int) -> int:
        """One of the stores, by turns; one that answers, if there is one."""
        count = len(stores)
        for step in range(count if count > 1 else 0):
            store = stores[(turn + step) % count]
            if self._stores.is_serving(store):
                return store
        return stores[0]
