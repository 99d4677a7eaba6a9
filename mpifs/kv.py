"""LMDB environments: the only file that imports lmdb (py-lmdb 3, its engine 0.9.36).

Never: writemap (a full disk is SIGBUS), lock=False (a reader's snapshot is overwritten), a change
of the map's size (views into the old map crash the process), fork with an open environment.

Reads give memoryviews into the map.  A view is valid until its transaction ends; in a write
transaction until the next put or delete.  Copy what must live longer; after that a view shows
other bytes, and after `close` reading it would crash the process.  `close` therefore leaves the
map alone while a read transaction is open.

py-lmdb keeps `max_spare_txns` read transactions itself and renews them: begin + get + end is
0.44 µs with them and 0.55 without, so there is no second pool here.

Every failure is a domain error: FullError (disk or map), DamageError (bytes are wrong, EIO),
FormatError (no usable environment; the sentence says what to do).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import lmdb

from mpifs.core.checksum import Buffer
from mpifs.core.errors import DamageError, FormatError, FullError, InUseError, MpifsError
from mpifs.core.limits import (
    KV_READERS_MAX,
    KV_SLACK_BYTES,
    KV_SPARE_TRANSACTIONS,
    MAP_BYTES,
    MAP_BYTES_FALLBACK,
    PREALLOCATE_BYTES,
)
from mpifs.datafile import (
    DATA_NAME,
    allocated_bytes,
    disk_failure,
    disk_free_bytes,
    grow_file,
    has_content,
    make_folder,
    stream,
)
from mpifs.pagefile import check_pages

Sync = Literal["full", "relaxed"]

_MAP_BYTES_LEAST = 1 << 30
_kept: list[lmdb.Environment] = []  # closed with a reader open: their maps must stay


class ReadTransaction:
    """One consistent state of the environment.  Ends with `close` or the `with` block.

    One thread at a time uses it; another one than the maker may close it.
    """

    __slots__ = ("_databases", "_name", "_transaction")

    def __init__(
        self,
        transaction: lmdb.Transaction[memoryview],
        databases: dict[str, lmdb._Database],
        name: str,
    ) -> None:
        self._transaction = transaction
        self._databases = databases
        self._name = name

    def __enter__(self) -> ReadTransaction:
        return self

    def __exit__(self, *_: object) -> None:
        self._transaction.abort()

    def close(self) -> None:
        """Ends it; its views are invalid from now on.  May be repeated."""
        self._transaction.abort()

    def get(self, db: str, key: Buffer) -> memoryview | None:
        """The value of a key, or None; all its pages are read.  Raises DamageError."""
        try:
            return self._transaction.get(key, None, self._databases[db])
        except lmdb.Error as error:
            raise _failure(error, self._name) from error

    def scan(
        self, db: str, start: Buffer = b"", end: Buffer | None = None
    ) -> Iterator[tuple[memoryview, memoryview]]:
        """Keys and values from `start` (included) to `end` (excluded; None = to the last one).

        Nothing may be written in the same transaction while the iterator is in use.
        """
        return (cursor.item() for cursor in self._walk(db, start, end))

    def scan_keys(
        self, db: str, start: Buffer = b"", end: Buffer | None = None
    ) -> Iterator[memoryview]:
        """As `scan`, keys only; py-lmdb reads the pages of the values nevertheless."""
        return (cursor.key() for cursor in self._walk(db, start, end))

    def _walk(
        self, db: str, start: Buffer, end: Buffer | None
    ) -> Iterator[lmdb.Cursor[memoryview]]:
        limit = None if end is None else bytes(end)
        try:
            with self._transaction.cursor(self._databases[db]) as cursor:
                found = cursor.set_range(start) if start else cursor.first()
                while found and (limit is None or bytes(cursor.key()) < limit):
                    yield cursor
                    found = cursor.next()
        except lmdb.Error as error:
            raise _failure(error, self._name) from error

    def last(self, db: str) -> tuple[memoryview, memoryview] | None:
        """The greatest key with its value, or None if the database is empty."""
        try:
            with self._transaction.cursor(self._databases[db]) as cursor:
                return cursor.item() if cursor.last() else None
        except lmdb.Error as error:
            raise _failure(error, self._name) from error

    def count(self, db: str) -> int:
        """Number of keys; costs nothing."""
        return self._transaction.stat(self._databases[db])["entries"]


class WriteTransaction(ReadTransaction):
    """The one write transaction of an environment: a `with` block in one thread.

    A normal end commits, durably with sync="full"; an exception aborts.  Raises FullError or
    DamageError at the end if the commit fails: then nothing of it is stored.
    """

    __slots__ = ("_environment",)

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        super().__init__(*environment._begin_write())

    def __enter__(self) -> WriteTransaction:
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            if failure[0] is None:
                self._transaction.commit()
            else:
                self._transaction.abort()
        except lmdb.Error as error:
            self._environment._allocated = allocated_bytes(self._environment._fd)
            raise _failure(error, self._name) from error
        finally:
            self._environment._writer.release()

    def put(self, db: str, key: Buffer, value: Buffer, *, overwrite: bool = True) -> bool:
        """Stores a value.  False (and nothing done) if the key is there and not `overwrite`."""
        try:
            return self._transaction.put(key, value, overwrite=overwrite, db=self._databases[db])
        except lmdb.Error as error:
            raise _failure(error, self._name) from error

    def delete(self, db: str, key: Buffer) -> bool:
        """Removes a key; False if it was not there."""
        try:
            return self._transaction.delete(key, db=self._databases[db])
        except lmdb.Error as error:
            raise _failure(error, self._name) from error


class Environment:
    """An LMDB environment in the folder `path` with the named databases.

    All methods may be called by any thread; write transactions exclude each other.  One process
    at a time: the caller holds a lock on the folder.  `sync="relaxed"` commits without waiting for
    the disk: a power loss may then destroy the environment.

    Raises FormatError if the files are damaged, cut or foreign, or, without `create`, missing.
    """

    def __init__(
        self,
        path: str,
        databases: Sequence[str],
        *,
        map_bytes: int = MAP_BYTES,
        sync: Sync = "full",
        preallocate: bool = True,
        create: bool = False,
    ) -> None:
        self.path = path
        self._preallocate = preallocate
        self._writer = threading.Lock()
        self._writer_thread = 0
        self._file = os.path.join(path, DATA_NAME)
        if create:
            make_folder(path)
        if has_content(self._file):
            check_pages(self._file)
        elif not create:
            raise FormatError(f"{self._file} is missing or empty; run mpifs fsck")
        self._environment, self._map_bytes = _open(path, len(databases), map_bytes, sync, create)
        try:
            self._databases = {
                name: self._environment.open_db(name.encode(), create=create) for name in databases
            }
        except lmdb.NotFoundError as error:
            self._environment.close()
            raise FormatError(f"{path} lacks a database of mpifs; run mpifs fsck") from error
        except lmdb.Error as error:
            self._environment.close()
            raise _failure(error, self.path) from error
        self._environment.reader_check()
        self._page_bytes = self._environment.stat()["psize"]
        self._fd = os.open(self._file, os.O_RDWR | os.O_CLOEXEC)
        self._allocated = allocated_bytes(self._fd)

    def read(self) -> ReadTransaction:
        """Begins a read transaction; close it soon: while it is open no freed page is reused.

        Raises FullError if KV_READERS_MAX are open.
        """
        try:
            return ReadTransaction(
                self._environment.begin(buffers=True), self._databases, self.path
            )
        except lmdb.Error as error:
            raise _failure(error, self.path) from error

    def write(self) -> WriteTransaction:
        """Begins the write transaction, waiting for another thread's to end; use `with` at once.

        Requires: this thread has none open.
        """
        return WriteTransaction(self)

    def _begin_write(
        self,
    ) -> tuple[lmdb.Transaction[memoryview], dict[str, lmdb._Database], str]:
        me = threading.get_ident()
        assert not (self._writer.locked() and self._writer_thread == me), "nested write"
        self._writer.acquire()
        self._writer_thread = me
        try:
            transaction = self._environment.begin(write=True, buffers=True)
        except BaseException as error:
            self._writer.release()
            if isinstance(error, lmdb.Error):
                raise _failure(error, self.path) from error
            raise
        return transaction, self._databases, self.path

    def preallocate_ahead(self, needed_bytes: int = 0) -> None:
        """Makes sure that `needed_bytes` can be written behind the last used page.

        A full disk is found here before LMDB meets it.  The gain in speed depends on the disk: from
        5 % (one that 300 MiB/s fill) to a factor of 4 (PITFALLS 12).  KV_SLACK_BYTES more are kept
        for deletes.  Only the writing thread may call it, outside of its transaction.
        Raises FullError if neither the disk nor the reusable pages have room.
        """
        used = self.used_bytes()
        least = used + needed_bytes + KV_SLACK_BYTES
        start = max(used, self._allocated)
        if start >= least:
            return
        wanted = least
        free = disk_free_bytes(self.path)
        ahead = min(PREALLOCATE_BYTES, max(used, needed_bytes))
        if free > 4 * ahead:
            wanted = max(least, used + ahead)
        if free > wanted - start and (not self._preallocate or grow_file(self._fd, start, wanted)):
            self._allocated = wanted if self._preallocate else start
        elif self.reusable_bytes() < 2 * needed_bytes:
            raise FullError(f"the disk of {self.path} is full")

    def last_transaction(self) -> int:
        """Number of the last committed write transaction: it tells whether anything changed."""
        try:
            return self._environment.info()["last_txnid"]
        except lmdb.Error as error:
            raise _failure(error, self.path) from error

    def used_bytes(self) -> int:
        """Length of the part of the file that LMDB has used so far."""
        try:
            return (self._environment.info()["last_pgno"] + 1) * self._page_bytes
        except lmdb.Error as error:
            raise _failure(error, self.path) from error

    def reusable_bytes(self) -> int:
        """Estimate of freed pages inside the used part (fragmented ones included)."""
        try:
            with self._environment.begin() as transaction:
                stats = [transaction.stat(db) for db in self._databases.values()]
            stats.append(self._environment.stat())
        except lmdb.Error as error:
            raise _failure(error, self.path) from error
        live = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        return max(0, self.used_bytes() - (live + 4) * self._page_bytes)

    def spare_bytes(self) -> int:
        """Estimate of what fits in without more of the disk: allocated and freed pages."""
        return max(0, self._allocated - self.used_bytes()) + self.reusable_bytes()

    def free_bytes(self) -> int:
        """Estimate of what can still be stored: disk and spare pages, within the map."""
        map_bytes = max(0, self._map_bytes - self.used_bytes()) + self.reusable_bytes()
        return min(disk_free_bytes(self.path) + self.spare_bytes(), map_bytes)

    def sync(self) -> None:
        """Makes every commit durable, whatever the environment's sync mode."""
        try:
            self._environment.sync(True)
        except lmdb.Error as error:
            raise _failure(error, self.path) from error

    def copy_to(self, write: Callable[[bytes], None]) -> int:
        """Gives a compacted copy of the last committed state, as a data file, to `write` in order.

        Gives its length.  A read transaction is open meanwhile.  What `write` raises comes through.
        """
        try:
            return stream(lambda fd: self._environment.copyfd(fd, compact=True), write)
        except lmdb.Error as error:
            raise _failure(error, self.path) from error

    def readers(self) -> int:
        """Number of read transactions open in all threads."""
        try:
            lines = self._environment.readers().splitlines()[1:]
        except lmdb.Error:
            return 0  # closed
        fields = (line.split() for line in lines)
        return sum(1 for pid, *_, txnid in fields if int(pid) == os.getpid() and txnid.isdigit())

    def close(self) -> bool:
        """Closes it.  False if a read transaction is open: then the map stays until the end of
        the process, because reading a view into a closed map would crash it.  May be repeated.

        Requires: no write transaction is open.
        """
        if self._fd < 0:
            return True
        os.close(self._fd)
        self._fd = -1
        if self.readers():
            _kept.append(self._environment)
            return False
        self._environment.close()
        return True


def _open(
    path: str, databases: int, size: int, sync: Sync, create: bool
) -> tuple[lmdb.Environment, int]:
    """Opens with the largest map that the address space (ulimit -v) allows."""
    while True:
        try:
            environment = lmdb.Environment(
                path,
                map_size=size,
                max_dbs=databases,
                mode=0o600,
                create=create,
                sync=sync == "full",
                metasync=True,
                writemap=False,
                readahead=True,
                meminit=False,
                lock=True,
                max_readers=KV_READERS_MAX,
                max_spare_txns=KV_SPARE_TRANSACTIONS,
            )
            return environment, size
        except (lmdb.MemoryError, MemoryError) as error:
            if size <= _MAP_BYTES_LEAST:
                raise FormatError(
                    f"{path} cannot be mapped: raise the limit of address space (ulimit -v)"
                ) from error
            size = max(_MAP_BYTES_LEAST, min(size >> 2, MAP_BYTES_FALLBACK))
        except lmdb.Error as error:
            raise _failure(error, path) from error


def _failure(error: lmdb.Error, path: str) -> MpifsError:
    """What an error of LMDB means; a full disk shows as EIO at commit."""
    if isinstance(error, lmdb.MapFullError | lmdb.TxnFullError):
        return FullError(f"{path} has no room left in its map")
    if isinstance(error, lmdb.ReadersFullError):
        return FullError(f"{path} has too many readers")
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.PanicError):
        return DamageError(f"{path} is damaged ({error}); run mpifs fsck")
    if isinstance(error, lmdb.VersionMismatchError | lmdb.InvalidError):
        return FormatError(f"{path} is no LMDB environment of this version ({error})")
    if isinstance(error, lmdb.LockError):
        return InUseError(f"{path} is in use by another process")
    return disk_failure(error, error.code, path)
