"""Where files go, on this rank's own disk.  Any thread; see ends.Sink."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
import time
from collections.abc import Sequence

from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError, PosixError, ProtocolError
from mpifs.core.limits import TRANSFER_RECEIVING_MAX, TRANSFER_RECEIVING_S
from mpifs.core.transfer_messages import FOLDER, LINK, BeginReply, Entry, Failure
from mpifs.transfer.ends import Kept
from mpifs.transfer.folder import LocalFolder, leads_out, parts_of, shown
from mpifs.transfer.receiving import Reception
from mpifs.transfer.small_files import has_file, put_files

_log = logging.getLogger(__name__)


class LocalSink:
    """`_open` is guarded by `_lock`."""

    def __init__(self, folder: LocalFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._open: dict[int, Reception] = {}

    def begin(self, entry: Entry, chunk_bytes: int, checksum: bytes) -> BeginReply:
        """See ends.Sink.  Raises PosixError(EAGAIN) when too many are under way."""
        reception = Reception(self._folder, entry, chunk_bytes, checksum)
        has_one = reception.has_file()
        with self._lock:
            if len(self._open) >= TRANSFER_RECEIVING_MAX:
                self._drop_old()
            if len(self._open) >= TRANSFER_RECEIVING_MAX:
                raise PosixError(errno.EAGAIN, "this rank receives too many files already")
            number = next(self._numbers)
            self._open[number] = reception
        return BeginReply(number, has_one)

    def _drop_old(self) -> None:
        """Ends those whose sender has not been heard for long."""
        limit = time.monotonic() - TRANSFER_RECEIVING_S
        for number, reception in list(self._open.items()):
            if reception.used_s < limit:
                del self._open[number]
                reception.abandon()

    def _reception(self, number: int) -> Reception:
        with self._lock:
            reception = self._open.get(number)
        if reception is None:
            raise ProtocolError("a transfer that this rank does not know")
        return reception

    def have(self, number: int, first: int, sums: Buffer, *, of_file: bool) -> bytes:
        """See ends.Sink."""
        return self._reception(number).have(first, sums, of_file=of_file)

    def write(self, number: int, index: int, data: Buffer, checksum: bytes) -> Kept[None]:
        """See ends.Sink."""
        self._reception(number).write(index, data, checksum)
        return Kept(None)

    def finish(self, number: int) -> None:
        """See ends.Sink."""
        self._reception(number).finish()
        with self._lock:
            self._open.pop(number, None)

    def abandon(self, number: int) -> None:
        """See ends.Sink."""
        with self._lock:
            reception = self._open.pop(number, None)
        if reception is not None:
            reception.abandon()

    def close(self) -> None:
        """Abandons all."""
        for number in list(self._open):
            self.abandon(number)

    def have_small(self, entries: Sequence[Entry], sums: Sequence[bytes]) -> bytes:
        """See ends.Sink."""
        if len(entries) != len(sums):
            raise ProtocolError("files without their checksums")
        return bytes(
            has_file(self._folder, entry, checksum)
            for entry, checksum in zip(entries, sums, strict=True)
        )

    def put_small(
        self, entries: Sequence[Entry], sums: Sequence[bytes], data: Sequence[Buffer]
    ) -> Kept[list[Failure]]:
        """See ends.Sink."""
        return Kept(put_files(self._folder, entries, sums, data))

    def make(self, entries: Sequence[Entry], *, is_last: bool) -> list[Failure]:
        """See ends.Sink."""
        failures = []
        for place, entry in enumerate(entries):
            try:
                if is_last:
                    self._adorn(entry)
                elif entry.kind == FOLDER:
                    self._make_folder(entry)
                elif entry.kind == LINK:
                    self._make_link(entry)
                else:
                    raise ProtocolError(f"{shown(entry.path)} is neither folder nor link")
            except MpifsError as error:
                failures.append(Failure(place, error.errno or errno.EIO, str(error)))
            except OSError as error:
                code = error.errno or errno.EIO
                sentence = f"{shown(entry.path)}: {os.strerror(code)}"
                failures.append(Failure(place, code, sentence))
        return failures

    def _make_folder(self, entry: Entry) -> None:
        """With all rights of its owner: its content is to come."""
        with self._folder.opened(entry.path, make=True) as folder:
            mode = stat.S_IMODE(os.fstat(folder).st_mode)
            if mode & 0o700 != 0o700:
                os.fchmod(folder, mode | 0o700)

    def _adorn(self, entry: Entry) -> None:
        if not parts_of(entry.path):
            return  # the rank's own folder stays 0700
        with self._folder.opened(entry.path) as folder:
            os.fchmod(folder, entry.mode & 0o7777)
            os.utime(folder, ns=(entry.atime_ns, entry.mtime_ns))
            os.fsync(folder)

    def _make_link(self, entry: Entry) -> None:
        if leads_out(entry.path, entry.link):
            raise PosixError(
                errno.ELOOP,
                f"{shown(entry.path)} is a symbolic link that leads out of the rank's folder; "
                "it was left out",
            )
        with self._folder.place(entry.path, make=True) as (folder, name):
            try:
                os.symlink(entry.link, name, dir_fd=folder)
            except FileExistsError:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                is_same = stat.S_ISLNK(found.st_mode)
                if not is_same or os.readlink(name, dir_fd=folder) != entry.link:
                    raise PosixError(
                        errno.EEXIST, f"{shown(entry.path)} is there already as something else"
                    ) from None
            os.utime(
                name, ns=(entry.atime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False
            )
