"""LMDB environments: the only file that imports lmdb (py-lmdb 3, its engine 0.9.36).

Never: writemap (a full disk is SIGBUS), lock=False (a reader's snapshot is overwritten), a change
of the map's size while it is read (views into the old map crash the process), fork with an open
environment.  The map has 16 TiB of address space; where that is limited (ulimit -v) it is small and
grows, behind a ReaderGate.

Reads give memoryviews into the map.  A view is valid until its transaction ends; in a write
transaction until the next put or delete.  Copy what must live longer; after that a view shows
other bytes, and after `close` reading it would crash the process.  `close` therefore leaves the
map alone while a read transaction is open.

py-lmdb keeps read transactions itself and renews them: begin + get + end is 0.44 µs so.

Every failure is a domain error: FullError (disk or map), DamageError (bytes are wrong, EIO),
FormatError (no usable environment; the sentence says what to do).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import lmdb

from mpifs.core.checksum import Buffer
from mpifs.core.errors import DamageError, FormatError, FullError, InUseError, MpifsError
from mpifs.core.limits import (
    KV_READERS_MAX,
    KV_SPARE_TRANSACTIONS,
    MAP_BYTES,
    MAP_BYTES_SMALL,
    MAP_GROWTH_WAIT_S,
    WRITER_WAIT_S,
)
from mpifs.datafile import DATA_NAME, disk_failure, has_content, make_folder, stream
from mpifs.fileroom import FileRoom, has_address_space, longer_map
from mpifs.pagefile import check_pages
from mpifs.readergate import ReaderGate

Sync = Literal["full", "relaxed"]
_Rows: TypeAlias = "Iterator[tuple[memoryview, memoryview]]"
_Opened: TypeAlias = "tuple[lmdb.Environment, bool]"
_Begun: TypeAlias = "tuple[lmdb.Transaction[memoryview], dict[str, lmdb._Database], str]"

_kept: list[lmdb.Environment] = []  # closed with a reader open: their maps must stay


class ReadTransaction:
    """One consistent state of the environment.  Ends with `close` or the `with` block.

    One thread at a time uses it; another one than the maker may close it.
    """

    __slots__ = ("_databases", "_name", "_transaction")

    def __init__(self, begun: _Begun) -> None:
        self._transaction, self._databases, self._name = begun

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

    def scan(self, db: str, start: Buffer = b"", end: Buffer | None = None) -> _Rows:
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
        with _Told(self._name), self._transaction.cursor(self._databases[db]) as cursor:
            found = cursor.set_range(start) if start else cursor.first()
            while found and (limit is None or bytes(cursor.key()) < limit):
                yield cursor
                found = cursor.next()

    def last(self, db: str) -> tuple[memoryview, memoryview] | None:
        """The greatest key with its value, or None if the database is empty."""
        with _Told(self._name), self._transaction.cursor(self._databases[db]) as cursor:
            return cursor.item() if cursor.last() else None

    def count(self, db: str) -> int:
        """Number of keys; costs nothing."""
        return self._transaction.stat(self._databases[db])["entries"]


class _GatedRead(ReadTransaction):
    """A read transaction of an environment whose map may be exchanged: inside `gate`."""

    gate: ReaderGate | None = None

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        super().close()
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.leave()


class WriteTransaction(ReadTransaction):
    """The one write transaction of an environment: a `with` block in one thread.

    A normal end commits, durably with sync="full"; an exception aborts.  Raises FullError or
    DamageError at the end if the commit fails: then nothing of it is stored.
    """

    __slots__ = ("_environment",)

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        super().__init__(environment._begin_write())

    def __enter__(self) -> WriteTransaction:
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            if failure[0] is None:
                self._transaction.commit()
            else:
                self._transaction.abort()
        except lmdb.Error as error:
            self._environment.room.look()
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
        self._writer = threading.Lock()
        self._writer_thread = 0
        file = os.path.join(path, DATA_NAME)
        if create:
            make_folder(path)
        if has_content(file):
            check_pages(file)
        elif not create:
            raise FormatError(f"{file} is missing or empty; run mpifs fsck")
        self._environment, is_small = _open(path, len(databases), map_bytes, sync, create)
        self._map_bytes: int = self._environment.info()["map_size"]
        self._gate = ReaderGate(MAP_GROWTH_WAIT_S) if is_small else None
        opened = self._environment.open_db
        try:
            with _Told(path):
                self._databases = {name: opened(name.encode(), create=create) for name in databases}
        except MpifsError:
            self._environment.close()
            raise
        self._environment.reader_check()
        self._page_bytes = self._environment.stat()["psize"]
        self.room = FileRoom(
            path, self.used_bytes, self.reusable_bytes, self._grow_map, preallocate=preallocate
        )

    def read(self) -> ReadTransaction:
        """Begins a read transaction; close it soon: while it is open no freed page is reused.

        Raises FullError if KV_READERS_MAX are open.
        """
        if self._gate is None:
            return ReadTransaction(self._begin())
        self._gate.enter()
        try:
            reading = _GatedRead(self._begin())
        except BaseException:
            self._gate.leave()
            raise
        reading.gate = self._gate
        return reading

    def _begin(self, *, write: bool = False) -> _Begun:
        try:
            begun = self._environment.begin(write=write, buffers=True)
        except lmdb.Error as error:
            raise _failure(error, self.path) from error
        return begun, self._databases, self.path

    def write(self) -> WriteTransaction:
        """Begins the write transaction, waiting for another thread's to end; use `with` at once.

        Requires: this thread has none open.
        """
        return WriteTransaction(self)

    def _begin_write(self) -> _Begun:
        me = threading.get_ident()
        assert not (self._writer.locked() and self._writer_thread == me), "nested write"
        if not self._writer.acquire(timeout=WRITER_WAIT_S):
            raise MpifsError(f"the disk of {self.path} does not finish a commit")
        self._writer_thread = me
        try:
            return self._begin(write=True)
        except BaseException:
            self._writer.release()
            raise

    def preallocate_ahead(self, needed_bytes: int = 0, *, may_use_slack: bool = False) -> None:
        """Makes sure that `needed_bytes` can be written behind the last used page.

        A full disk is found here before LMDB meets it.  The gain in speed depends on the disk: from
        5 % (one that 300 MiB/s fill) to a factor of 4 (PITFALLS 12).  KV_SLACK_BYTES more are kept
        for what must go on then (`may_use_slack`).  Only the writing thread may call it, outside of
        its transactions.
        Raises FullError if neither the disk and the map nor the reusable pages have room.
        """
        self.room.ahead(needed_bytes, may_use_slack=may_use_slack)

    def _grow_map(self, least: int) -> bool:
        """Whether the map has `least` bytes, made longer if need be and nobody reads in it."""
        if least > self._map_bytes and self._gate is not None:
            size = longer_map(self._map_bytes, least)
            if size is not None:
                with self._writer, self._gate.shut() as is_empty:
                    if is_empty:
                        self._environment.set_mapsize(size)
                        self._map_bytes = size
        return least <= self._map_bytes

    def last_transaction(self) -> int:
        """Number of the last committed write transaction: it tells whether anything changed."""
        with _Told(self.path):
            return self._environment.info()["last_txnid"]

    def used_bytes(self) -> int:
        """Length of the part of the file that LMDB has used so far."""
        with _Told(self.path):
            return (self._environment.info()["last_pgno"] + 1) * self._page_bytes

    def reusable_bytes(self) -> int:
        """Estimate of freed pages inside the used part (fragmented ones included)."""
        with _Told(self.path), self.read() as reading:
            stats = [reading._transaction.stat(db) for db in self._databases.values()]
            stats.append(self._environment.stat())
        live = sum(s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        return max(0, self.used_bytes() - (live + 4) * self._page_bytes)

    def free_bytes(self) -> int:
        """Estimate of what can still be stored: disk and spare pages, within the map."""
        can_grow = self._gate is not None and has_address_space(self._map_bytes + MAP_BYTES_SMALL)
        return self.room.free_bytes(MAP_BYTES if can_grow else self._map_bytes)

    def has_room(self, needed: int) -> bool:
        """Whether `free_bytes` are as many; where the disk has them, that costs a tenth."""
        return self.room.has_unused(needed, self._map_bytes) or self.free_bytes() >= needed

    def sync(self) -> None:
        """Makes every commit durable, whatever the environment's sync mode."""
        with _Told(self.path):
            self._environment.sync(True)

    def copy_to(self, write: Callable[[bytes], None]) -> int:
        """Gives a compacted copy of the last committed state, as a data file, to `write` in order.

        Gives its length.  A read transaction is open meanwhile; what `write` raises comes through.
        """
        with _Told(self.path), self.read():  # which keeps the map in its place
            return stream(lambda fd: self._environment.copyfd(fd, compact=True), write)

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
        if self.room.is_closed:
            return True
        self.room.close()
        if self.readers():
            _kept.append(self._environment)
            return False
        self._environment.close()
        return True


def _open(path: str, databases: int, size: int, sync: Sync, create: bool) -> _Opened:
    """Opens with a map of `size` bytes or, if the address space (ulimit -v) has no room for it, a
    small one; whether it is small."""
    for map_bytes in (size, MAP_BYTES_SMALL):
        try:
            environment = lmdb.Environment(
                path,
                map_size=map_bytes,
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
            return environment, map_bytes != size
        except (lmdb.MemoryError, MemoryError):
            continue
        except lmdb.Error as error:
            raise _failure(error, path) from error
    raise FormatError(f"{path} cannot be mapped: raise the limit of address space (ulimit -v)")


class _Told(NamedTuple):
    """A block whose errors of LMDB become domain errors."""

    path: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, lmdb.Error):
            raise _failure(error, self.path) from error


def _failure(error: lmdb.Error, path: str) -> MpifsError:
    """What an error of LMDB means; a full disk shows as EIO at commit."""
    if isinstance(error, lmdb.MapFullError | lmdb.TxnFullError):
        return FullError(f"{path} has no room left in its map")
    if isinstance(error, lmdb.NotFoundError):
        return FormatError(f"{path} lacks a database of mpifs; run mpifs fsck")
    if isinstance(error, lmdb.ReadersFullError):
        return FullError(f"{path} has too many readers")
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.PanicError):
        return DamageError(f"{path} is damaged ({error}); run mpifs fsck")
    if isinstance(error, lmdb.VersionMismatchError | lmdb.InvalidError):
        return FormatError(f"{path} is no LMDB environment of this version ({error})")
    if isinstance(error, lmdb.LockError):
        return InUseError(f"{path} is in use by another process")
    return disk_failure(error, error.code, path)
