"""A volume at rest, as planting sees it: what its index said before anything was done to it.

Everything is chosen by one random generator out of sorted lists, so that a seed and a volume name
the damage.  No two faults take the same place: each must be found by itself.
"""

from __future__ import annotations

import fcntl
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from mpifs.core import records
from mpifs.core.checksum import function_of
from mpifs.core.image import IMAGE_HEADER_BYTES, encode_header_into, encode_key
from mpifs.core.limits import SMALL_VALUE_BYTES_MAX
from mpifs.core.records import Counters, InodeRecord
from mpifs.core.superblock import SUPERBLOCK_NAME, decode
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.kv import Environment, WriteTransaction

ROOT = 1
STORE_DATABASES = ("chunks", "headers", "meta")
_T = TypeVar("_T")


class NothingLeftError(Exception):
    """The volume has no place left for a fault of this kind."""


class Copy(NamedTuple):
    """One stored copy of a chunk."""

    ino: int
    chunk: int
    ref: ChunkRef
    worker: int

    @property
    def key(self) -> ChunkKey:
        """Its name."""
        return ChunkKey(self.ino, self.chunk, self.ref.generation)

    @property
    def stored_key(self) -> bytes:
        """Its key in the store."""
        return encode_key(self.key)

    @property
    def side(self) -> str:
        """The environment of the store that holds it."""
        return side_of(self.ref.length)


class RestingVolume:
    """The volume in `folder`; nobody may serve it.  What its index says is read once, before."""

    def __init__(self, folder: str, seed: int = 0) -> None:
        self.folder = os.path.abspath(folder)
        self.random = random.Random(seed)
        self.spoiled: set[tuple[int, int, int]] = set()
        """(inode, chunk, worker) of copies whose payload is not there any more."""
        self.shaky: set[tuple[int, int, int]] = set()
        """(inode, chunk, worker) of copies that may be brought back or not: of a cut file LMDB's
        old pages may hold them still."""
        self.holes: set[tuple[int, int]] = set()
        """(inode, chunk) without a ref that may have had one: zeros are right, and so is EIO."""
        self.unsure: set[tuple[int, int]] = set()
        """(inode, chunk) that a verify run cannot reach: it may call them lost or not."""
        self.reserved: list[int] = []
        """Stores that something will be done to as a whole: nothing else is, to what they hold."""
        self.bad_records: set[int] = set()
        """Inodes whose record was damaged or dropped."""
        self.has_bad_counters = False
        """Whether the record of the totals was damaged."""
        self.stores_taken = 0
        """How many of the reserved ones have been used."""
        self._taken_inodes: set[int] = set()
        self._taken_chunks: set[tuple[int, int]] = set()
        self._check_rest()
        with open(os.path.join(self.index_folder, SUPERBLOCK_NAME), "rb") as file:
            self.geometry = decode(file.read(), "superblock")
        with self.index() as environment, environment.read() as rows:
            self.inodes = {
                records.decode_inode_key("inodes", key): records.decode_inode(
                    key, value, InodeRecord
                )
                for key, value in rows.scan(records.INODES)
            }
            self.dentries = {
                records.decode_name_key("dentries", key): records.decode_dentry(key, value)
                for key, value in rows.scan(records.DENTRIES)
            }
            self.refs = {
                records.decode_ref_key(key): records.decode_ref(key, value)
                for key, value in rows.scan(records.REFS)
            }
            self.xattrs = [
                records.decode_name_key("xattrs", key) for key in rows.scan_keys(records.XATTRS)
            ]
            meta = {bytes(key): bytes(value) for key, value in rows.scan(records.META)}
        self.counters = records.decode_counters(meta[records.KEY_COUNTERS])
        self.stores = records.decode_stores(meta[records.KEY_STORES])
        self.inode_limit = records.decode_number(
            records.KEY_INODE_LIMIT, meta[records.KEY_INODE_LIMIT]
        )
        self.generation_limit = records.decode_number(
            records.KEY_GENERATION_LIMIT, meta[records.KEY_GENERATION_LIMIT]
        )

    def _check_rest(self) -> None:
        with open(os.path.join(self.index_folder, "lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is in use.

    # Places in the file system.

    @property
    def index_folder(self) -> str:
        """Where the index is."""
        return os.path.join(self.folder, "index")

    @property
    def workers(self) -> list[int]:
        """Ids of the stores, in the order of placement."""
        return [entry.store for entry in self.stores]

    @property
    def free_workers(self) -> list[int]:
        """Stores that nothing is done to as a whole."""
        return [worker for worker in self.workers if worker not in self.reserved]

    def store_folder(self, worker: int) -> str:
        """Where a store is."""
        return os.path.join(self.folder, f"worker-{worker}")

    @contextmanager
    def index(self) -> Iterator[Environment]:
        """The index's environment, open."""
        environment = Environment(self.index_folder, records.DATABASES, preallocate=False)
        try:
            yield environment
        finally:
            environment.close()

    @contextmanager
    def edit(self) -> Iterator[WriteTransaction]:
        """A change of index rows, committed at the end."""
        with self.index() as environment, environment.write() as transaction:
            yield transaction

    def put_inode(self, rows: WriteTransaction, inode: InodeRecord) -> None:
        """Writes an inode's record, unless something was done to that itself."""
        self.inodes[inode.ino] = inode
        if inode.ino not in self.bad_records:
            rows.put(records.INODES, records.inode_key(inode.ino), records.encode_inode(inode))

    def put_counters(self, rows: WriteTransaction, counters: Counters) -> None:
        """Writes the totals, unless something was done to their record itself."""
        self.counters = counters
        if not self.has_bad_counters:
            rows.put(records.META, records.KEY_COUNTERS, records.encode_counters(counters))

    @contextmanager
    def side(self, worker: int, name: str) -> Iterator[Environment]:
        """An environment of a store, open: small, large or copy."""
        path = os.path.join(self.store_folder(worker), name)
        environment = Environment(path, STORE_DATABASES, preallocate=False)
        try:
            yield environment
        finally:
            environment.close()

    # What is where.

    def paths(self, ino: int) -> tuple[bytes, ...]:
        """All names of an inode, without a slash at the beginning; of the root: the empty one."""
        if ino == ROOT:
            return (b"",)
        return tuple(
            b"/".join(part for part in (path, name) if part)
            for (parent, name), (child, _) in sorted(self.dentries.items())
            if child == ino
            for path in self.paths(parent)
        )

    def below(self, ino: int) -> list[int]:
        """An inode and all that is reached through it."""
        found = [ino]
        for parent in found:
            found += [child for (above, _), (child, _) in self.dentries.items() if above == parent]
        return sorted(set(found))

    def parents(self, ino: int) -> list[int]:
        """The directories that name an inode."""
        return sorted({parent for (parent, _), (child, _) in self.dentries.items() if child == ino})

    def copies(self) -> list[Copy]:
        """All stored copies that refs name."""
        return [
            Copy(ino, chunk, ref, worker)
            for (ino, chunk), ref in sorted(self.refs.items())
            for worker in ref.stores
        ]

    def lost(self, without: frozenset[int] = frozenset()) -> set[tuple[int, int]]:
        """(inode, chunk) of which no good copy is left, but those of the inodes `without`."""
        return {
            (ino, chunk)
            for (ino, chunk), ref in self.refs.items()
            if ino not in without
            and (ino, chunk) not in self.holes
            and all((ino, chunk, worker) in self.spoiled for worker in ref.stores)
        }

    @property
    def doubtful(self) -> set[tuple[int, int]]:
        """(inode, chunk) that a repair may bring back or not: nobody can know."""
        gone = self.spoiled | self.shaky
        return self.holes | {
            (ino, chunk)
            for (ino, chunk), ref in self.refs.items()
            if all((ino, chunk, worker) in gone for worker in ref.stores)
            and any((ino, chunk, worker) in self.shaky for worker in ref.stores)
        }

    def spoil(self, copy: Copy) -> None:
        """Notes that the payload of a copy is not there any more."""
        self.spoiled.add((copy.ino, copy.chunk, copy.worker))

    def note_holes(self, inode: InodeRecord) -> None:
        """Notes that holes of a file may give EIO."""
        for chunk in range(-(-inode.stable_size // inode.chunk_size)):
            if (inode.ino, chunk) not in self.refs:
                self.holes.add((inode.ino, chunk))

    def payload(self, length: int) -> bytes:
        """Bytes that are nobody's."""
        return self.random.randbytes(length)

    def image(self, key: ChunkKey, payload: bytes) -> bytes:
        """What a store would keep of a chunk, padded as `large/` wants it."""
        kind = self.geometry.checksum
        length = len(payload)
        size = length if side_of(length) == "small" else 1 << (length - 1).bit_length()
        value = bytearray(IMAGE_HEADER_BYTES + size)
        encode_header_into(value, 0, kind, key, length, function_of(kind)(payload))
        value[IMAGE_HEADER_BYTES : IMAGE_HEADER_BYTES + length] = payload
        return bytes(value)

    # Choosing.

    def choose(self, candidates: list[_T]) -> _T:
        """One of them.  Raises NothingLeftError."""
        if not candidates:
            raise NothingLeftError
        return self.random.choice(candidates)

    def free_copies(self, is_wanted: Callable[[Copy], bool] = lambda copy: True) -> list[Copy]:
        """Copies of chunks that nothing was done to, and their files neither."""
        return [
            copy
            for copy in self.copies()
            if self.is_free(copy) and copy.worker not in self.reserved and is_wanted(copy)
        ]

    def is_free(self, copy: Copy) -> bool:
        """Whether nothing was done to the chunk, nor to its file."""
        place = (copy.ino, copy.chunk)
        return copy.ino not in self._taken_inodes and place not in self._taken_chunks

    def reserve_stores(self, count: int) -> None:
        """Keeps stores that hold chunks free for faults of whole stores."""
        holders = sorted({copy.worker for copy in self.copies()} - set(self.reserved))
        if len(holders) < count:
            raise NothingLeftError
        self.reserved += self.random.sample(holders, count)

    def take_copy(self, is_wanted: Callable[[Copy], bool] = lambda copy: True) -> Copy:
        """A copy of a chunk that is from now on taken.  Raises NothingLeftError."""
        copy = self.choose(self.free_copies(is_wanted))
        self.take_chunk(copy)
        return copy

    def take_chunk(self, copy: Copy) -> None:
        """Nothing else will be done to this chunk, and nothing to its file as a whole."""
        self._taken_chunks.add((copy.ino, copy.chunk))

    def take_inode(self, is_wanted: Callable[[InodeRecord], bool]) -> InodeRecord:
        """An inode (not the root) that is from now on taken, with everything below it, and its
        parents as far as they are concerned themselves.  Raises NothingLeftError.
        """
        touched = self._taken_inodes | {ino for ino, _ in self._taken_chunks}
        candidates = [
            inode
            for ino, inode in sorted(self.inodes.items())
            if ino != ROOT and is_wanted(inode) and touched.isdisjoint(self.below(ino))
        ]
        inode = self.choose(candidates)
        self.take(inode.ino)
        return inode

    def taken(self) -> tuple[set[int], set[tuple[int, int]]]:
        """What nothing else will be done to, for `restore`."""
        return set(self._taken_inodes), set(self._taken_chunks)

    def restore(self, taken: tuple[set[int], set[tuple[int, int]]]) -> None:
        """Makes places free again that were taken and not used."""
        self._taken_inodes, self._taken_chunks = taken

    def take(self, ino: int) -> None:
        """Nothing else will be done to this inode and what is below it, nor to its parents."""
        self._taken_inodes.update(self.below(ino), self.parents(ino))


def side_of(length: int) -> str:
    """The environment for chunks with a payload of this length."""
    return "small" if length <= SMALL_VALUE_BYTES_MAX else "large"


def is_file(inode: InodeRecord) -> bool:
    """A regular file with data."""
    return stat.S_ISREG(inode.mode) and inode.bytes_stored > 0


def is_directory(inode: InodeRecord) -> bool:
    """A directory."""
    return stat.S_ISDIR(inode.mode)
