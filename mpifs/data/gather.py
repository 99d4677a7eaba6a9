"""Gather: fetches a chunk from one of its stores, verifies it, falls back to another replica.

What was damaged on its way is asked for again, GARBLED_TRIES times in all, before a store is said
to have it damaged.

Never hands out a byte that was not checked against the index's checksum.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from mpifs.core import image
from mpifs.core.checksum import function_of
from mpifs.core.errors import DamageError, MpifsError, SilentError, tells_damage, was_garbled
from mpifs.core.kinds import Kind
from mpifs.core.limits import GARBLED_TRIES, RECOVERY_S
from mpifs.core.types import ChecksumKind, ChunkKey, ChunkRef
from mpifs.data.local_stores import LocalStores
from mpifs.data.stores import Stores
from mpifs.transport.client import Client

log = logging.getLogger(__name__)

_ROOM = image.IMAGE_HEADER_BYTES


class Gather:
    """Fetches chunks; any thread may call.

    `on_damage(key, ref, store, sentence)` hears of stores that answer and have not what the index
    says; it must not wait.
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
        self._sum = function_of(kind)
        self._on_damage = on_damage

    def fetch(self, key: ChunkKey, ref: ChunkRef, into: bytearray) -> memoryview:
        """The verified payload, a view of `into` behind its first 64 bytes.

        Tries the replicas in turn, starting with any of those that answer, so that they share the
        load.  When only dead workers may still have it, waits for one to be replaced, RECOVERY_S
        at most.  After a failure a late reply may still arrive in `into`, so the next try gets a
        buffer of its own: the view returned says (`.obj`) where the bytes are.

        Raises DamageError when none of the stores has the chunk as the index knows it.
        Requires: len(into) >= 64 + ref.length.
        """
        order = self._in_turn(ref.stores)
        payload = self._fetch_here(order, key, ref, into)
        if payload is not None:
            return payload
        deadline = time.monotonic() + RECOVERY_S
        while True:
            sentences: list[str] = []
            silent: list[int] = []
            for store in order:
                try:
                    return self._fetch_surely(store, key, ref, into)
                except SilentError as error:
                    silent.append(store)
                    sentences.append(str(error))
                except OSError as error:
                    sentences.append(str(error))
                    if tells_damage(error):
                        self._on_damage(key, ref, store, str(error))
                    else:
                        log.warning("%s could not be read from store %d: %s", key, store, error)
                into = bytearray(len(into))
            if not silent or not self._stores.await_serving(silent, deadline):
                break
            order = self._in_turn(ref.stores)
        raise DamageError(
            f"chunk {key.chunk} of inode {key.inode} cannot be read: " + "; ".join(sentences)
        )

    def is_near(self, key: ChunkKey, ref: ChunkRef) -> bool:
        """Whether `fetch` will most likely need no worker, so that nobody needs to run ahead."""
        return any(self._local.has(store, key, ref) for store in ref.stores)

    def fetch_many(
        self,
        wanted: Sequence[tuple[ChunkKey, ChunkRef]],
        take: Callable[[ChunkKey, memoryview], None],
    ) -> None:
        """Gives what it can get of small chunks, verified, to `take`; each is asked of one store.

        What is missing or damaged is left to `fetch`, which knows what to do about it.
        """
        by_store: dict[int, dict[ChunkKey, ChunkRef]] = {}
        for key, ref in wanted:
            store = next((each for each in ref.stores if self._stores.is_serving(each)), None)
            if store is not None:
                by_store.setdefault(store, {})[key] = ref
        asked = []
        for store, refs in by_store.items():
            args = image.encode_keys(list(refs))
            with suppress(MpifsError):
                rank = self._stores.rank_of(store)
                asked.append((self._client.start(rank, Kind.GET_MANY, args=args), refs))
        for pending, refs in asked:
            with suppress(MpifsError):
                reply = pending.wait()
                for header, data in image.split_batch(reply.body, reply.header.items):
                    known = refs.get(header.key)
                    payload = data[_ROOM:]
                    if known and (known.length, known.checksum) == (
                        len(payload),
                        self._sum(payload),
                    ):
                        take(header.key, payload)

    def _fetch_here(
        self, order: list[int], key: ChunkKey, ref: ChunkRef, into: bytearray
    ) -> memoryview | None:
        """The payload, verified, if it can be had past a worker.

        A store that seems to have wrong bytes goes to the head of `order`: it is asked first, so
        that damage is found.
        """
        payload = memoryview(into)[_ROOM : _ROOM + ref.length]

        def is_right() -> bool:
            return self._sum(payload) == ref.checksum

        for place, store in enumerate(order):
            was_right = self._local.read(store, key, ref, 0, payload, is_right)
            if was_right:
                return payload
            if was_right is False:
                order.insert(0, order.pop(place))
                break
        return None

    def _in_turn(self, stores: tuple[int, ...]) -> list[int]:
        """The stores in the order in which they are asked."""
        if len(stores) < 2:
            return list(stores)
        first = random.randrange(len(stores))
        order = stores[first:] + stores[:first]
        return sorted(order, key=lambda store: not self._stores.is_serving(store))

    def _fetch_surely(
        self, store: int, key: ChunkKey, ref: ChunkRef, into: bytearray
    ) -> memoryview:
        """Fetches from one store, again if what came may have been damaged on the way."""
        for left in reversed(range(GARBLED_TRIES)):
            try:
                return self._fetch_from(store, key, ref, into)
            except OSError as error:
                if not left or not (was_garbled(error) or isinstance(error, DamageError)):
                    raise
                log.info("%s is asked for again: %s", key, error)
                into = bytearray(len(into))
        raise AssertionError

    def _fetch_from(self, store: int, key: ChunkKey, ref: ChunkRef, into: bytearray) -> memoryview:
        size = _ROOM + ref.length
        reply = self._client.call(
            self._stores.rank_of(store),
            Kind.GET,
            args=image.encode_key(key),
            into=memoryview(into)[:size],
        )
        body = reply.body
        if len(body) != size:
            raise DamageError(f"store {store} sent {len(body)} bytes instead of {size}")
        header = image.decode_header(body)
        if header.key != key or header.length != ref.length:
            raise DamageError(f"store {store} holds another chunk in its place ({header.key})")
        payload = body[_ROOM:]
        if header.checksum != ref.checksum or self._sum(payload) != ref.checksum:
            raise DamageError(f"store {store} holds other bytes: checksum is wrong")
        if body.obj is into:
            return payload
        memoryview(into)[:size] = body
        return memoryview(into)[_ROOM:size]
