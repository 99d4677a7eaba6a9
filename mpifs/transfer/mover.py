"""Moves files, folders and links from a Source to a Sink: what there is, in which order.

Long files go one by one (long_file.py), small ones in packs.  A folder is made before what is in it
and gets its mode and times when all is in it.  A file that cannot be moved is noted, and the rest
goes on; when the other end, the room on the disk or the user's patience is at an end, all ends.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError, PosixError, RemoteError, SilentError
from mpifs.core.limits import (
    FOLDER_DEPTH_MAX,
    TRANSFER_PACK_BYTES,
    TRANSFER_PACK_COUNT,
    TRANSFER_SMALL_BYTES,
)
from mpifs.core.transfer_messages import FILE, FOLDER, LINK, Entry, Failure
from mpifs.transfer.ends import Promise, Sink, Source
from mpifs.transfer.folder import is_part, joined, leads_out, parts_of, shown
from mpifs.transfer.long_file import move_long
from mpifs.transfer.tally import CancelledTransferError, EndedTransferError, Tally

_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_fatal(error: OSError) -> bool:
    """Whether nothing else of a transfer can go well after this."""
    if isinstance(error, RemoteError):
        return error.errno in _FATAL
    is_away = isinstance(error, SilentError | CancelledTransferError | EndedTransferError)
    return is_away or error.errno in _FATAL


class Mover:
    """One transfer.  Used by one thread."""

    def __init__(self, source: Source, sink: Sink, into: bytes, tally: Tally) -> None:
        self._source = source
        self._sink = sink
        self._into = joined(*parts_of(into))
        self._tally = tally
        self._pack: list[Entry] = []
        self._pack_bytes = 0
        self._stores: deque[tuple[list[Entry], Promise[list[Failure]]]] = deque()
        self._folders: list[Entry] = []

    def move(self, names: Sequence[bytes]) -> None:
        """Moves them all.  What fails is in the tally; never raises an OSError."""
        for name in names:
            try:
                self._move_name(name)
            except EndedTransferError:
                rest = f"{shown(name)}: the rest was not sent; when that is mended run it again"
                self._tally.fail(name, MpifsError(rest))
                break
            except OSError as error:
                self._tally.fail(name, error)
                if is_fatal(error):
                    break
        self._tally.is_over = True

    def _move_name(self, name: bytes) -> None:
        self._tally.check()
        parts = parts_of(name)
        if parts and is_part(parts[-1]):
            raise PosixError(errno.EINVAL, f"{shown(name)} is a file that is just being received")
        entry = self._source.look(name)
        if entry.kind == LINK:
            raise PosixError(
                errno.ELOOP,
                f"{shown(name)} is a symbolic link, which could lead out of the rank's folder; "
                "name what it points to",
            )
        if entry.kind == FOLDER:
            self._move_tree(entry)
        else:
            self._move_entry(entry, [])
            self._flush_all()

    def _move_tree(self, top: Entry) -> None:
        links: list[Entry] = []
        self._make_folder(top)
        todo = [top]
        while todo:
            folder = todo.pop()
            for entry in self._entries(folder.path):
                self._tally.check()
                try:
                    if entry.kind == FOLDER:
                        if entry.path.count(b"/") >= FOLDER_DEPTH_MAX:
                            raise PosixError(errno.ENAMETOOLONG, "too many folders in each other")
                        self._make_folder(entry)
                        todo.append(entry)
                    else:
                        self._move_entry(entry, links)
                except EndedTransferError:
                    raise
                except OSError as error:
                    self._tally.fail(entry.path, error)
                    if is_fatal(error):
                        raise EndedTransferError from None
        self._flush_all()
        self._make(links, is_last=False)
        self._make(self._folders[::-1], is_last=True)
        self._folders = []

    def _entries(self, path: bytes) -> Iterator[Entry]:
        after = b""
        while True:
            try:
                page = self._source.entries(path, after)
            except OSError as error:
                if is_fatal(error):
                    raise
                self._tally.fail(path, error)
                return
            yield from page.entries
            if page.is_end or not page.entries:
                return
            after = page.entries[-1].path.rpartition(b"/")[2]

    def _target(self, entry: Entry) -> Entry:
        return msgspec.structs.replace(entry, path=joined(self._into, entry.path))

    def _make_folder(self, entry: Entry) -> None:
        target = self._target(entry)
        if parts_of(target.path):
            for failure in self._sink.make([target], is_last=False):
                raise PosixError(failure.code, failure.detail)
            self._folders.append(target)
        self._tally.folders += 1

    def _make(self, entries: list[Entry], *, is_last: bool) -> None:
        """Makes links, or finishes folders, many at once."""
        for start in range(0, len(entries), TRANSFER_PACK_COUNT):
            batch = entries[start : start + TRANSFER_PACK_COUNT]
            failures = self._sink.make(batch, is_last=is_last)
            for failure in failures:
                self._tally.fail(batch[failure.item].path, PosixError(failure.code, failure.detail))
            if not is_last:
                self._tally.files += len(batch) - len(failures)

    def _move_entry(self, entry: Entry, links: list[Entry]) -> None:
        if entry.kind == LINK:
            if leads_out(entry.path, entry.link):
                raise PosixError(
                    errno.ELOOP,
                    f"{shown(entry.path)} is a symbolic link that leads out of the rank's folder; "
                    "it was left out",
                )
            links.append(self._target(entry))
        elif entry.kind != FILE:
            raise PosixError(
                errno.EINVAL, f"{shown(entry.path)} is no file (a device, FIFO or socket)"
            )
        elif entry.size > TRANSFER_SMALL_BYTES:
            self._tally.total += entry.size
            move_long(self._source, entry, self._sink, self._target(entry), self._tally)
        else:
            self._tally.total += entry.size
            self._pack.append(entry)
            self._pack_bytes += entry.size
            if len(self._pack) >= TRANSFER_PACK_COUNT or self._pack_bytes >= TRANSFER_PACK_BYTES:
                self._flush()

    # Packs of small files.

    def _flush_all(self) -> None:
        self._flush()
        while self._stores:
            self._settle()

    def _flush(self) -> None:
        """Sends the pack; that before it may still be on its way."""
        pack, self._pack, self._pack_bytes = self._pack, [], 0
        if not pack:
            return
        entries: list[Entry] = []
        sums: list[bytes] = []
        data: list[Buffer] = []
        for entry, taken in zip(pack, self._source.take(pack), strict=True):
            if taken.failure is not None:
                self._tally.fail(entry.path, PosixError(taken.failure.code, taken.failure.detail))
                continue
            entries.append(self._target(entry))
            sums.append(taken.checksum)
            data.append(taken.data)
        # Asking costs a thirtieth of what storing them, each synced, does.
        there = self._sink.have_small(entries, sums) if entries else b""
        if any(there):
            for entry, is_there in zip(entries, there, strict=True):
                if is_there:
                    self._note(entry)
            left = [place for place, is_there in enumerate(there) if not is_there]
            entries = [entries[place] for place in left]
            sums = [sums[place] for place in left]
            data = [data[place] for place in left]
        if entries:
            self._stores.append((entries, self._sink.put_small(entries, sums, data)))
        if len(self._stores) > 1:
            self._settle()

    def _settle(self) -> None:
        entries, promise = self._stores.popleft()
        failures = {failure.item: failure for failure in promise.get()}
        for place, entry in enumerate(entries):
            failure = failures.get(place)
            if failure is None:
                self._note(entry)
                self._tally.sent += 1
                self._tally.sent_bytes += entry.size
            else:
                self._tally.fail(entry.path, PosixError(failure.code, failure.detail))
        for failure in failures.values():
            if failure.code in _FATAL:
                raise EndedTransferError

    def _note(self, entry: Entry) -> None:
        self._tally.files += 1
        self._tally.chunks += 1
        self._tally.bytes += entry.size


def raise_failure(failures: Sequence[Failure]) -> None:
    """Raises the first of them, if there is one."""
    for failure in failures:
        raise MpifsError(failure.detail, failure.code)
