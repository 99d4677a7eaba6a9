"""The two ends of a transfer as protocols: where files come from, and where they go.

Each end is here (LocalSource, LocalSink) or on another rank (RemoteSource, RemoteSink); who moves
files does not know which.  What may take long gives a promise, so that several are under way.
All raise OSErrors with a sentence.  Used by one thread at a time, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from mpifs.core.checksum import Buffer
from mpifs.core.transfer_messages import BeginReply, Entry, Failure, ListReply

_Value_co = TypeVar("_Value_co", covariant=True)
_Made = TypeVar("_Made")


class Promise(Protocol[_Value_co]):
    """Something under way."""

    def get(self) -> _Value_co:
        """Waits for it; raises what became of it."""
        ...


class Kept(Generic[_Made]):
    """A promise of what is there already."""

    __slots__ = ("_value",)

    def __init__(self, value: _Made) -> None:
        self._value = value

    def get(self) -> _Made:
        """See Promise."""
        return self._value


class Taken(NamedTuple):
    """A small file: its bytes and their checksum, or why it could not be read."""

    data: Buffer
    checksum: bytes
    failure: Failure | None


class Source(Protocol):
    """Where files come from.  A file that is no longer `entry.version` is ESTALE."""

    def look(self, path: bytes) -> Entry: ...

    def entries(self, path: bytes, after: bytes) -> ListReply: ...

    def sums(self, entry: Entry, chunk_bytes: int, first: int, count: int) -> bytes:
        """Checksums of these chunks, one behind the other."""
        ...

    def read(self, entry: Entry, offset: int, length: int) -> Promise[Buffer]:
        """Bytes of a file; never less than `length`."""
        ...

    def take(self, entries: Sequence[Entry]) -> list[Taken]:
        """Small files, one for each entry."""
        ...


class Sink(Protocol):
    """Where files go.  `entry.path` is where a file is to stand."""

    def begin(self, entry: Entry, chunk_bytes: int, checksum: bytes) -> BeginReply: ...

    def have(self, number: int, first: int, sums: bytes, *, of_file: bool) -> bytes:
        """One byte per chunk: whether it is there, compared by its checksum."""
        ...

    def write(self, number: int, index: int, data: Buffer, checksum: bytes) -> Promise[None]:
        """Stores a chunk; `data` must not change until the promise is kept."""
        ...

    def finish(self, number: int) -> None:
        """Durable and named.  Raises DamageError unless every chunk has been seen to be there."""
        ...

    def abandon(self, number: int) -> None:
        """Ends the reception; the partial file stays.  Never raises."""
        ...

    def have_small(self, entries: Sequence[Entry], sums: Sequence[bytes]) -> bytes:
        """One byte per file: whether it is there with that content."""
        ...

    def put_small(
        self, entries: Sequence[Entry], sums: Sequence[bytes], data: Sequence[Buffer]
    ) -> Promise[list[Failure]]:
        """Stores whole files, durably; which ones failed."""
        ...

    def make(self, entries: Sequence[Entry], *, is_last: bool) -> list[Failure]:
        """Makes folders and links, or (is_last) gives folders their modes and times."""
        ...
