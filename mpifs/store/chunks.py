"""A worker's chunk store: chunk images in three LMDB environments, and their counters.

Payloads up to SMALL_VALUE_BYTES_MAX live in `small/`, others in `large/` with their images padded
to a power of two plus 64 bytes: many small holes in the free list would make each large put ten
times slower (0.32 → 5.9 ms).  Chunks of inode 0, which no file has, are pieces of the index's
copies; they live in `copy/`, made by the first of them, and count in no figure: so they can be
replaced and dropped as a whole without a hole in the others.  Databases of each: `chunks` (key →
image), `headers` (key → the image's header, because py-lmdb reads all pages of a value that a
cursor stands on, and a listing must not read the store), `meta` (the counters).  Layout in
doc/format.md, section 3.

Invariants: a key is in `chunks` exactly when it is in `headers` of the same environment, and in
one environment only; the counters tell the chunks and payload bytes of `headers`.  A stored chunk
never changes: the same image again is fine, another one under its key is refused.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import NamedTuple, cast

from mpifs import faultpoint
from mpifs.core.block_table import stored_bytes
from mpifs.core.errors import (
    ChunkMissingError,
    DamageError,
    FormatError,
    FullError,
    MpifsError,
    PosixError,
)
from mpifs.core.image import (
    COPY_INODE,
    IMAGE_HEADER_BYTES,
    ImageHeader,
    decode_header,
    decode_key,
    encode_header_into,
    encode_key,
    home_name,
)
from mpifs.core.limits import LEASE_CLOSE_S
from mpifs.core.messages import StoreStats
from mpifs.core.superblock import Role, Superblock
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.kv import ReadTransaction
from mpifs.store.folder import (
    check_identity,
    disk_of,
    lock_folder,
    make_folder,
    put_in_place,
    read_superblock,
    remove_folder,
    write_superblock,
)
from mpifs.store.room import StoreRoom
from mpifs.store.side import GroupChange, Side
from mpifs.store.value import is_whole, value_of

_log = logging.getLogger(__name__)

DAMAGED_KIND = cast(ChecksumKind, 0)
"""Checksum kind in a listed header whose stored header cannot be read."""


class Image(NamedTuple):
    """A chunk to store, whose bytes have been compared with its checksum.  `data` is header and
    payload; or the whole value of `stored_bytes`, with padding and table: it is not copied then."""

    header: ImageHeader
    data: memoryview


@dataclass(frozen=True, slots=True)
class Change:
    """What one request asks for: chunks to store, then keys to delete."""

    puts: Sequence[Image] = ()
    deletes: Sequence[ChunkKey] = ()


class Lease:
    """A chunk image in LMDB's own pages, valid until `close` (any thread, may be repeated)."""

    __slots__ = ("_transaction", "header", "image")

    def __init__(self, header: ImageHeader, image: memoryview, transaction: ReadTransaction):
        self.header = header
        self.image = image
        self._transaction = transaction

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the pages back; `image` must not be read any more."""
        self._transaction.close()


class ChunkStore:
    """An open store.  Reading is for all threads; `apply`, `put_many`, `delete_many` and changing a
    side for one.

    A damaged `copy/` keeps nobody from the chunks: it is left closed, and `mpifs fsck` mends it.
    """

    def __init__(
        self,
        folder: str,
        store: int,
        lock: int,
        small: Side,
        large: Side,
        *,
        relaxed: bool,
        capacity_bytes: int = 0,
    ) -> None:
        self.folder = folder
        self.store = store
        self._disk = disk_of(folder)
        self._lock = lock
        self._relaxed = relaxed
        self._small = small
        self._large = large
        self._room = StoreRoom(folder, (small, large), capacity_bytes)
        self._copy = self._open_copy()

    @classmethod
    def open(
        cls,
        folder: str,
        *,
        volume_uuid: bytes,
        store_uuid: bytes,
        store: int,
        chunk_size: int,
        checksum: ChecksumKind,
        create: bool,
        relaxed: bool = False,
        capacity_bytes: int = 0,
    ) -> ChunkStore:
        """Opens the store in `folder`; with `create` makes it if there is none.  It takes no more
        than `capacity_bytes` of its disk (0: all of it) beside the copies of the index.

        Raises FormatError (missing, damaged, or not the store that is meant), InUseError,
        FullError.
        """
        if create:
            make_folder(folder)
        elif not os.path.isdir(folder):
            raise FormatError(f"{folder} is missing; is its disk mounted?")
        block = Superblock(
            Role.STORE, volume_uuid, store_uuid, store, chunk_size, 1, checksum, int(time.time())
        )
        with ExitStack() as undo:
            lock = lock_folder(folder)
            undo.callback(os.close, lock)
            found = read_superblock(folder)
            if found is not None:
                check_identity(
                    folder,
                    found,
                    volume_uuid=volume_uuid,
                    store_uuid=store_uuid,
                    store=store,
                    chunk_size=chunk_size,
                    checksum=checksum,
                )
            elif not create:
                raise FormatError(f"{folder} has no superblock; is it the folder of a store?")
            sides = []
            for name in ("small", "large"):
                side = Side(os.path.join(folder, name), create=found is None, relaxed=relaxed)
                undo.callback(side.close)
                sides.append(side)
            if found is None:
                if any(side.counters.chunks for side in sides):
                    raise FormatError(f"{folder} has chunks but no superblock; run mpifs fsck")
                faultpoint.reach("mount.making")
                write_superblock(folder, block)
            opened = cls(
                folder, store, lock, *sides, relaxed=relaxed, capacity_bytes=capacity_bytes
            )
            undo.pop_all()
            return opened

    @property
    def sides(self) -> list[Side]:
        """The environments there are, the likelier ones first; `copy/` comes into being with its
        first chunk."""
        copy = self._copy
        return [self._large, self._small] if copy is None else [self._large, self._small, copy]

    def home(self, inode: int, length: int) -> Side:
        """The environment that a chunk with `length` payload bytes belongs to.

        Makes `copy/` if it is not there: for the changing thread.  Raises FormatError, FullError.
        """
        name = home_name(inode, length)
        if name != "copy":
            return self._small if name == "small" else self._large
        if self._copy is None:
            self._copy = self._make_copy()
        return self._copy

    def _open_copy(self) -> Side | None:
        path = os.path.join(self.folder, "copy")
        if not os.path.isdir(path):
            return None
        try:
            return Side(path, create=False, relaxed=self._relaxed)
        except MpifsError as error:
            _log.warning("index copies of store %d are not in use: %s", self.store, error)
            return None

    def _make_copy(self) -> Side:
        """Made beside and renamed, so that a half made one is never there."""
        path = os.path.join(self.folder, "copy")
        if os.path.isdir(path):
            raise FormatError(f"{path} is damaged; run mpifs fsck")
        fresh = path + ".new"
        remove_folder(fresh)
        Side(fresh, create=True, relaxed=False).close()
        put_in_place(fresh, path)
        return Side(path, create=False, relaxed=self._relaxed)

    def put_many(self, images: Sequence[Image]) -> None:
        """Stores chunks durably; may be repeated.

        Raises FullError, DamageError, or EEXIST if another intact chunk has the key; then none
        of an environment's chunks is stored (the other environment's may be).
        """
        self.apply([Change(puts=images)])

    def delete_many(self, keys: Sequence[ChunkKey]) -> None:
        """Removes chunks durably; missing ones are no error.

        On a full disk the transactions are made smaller, because each needs pages first.
        """
        try:
            self.apply([Change(deletes=keys)])
        except FullError:
            if len(keys) < 2:
                raise
            middle = len(keys) // 2
            self.delete_many(keys[:middle])
            self.delete_many(keys[middle:])

    def apply(self, changes: Sequence[Change]) -> None:
        """Makes several changes in one transaction per environment; durable on return.

        Failures as `put_many`; the caller repeats the changes singly to tell whose it is.
        """
        self._make_room(changes)
        with ExitStack() as stack:
            group = GroupChange(stack, self.sides)
            for change in changes:
                for image in change.puts:
                    self._put(image, group)
                for key in change.deletes:
                    group.delete(encode_key(key))
            faultpoint.reach("store.filled")

    def _make_room(self, changes: Sequence[Change]) -> None:
        """Refuses what does not fit before LMDB meets the full disk; deletes always pass.

        What replaces an older generation of its chunk, or a copy of the index, may have more room.
        """
        sizes: dict[Side, list[int]] = {self._small: [], self._large: []}
        for change in changes:
            for image in change.puts:
                length = image.header.length
                home = self.home(image.header.inode, length)
                sizes.setdefault(home, []).append(stored_bytes(length))
        needed_bytes = {side: sum(wanted) for side, wanted in sizes.items() if wanted}
        is_tight = bool(needed_bytes) and not self._room.has(needed_bytes, is_replacing=False)
        if is_tight and not (
            self._room.has(needed_bytes, is_replacing=True)
            and all(self._is_replacement(image) for change in changes for image in change.puts)
        ):
            raise FullError(f"store {self.store} ({self.folder}) is full")
        has_deletes = any(change.deletes for change in changes)
        for side, wanted in sizes.items():
            if not wanted and not has_deletes:
                continue
            side.make_room(sum(wanted), len(wanted), is_replacing=is_tight)

    def _is_replacement(self, image: Image) -> bool:
        key = image.header.key
        return key.inode == COPY_INODE or self._small.has_older(key) or self._large.has_older(key)

    def _put(self, image: Image, group: GroupChange) -> None:
        header = image.header
        key = encode_key(header.key)
        data = value_of(header, image.data)
        for change in group.holders(key):
            old = change.image(key)
            if old is not None and is_whole(old) and decode_header(old).key == header.key:
                if old[:IMAGE_HEADER_BYTES] == data[:IMAGE_HEADER_BYTES]:
                    return
                raise PosixError(errno.EEXIST, f"store {self.store} holds another {header.key}")
            change.delete(key)
        group.of(self.home(header.inode, header.length)).put(key, data, header.length)

    def get(self, key: ChunkKey) -> Lease:
        """The image of a chunk; close the lease soon.  The payload is not verified here.

        Raises ChunkMissingError; DamageError if the header is wrong.
        """
        stored = encode_key(key)
        for side in self.sides:
            transaction = side.environment.read()
            try:
                value = side.cold.get(transaction, stored)
                if value is not None:
                    header = decode_header(value)
                    end = IMAGE_HEADER_BYTES + header.length
                    if header.key != key or end > len(value):
                        raise DamageError("chunk image header is another one's")
                    return Lease(header, value[:end], transaction)
            except MpifsError as error:
                transaction.close()
                raise DamageError(f"store {self.store}, {key}: {error}") from error
            transaction.close()
        raise ChunkMissingError(f"store {self.store} has no {key}")

    def headers(self, after: bytes, count: int) -> list[bytes]:
        """Image headers of up to `count` chunks with keys greater than `after`, in key order.

        A header that cannot be read is given as one with the chunk's key, no length and checksum
        kind DAMAGED_KIND.
        """
        start = after + b"\0" if after else b""
        with ExitStack() as stack:
            open_reads = [stack.enter_context(side.environment.read()) for side in self.sides]
            rows = merge(*(_rows(transaction, start) for transaction in open_reads))
            return [_listed(key, header) for key, header in islice(rows, count)]

    def stats(self) -> StoreStats:
        """Figures of the store; costs the same whatever it holds."""
        small, large = self._small.counters, self._large.counters
        return StoreStats(
            self.store,
            small.chunks + large.chunks,
            small.payload_bytes + large.payload_bytes,
            self.free_bytes(),
            self._disk,
        )

    def free_bytes(self) -> int:
        """How many bytes of large chunks the store can still take."""
        return self._room.free_bytes()

    def close(self) -> None:
        """Closes the environments and gives the folder back.

        Leases that stay open for LEASE_CLOSE_S keep their pages mapped until the process ends.
        """
        deadline = time.monotonic() + LEASE_CLOSE_S
        for side in self.sides:
            while side.environment.readers() and time.monotonic() < deadline:
                time.sleep(0.005)
            side.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _rows(transaction: ReadTransaction, start: bytes) -> Iterator[tuple[bytes, bytes]]:
    for key, header in transaction.scan("headers", start):
        yield bytes(key), bytes(header)


def _listed(key: bytes, header: bytes) -> bytes:
    """The header as it is stored, or the sign that it is damaged."""
    name = decode_key(key)
    try:
        if decode_header(header).key == name and len(header) == IMAGE_HEADER_BYTES:
            return header
    except DamageError:
        pass
    sign = bytearray(IMAGE_HEADER_BYTES)
    encode_header_into(sign, 0, DAMAGED_KIND, name, 0, bytes(16))
    return bytes(sign)
