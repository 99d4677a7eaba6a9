"""Writes a copy of the index to stores, as it comes out of LMDB, and removes older ones.

Order, which makes an interrupted copy harmless: pieces → (durable on a store) → manifest → older
generations on that store deleted, their manifests first.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mpifs import faultpoint
from mpifs.core import image
from mpifs.core.checksum import Buffer, function_of
from mpifs.core.errors import FullError, MpifsError
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    BATCH_COUNT_MAX,
    INDEX_COPIES,
    INDEX_COPY_PIECE_BYTES,
    INDEX_COPY_PIECES_IN_FLIGHT,
    INDEX_COPY_PIECES_MAX,
    REQUEST_TIMEOUT_S,
)
from mpifs.core.superblock import Superblock
from mpifs.core.types import ChunkKey
from mpifs.repair.copies import (
    COPY_INODE,
    MANIFEST_PIECE,
    CopyStores,
    Manifest,
    encode_manifest,
)
from mpifs.transport.client import Pending

log = logging.getLogger(__name__)
_ROOM = image.IMAGE_HEADER_BYTES
_REST_S = 0.004

CopyTo = Callable[[Callable[[Buffer], None]], int]
"""kv.Environment.copy_to: passes the bytes of one committed state to the function it is given."""


class CopyStoppedError(MpifsError):
    """The copy was given up before its end, because that was asked for or takes too long."""


@dataclass(slots=True)
class Pace:
    """How fast a copy may be written, and until when; `stop` may be set by any thread."""

    rate_bytes: float = float("inf")
    deadline_s: float = float("inf")
    stop: threading.Event = field(default_factory=threading.Event)
    _free_s: float = 0.0

    def left_s(self) -> float:
        """Seconds that a request may take.  Raises CopyStoppedError."""
        left_s = self.deadline_s - time.monotonic()
        if self.stop.is_set():
            raise CopyStoppedError("the copy of the index was stopped")
        if left_s <= 0:
            raise CopyStoppedError("the copy of the index takes too long")
        return min(REQUEST_TIMEOUT_S, left_s)

    def rest(self) -> None:
        """A break after a few milliseconds of work, if the copy is not in a hurry.

        Raises CopyStoppedError."""
        if self.rate_bytes != float("inf"):
            self.stop.wait(_REST_S)
        self.left_s()

    def step(self, size: int) -> None:
        """Waits until `size` more bytes may be sent.  Raises CopyStoppedError."""
        wait_s = self._free_s - time.monotonic()
        if wait_s > 0:
            self.stop.wait(wait_s)
        self.left_s()
        self._free_s = max(self._free_s, time.monotonic()) + size / self.rate_bytes


class CopyWriter:
    """Writes copies to `wanted` of the stores (fewer if there are fewer), on different disks if
    there are, always the same ones as long as they answer.  One thread at a time."""

    def __init__(self, stores: CopyStores, wanted: int = INDEX_COPIES) -> None:
        self._stores = stores
        self._wanted = wanted

    def write(
        self,
        copy_to: CopyTo,
        geometry: Superblock,
        generation: int,
        *,
        pace: Pace | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> Manifest:
        """Writes a copy; when it returns, it is durable and older ones are gone.

        A store that fails is replaced by another one.  Raises MpifsError when no store could take
        the copy whole (CopyStoppedError: it was stopped), and what `copy_to` raises; then the
        copies that were there still are.

        Requires: `generation` was taken from the index before, and for this alone.
        """
        pace = pace or Pace()
        candidates = order_of_choice(self._stores.live(), self._stores.disk_of)
        if not candidates:
            raise FullError("no worker is there to take a copy of the index")
        targets = candidates[: self._wanted]
        stream = _PieceStream(self._stores, targets, generation, pace)
        date_s = int(now_s())
        try:
            copy_to(stream.write)
            stream.end()
            manifest = Manifest(generation, date_s, stream.size, (), geometry, tuple(stream.sums))
            holders = list(stream.targets)
            for store in candidates[self._wanted :]:
                if len(holders) >= min(self._wanted, len(candidates)):
                    break
                if self._replicate(holders, store, manifest, pace):
                    holders.append(store)
            manifest = replace(manifest, holders=tuple(holders))
            done = self._finish(manifest, pace)
        except MpifsError as error:
            stream.drain()
            if not isinstance(error, CopyStoppedError):
                self._forget(candidates, generation)
            raise
        finally:
            stream.drain()
        self._delete_older(manifest, done)
        return manifest

    def _replicate(
        self, holders: Sequence[int], store: int, manifest: Manifest, pace: Pace
    ) -> bool:
        """Brings all pieces from a store that has them to one that steps in for a failed one."""
        stream = _PieceStream(self._stores, [store], manifest.generation, pace)
        try:
            for piece in range(1, manifest.pieces + 1):
                key = ChunkKey(COPY_INODE, piece, manifest.generation)
                stream.write(self._stores.payload(holders[0], key, pace.left_s()))
            stream.end()
        except CopyStoppedError:
            raise
        except MpifsError as error:
            log.warning("the copy of the index cannot go to worker %d: %s", store, error)
            return False
        finally:
            stream.drain()
        return tuple(stream.sums) == manifest.sums

    def _finish(self, manifest: Manifest, pace: Pace) -> list[int]:
        """Stores the manifest; the stores whose copy is complete now.  Raises MpifsError."""
        payload = encode_manifest(manifest)
        body = bytearray(_ROOM + len(payload))
        body[_ROOM:] = payload
        key = ChunkKey(COPY_INODE, MANIFEST_PIECE, manifest.generation)
        kind = self._stores.kind
        image.encode_header_into(body, 0, kind, key, len(payload), function_of(kind)(payload))
        done = []
        failure: MpifsError | None = None
        for store in manifest.holders:
            faultpoint.reach("copy.manifest")
            faultpoint.reach("repair.commit")
            try:
                self._stores.client.call(
                    self._stores.rank_of(store),
                    Kind.PUT,
                    body=body,
                    items=1,
                    timeout_s=pace.left_s(),
                )
                done.append(store)
            except MpifsError as error:
                log.warning("the copy of the index on worker %d is unfinished: %s", store, error)
                failure = error
        if failure is not None and not done:
            raise failure
        return done

    def _delete_older(self, manifest: Manifest, done: list[int]) -> None:
        """A store that failed keeps what it has until the next copy."""
        faultpoint.reach("copy.older")
        spare = set(self._stores.live()) if len(done) == len(manifest.holders) else set()
        for store in spare.union(done):
            with contextlib.suppress(MpifsError):
                delete_copies(self._stores, store, lambda g: g < manifest.generation)

    def _forget(self, targets: Sequence[int], generation: int) -> None:
        """Gives back the room of a copy that has failed."""
        for store in targets:
            with contextlib.suppress(MpifsError):
                delete_copies(self._stores, store, lambda g: g == generation)


class _PieceStream:
    """Cuts what is written into pieces and sends each to all `targets`; those that fail leave it.

    At most INDEX_COPY_PIECES_IN_FLIGHT pieces are in memory.  Raises MpifsError from any method
    once no target is left.
    """

    def __init__(
        self, stores: CopyStores, targets: Sequence[int], generation: int, pace: Pace
    ) -> None:
        self.targets = list(targets)
        self.sums: list[bytes] = []
        self.size = 0
        self._stores = stores
        self._sum = function_of(stores.kind)
        self._generation = generation
        self._pace = pace
        self._under_way: deque[list[tuple[int, Pending]]] = deque()
        self._buffer = bytearray(_ROOM + INDEX_COPY_PIECE_BYTES)
        self._filled = 0

    def write(self, data: Buffer) -> None:
        """Takes the next bytes of the copy."""
        self._pace.left_s()
        view = memoryview(data)
        while view:
            part = view[: INDEX_COPY_PIECE_BYTES - self._filled]
            at = _ROOM + self._filled
            self._buffer[at : at + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == INDEX_COPY_PIECE_BYTES:
                self._send()

    def end(self) -> None:
        """Sends the rest and waits until every piece is durable on all targets that are left."""
        if self._filled:
            self._send()
        while self._under_way:
            self._reap()

    def drain(self) -> None:
        """Waits until nothing is under way any more, whatever becomes of it."""
        for store, pending in itertools.chain.from_iterable(self._under_way):
            try:
                pending.wait()
            except MpifsError as error:
                log.debug("a piece for worker %d: %s", store, error)
        self._under_way.clear()

    def _send(self) -> None:
        size = self._filled
        self._pace.step(size)
        body = memoryview(self._buffer)[: _ROOM + size]
        # A new buffer each time: MPI may read the old one even after its request has failed.
        self._buffer = bytearray(_ROOM + INDEX_COPY_PIECE_BYTES)
        self._filled = 0
        checksum = self._sum(body[_ROOM:])
        self.sums.append(checksum)
        self.size += size
        if len(self.sums) > INDEX_COPY_PIECES_MAX:
            raise FullError("the index is too large to be copied to the workers")
        faultpoint.reach("copy.piece")
        key = ChunkKey(COPY_INODE, len(self.sums), self._generation)
        image.encode_header_into(body, 0, self._stores.kind, key, size, checksum)
        while len(self._under_way) >= INDEX_COPY_PIECES_IN_FLIGHT - 1:
            self._reap()
        started: list[tuple[int, Pending]] = []
        self._under_way.append(started)
        for store in list(self.targets):
            try:
                pending = self._stores.client.start(
                    self._stores.rank_of(store),
                    Kind.PUT,
                    body=body,
                    items=1,
                    timeout_s=self._pace.left_s(),
                )
            except CopyStoppedError:
                raise
            except MpifsError as error:
                self._drop(store, error)
            else:
                started.append((store, pending))

    def _reap(self) -> None:
        group = self._under_way[0]
        while group:
            store, pending = group.pop()
            try:
                pending.wait()
            except MpifsError as error:
                self._drop(store, error)
        self._under_way.popleft()

    def _drop(self, store: int, error: MpifsError) -> None:
        if store in self.targets:
            log.warning("worker %d cannot take the copy of the index: %s", store, error)
            self.targets.remove(store)
        if not self.targets:
            raise error


def order_of_choice(live: Sequence[int], disk_of: Mapping[int, str]) -> list[int]:
    """The stores in the order in which they are to hold copies: the first one of each disk goes
    before the second one of any.  A store of which no disk is known has one of its own."""
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for store in live:
        disk = disk_of.get(store, f"store {store}")
        (second if disk in seen else first).append(store)
        seen.add(disk)
    return first + second


def delete_copies(stores: CopyStores, store: int, is_old: Callable[[int], bool]) -> int:
    """Deletes the pieces of copies with such generations from a store, manifests first; their
    number.  Rows that the store calls damaged stay: their key may be wrong.  Raises MpifsError."""
    keys = [
        header.key
        for header in stores.pieces(store)
        if header.checksum_kind and is_old(header.generation)
    ]
    delete_pieces(stores, store, keys)
    return len(keys)


def delete_pieces(stores: CopyStores, store: int, keys: Sequence[ChunkKey]) -> None:
    """Deletes pieces from a store, in the order given.  Raises MpifsError."""
    for first in range(0, len(keys), BATCH_COUNT_MAX):
        part = list(keys[first : first + BATCH_COUNT_MAX])
        faultpoint.reach("repair.commit")
        stores.client.call(
            stores.rank_of(store), Kind.DELETE, args=image.encode_keys(part), items=len(part)
        )
