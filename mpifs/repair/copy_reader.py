"""Reads a copy of the index back from the stores: every piece from whichever store has it whole."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence

from mpifs.core import records
from mpifs.core.errors import DamageError, MpifsError
from mpifs.core.image import encode_key
from mpifs.core.kinds import Kind
from mpifs.core.limits import INDEX_COPY_PIECES_IN_FLIGHT
from mpifs.core.types import ChunkKey
from mpifs.datafile import DATA_NAME
from mpifs.kv import Environment
from mpifs.repair.copies import (
    COPY_INODE,
    CopyStores,
    IndexCopy,
    Manifest,
    find_copies,
)
from mpifs.repair.findings import Progress
from mpifs.transport.client import Pending

log = logging.getLogger(__name__)


def fetch_copy(stores: CopyStores, copy: IndexCopy, path: str, progress: Progress) -> None:
    """Writes a copy to the file `path`, durably; verified piece by piece against its manifest.

    Raises DamageError (a piece that no store has whole), CancelledError, OSError.
    """
    with open(path, "wb", opener=_private) as file:
        for payload in _payloads(stores, copy, progress):
            file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def fetch_newest(
    stores: CopyStores,
    folder: str,
    progress: Progress,
    copies: Sequence[IndexCopy] | None = None,
) -> Manifest | None:
    """Writes the newest copy that is whole to `folder`/data.mdb; None if there is none.

    `copies` are what find_copies gave, if that was asked before.
    Raises CancelledError, OSError (the local disk).
    Requires: the folder is there and its own.
    """
    for copy in find_copies(stores) if copies is None else copies:
        try:
            fetch_copy(stores, copy, os.path.join(folder, DATA_NAME), progress)
        except DamageError as error:
            log.warning("%s", error)
            continue
        return copy.manifest
    return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _payloads(stores: CopyStores, copy: IndexCopy, progress: Progress) -> Iterator[memoryview]:
    """The pieces in order; some are asked for ahead."""
    ahead: deque[tuple[int, Pending | None]] = deque()
    pieces = iter(range(1, copy.manifest.pieces + 1))
    try:
        while True:
            for piece in itertools.islice(pieces, INDEX_COPY_PIECES_IN_FLIGHT - len(ahead)):
                ahead.append((piece, _ask(stores, copy, piece)))
            if not ahead:
                return
            progress.check()
            yield _piece(stores, copy, *ahead.popleft())
    finally:
        for _, pending in ahead:
            with contextlib.suppress(MpifsError):
                if pending is not None:
                    pending.wait()


def _ask(stores: CopyStores, copy: IndexCopy, piece: int) -> Pending | None:
    """Asks the first store that has it; `_piece` turns to the others."""
    key = ChunkKey(COPY_INODE, piece, copy.manifest.generation)
    for store in copy.holders_of(piece)[:1]:
        try:
            return stores.client.start(stores.rank_of(store), Kind.GET, args=encode_key(key))
        except MpifsError:
            return None
    return None


def _piece(stores: CopyStores, copy: IndexCopy, piece: int, pending: Pending | None) -> memoryview:
    """A piece from any store.  Raises DamageError if none has it whole."""
    manifest = copy.manifest
    key = ChunkKey(COPY_INODE, piece, manifest.generation)
    reasons = []
    for place, store in enumerate(copy.holders_of(piece)):
        try:
            if place or pending is None:
                args = encode_key(key)
                pending = stores.client.start(stores.rank_of(store), Kind.GET, args=args)
            return stores.payload_of(pending.wait().body, key, manifest.sums[piece - 1])
        except MpifsError as error:
            reasons.append(f"worker {store}: {error}")
    reason = "; ".join(reasons) or "no worker has it"
    raise DamageError(
        f"the copy {manifest.generation} of the index cannot be read: piece {piece}: {reason}"
    )


class CopyRows:
    """Single rows of the newest good copy, fetched into `folder` (made, and removed by `close`)
    when the first row is asked for.  One thread at a time."""

    def __init__(self, stores: CopyStores, folder: str, progress: Progress) -> None:
        self._stores = stores
        self._folder = folder
        self._progress = progress
        self._has_looked = False
        self._environment: Environment | None = None

    def row(self, database: str, key: bytes) -> bytes | None:
        """The row as it stands in the copy; None if there is no copy or no such row.

        Raises CancelledError.
        """
        if not self._has_looked:
            self._has_looked = True
            self._open()
        if self._environment is None:
            return None
        try:
            with self._environment.read() as transaction:
                value = transaction.get(database, key)
                return None if value is None else bytes(value)
        except MpifsError as error:
            log.warning("the copy of the index cannot be read: %s", error)
            return None

    def close(self) -> None:
        """Removes what was fetched.  May be repeated."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None
        self._has_looked = True
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> None:
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            os.makedirs(self._folder, mode=0o700)
            if fetch_newest(self._stores, self._folder, self._progress) is not None:
                self._environment = Environment(
                    self._folder, records.DATABASES, preallocate=False, sync="relaxed"
                )
        except OSError as error:
            log.warning("no copy of the index can be used: %s", error)
