"""The master's metadata index: the tree of names, inodes, chunk refs, attributes, garbage.

Write-behind: changes stay in memory until the one committer thread calls `seal` (takes them all,
no I/O) and `commit` (one durable transaction).  A crash shows the state of the last commit that
succeeded, exactly.  Lock order: the committer's own lock, then `lock` for moments; the write
transaction of the environment is begun with or without `lock`, and `lock` never inside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from stat import S_IFDIR

from mpifs import faultpoint
from mpifs.core import records
from mpifs.core.errors import DamageError, FormatError, FullError, PosixError
from mpifs.core.limits import NUMBER_RESERVE
from mpifs.core.records import Counters
from mpifs.core.superblock import Superblock
from mpifs.core.types import ROOT_INODE, StoreEntry
from mpifs.index.batch import Batch
from mpifs.index.inode import Inode
from mpifs.index.numbers import NumberRange
from mpifs.index.room import IndexRoom
from mpifs.index.staged import Staged
from mpifs.index.volume import lock_folder, make_folder, read_superblock, write_superblock
from mpifs.kv import Environment, Sync

_FIRST_NUMBERS = {
    records.KEY_INODE_LIMIT: ROOT_INODE + 1,
    records.KEY_GENERATION_LIMIT: 1,
}


class Index(Staged):
    """An open index.  Any thread may call anything but seal and commit: one committer does that.

    `lock` is re-entrant; holding it around several calls makes them one atomic step.
    """

    _folder_lock = -1
    _batch: Batch | None = None
    _is_committing = False
    _is_closed = False

    @staticmethod
    def make(folder: str, superblock: Superblock, stores: list[StoreEntry]) -> None:
        """Makes an index in `folder` (the volume's `index/`), with an empty root directory.

        Raises FormatError if the folder is not empty, FullError, InUseError.
        """
        make_folder(folder)
        lock = lock_folder(folder)
        try:
            environment = Environment(folder, records.DATABASES, create=True)
            try:
                root = root_inode(superblock)
                with environment.write() as transaction:
                    key = records.inode_key(root.ino)
                    transaction.put(records.INODES, key, records.encode_inode(root))
                    for key, first in _FIRST_NUMBERS.items():
                        transaction.put(records.META, key, records.encode_number(key, first))
                    transaction.put(records.META, records.KEY_STORES, records.encode_stores(stores))
                    transaction.put(
                        records.META,
                        records.KEY_COUNTERS,
                        records.encode_counters(Counters(0, 1, 0, 0)),
                    )
            finally:
                environment.close()
            faultpoint.reach("mkfs.filled")
            write_superblock(folder, superblock)
        finally:
            os.close(lock)

    @classmethod
    def open(
        cls,
        folder: str,
        *,
        sync: Sync = "full",
        preallocate: bool = True,
        reserve: int = NUMBER_RESERVE,
    ) -> Index:
        """Opens the index in `folder`; reads nothing but superblock and totals, commits once.

        Raises FormatError, InUseError, DamageError, FullError.
        """
        geometry = read_superblock(folder)
        lock = lock_folder(folder)
        try:
            environment = Environment(folder, records.DATABASES, sync=sync, preallocate=preallocate)
            try:
                index = _load(cls, environment, geometry, reserve)
            except BaseException:
                environment.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        index._folder_lock = lock
        index._commit_lock = threading.Lock()
        index.room = IndexRoom(folder, environment.free_bytes)
        return index

    _commit_lock: threading.Lock

    opened_generation: int = 0
    """The limit of generations at open: one above the last that was handed out before, if the
    session before ended cleanly."""

    def seal(self) -> Batch | None:
        """Takes all changes since the last seal; None if there are none.  No I/O.

        If the last commit failed, its batch comes again with the new changes merged into it.
        """
        with self.lock:
            if self._is_committing:
                raise RuntimeError("seal while a commit is under way: there is one committer")
            batch = self._batch or Batch(self._sealed_inodes, self._tables)
            has_changes = self._batch is not None
            if self._dirty:
                has_changes = True
                encode = records.encode_inode
                for ino, inode in self._dirty.items():
                    batch.inodes[ino] = None if inode is None else encode(inode)
                self._dirty.clear()
            for table in self._tables:
                has_changes |= table.seal()
            if self._stores_changed:
                has_changes = True
                batch.meta[records.KEY_STORES] = records.encode_stores(self._stores)
                self._stores_changed = False
            for key, numbers in self._numbers.items():
                if numbers.raise_limit():
                    has_changes = True
                    batch.limits[key] = numbers.wanted
            if not has_changes:
                return None
            batch.counters = self.counters()
            self._batch = batch
            self.room.seal()
            return batch

    def commit(self, batch: Batch) -> None:
        """Makes a sealed batch durable, in one transaction, without holding the lock meanwhile.

        If it raises (FullError, DamageError), nothing of the batch is on disk and all of it is
        kept: commit it again, or seal and commit what that gives.
        Requires: the batch of the last seal.  Repeating a commit that succeeded does nothing.
        """
        with self._commit_lock:
            with self.lock:
                if batch is not self._batch:
                    return
                self._is_committing = True
            try:
                self._env.preallocate_ahead(batch.estimate_bytes(), may_use_slack=True)
                with self._env.write() as transaction:
                    batch.write(transaction)
                    faultpoint.reach("commit.filled")
                faultpoint.reach("commit.done")
            except BaseException:
                self._is_committing = False
                raise
            with self.lock:
                for table in self._tables:
                    table.drop()
                self._sealed_inodes = {}
                for key, limit in batch.limits.items():
                    self._numbers[key].settle(limit)
                self._batch = None
                self._is_committing = False
            self.room.committed()

    def sync(self) -> None:
        """Seals and commits what there is.  Only for the committer, and for tests."""
        batch = self.seal()
        if batch is not None:
            self.commit(batch)

    def rows(
        self, database: str, after: bytes = b"", limit: int = 1024
    ) -> list[tuple[bytes, bytes]]:
        """Committed rows of one of records.DATABASES, undecoded, keys greater than `after`.

        For verify, which decodes them itself; call sync before.
        """
        found: list[tuple[bytes, bytes]] = []
        with self._env.read() as transaction:
            for key, value in transaction.scan(database, after + b"\0" if after else b""):
                found.append((bytes(key), bytes(value)))
                if len(found) >= limit:
                    break
        return found

    def copy_to(self, write: Callable[[memoryview | bytes], None]) -> int:
        """Passes a compacted copy of the committed state to `write`; see kv.Environment.copy_to."""
        return self._env.copy_to(write)

    def last_transaction(self) -> int:
        """Number of the last commit on disk: it is another one when anything has changed."""
        return self._env.last_transaction()

    def used_bytes(self) -> int:
        """Bytes of the index's own environment."""
        return self._env.used_bytes()

    def free_bytes(self) -> int:
        """Estimate of what the index's environment can still take."""
        return self._env.free_bytes()

    def close(self) -> None:
        """Commits what there is and closes.  Closes, too, if that raises.  May be repeated.

        Requires: no call under way in another thread.
        """
        if self._is_closed:
            return
        try:
            self.sync()
            faultpoint.reach("umount.numbers")
            with self._env.write() as transaction:
                for key, numbers in self._numbers.items():
                    # The rest of the range was never handed out and never will be by this process.
                    number = records.encode_number(key, numbers.next)
                    numbers.durable = numbers.next
                    transaction.put(records.META, key, number)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes without committing, as a crash would.  May be repeated."""
        if not self._is_closed:
            self._is_closed = True
            self._env.close()
            os.close(self._folder_lock)


def root_inode(superblock: Superblock) -> Inode:
    """The root directory of an empty volume."""
    now_ns = time.time_ns()
    return Inode(
        ROOT_INODE,
        S_IFDIR | 0o755,
        os.getuid(),
        os.getgid(),
        2,
        0,
        0,
        0,
        now_ns,
        now_ns,
        now_ns,
        ROOT_INODE,
        b"",
        0,
        superblock.chunk_size,
        superblock.replicas,
        0,
        b"",
    )


def _load(make: type[Index], environment: Environment, geometry: Superblock, reserve: int) -> Index:
    """Reads the totals and makes the first ranges of numbers durable."""
    meta: dict[bytes, bytes] = {}
    with environment.read() as transaction:
        if transaction.get(records.META, records.KEY_RESTORED) is not None:
            raise FormatError(
                f"{environment.path} was recovered but not yet reconciled with the stores; "
                "run mpifs fsck --repair to finish the recovery"
            )
        for key in (records.KEY_COUNTERS, records.KEY_STORES, *_FIRST_NUMBERS):
            value = transaction.get(records.META, key)
            if value is None:
                raise DamageError(f"index: {key.decode()} is missing; run mpifs fsck")
            meta[key] = bytes(value)
    limits = {
        key: NumberRange(key, records.decode_number(key, meta[key]), reserve)
        for key in _FIRST_NUMBERS
    }
    opened_generation = limits[records.KEY_GENERATION_LIMIT].next
    stores = records.decode_stores(meta[records.KEY_STORES])
    counters = records.decode_counters(meta[records.KEY_COUNTERS])
    with contextlib.suppress(FullError):  # a full volume must open, or nothing can be deleted
        environment.preallocate_ahead()
    with environment.write() as transaction:
        for key, numbers in limits.items():
            numbers.raise_limit()
            transaction.put(records.META, key, records.encode_number(key, numbers.wanted))
    faultpoint.reach("mount.numbers")
    for numbers in limits.values():
        numbers.settle(numbers.wanted)
    index = make(environment, geometry, stores, counters, limits)
    index.opened_generation = opened_generation
    try:
        root = index.inode(ROOT_INODE)
    except PosixError as error:
        raise DamageError("index: the root directory is missing; run mpifs fsck") from error
    if not root.is_directory:
        raise DamageError("index: the root is no directory; run mpifs fsck", errno.EIO)
    return index
