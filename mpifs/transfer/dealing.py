"""Scatter and gather: the chunks of one file dealt out to the workers, and put together again.

Chunk i of NAME is the file NAME.mpifs-chunks/0000000i on the worker ranks[i mod N].  When all of a
worker's chunks are durable it gets NAME.mpifs-chunks/manifest: what the file is, who has which
chunk, and every chunk's checksum, so that any one worker knows the whole.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from mpifs.core.checksum import CHECKSUM_BYTES, Buffer
from mpifs.core.errors import DamageError, PosixError, ProtocolError
from mpifs.core.layout import chunk_bytes as bytes_of_chunk
from mpifs.core.limits import TRANSFER_LIST_COUNT, TRANSFER_PACK_BYTES, TRANSFER_PACK_COUNT
from mpifs.core.messages import decode_args, encode_args
from mpifs.core.transfer_messages import FILE, FOLDER, Entry, ListReply, checked_chunks
from mpifs.transfer.chunks import sum_of
from mpifs.transfer.ends import Promise, Sink, Source, Taken
from mpifs.transfer.folder import joined, shown
from mpifs.transfer.long_file import all_sums
from mpifs.transfer.mover import raise_failure
from mpifs.transfer.source import changed
from mpifs.transfer.tally import Tally

SUFFIX = b".mpifs-chunks"
_MANIFEST = b"manifest"
_VERSION = 1


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What was dealt out; stored as MessagePack with its checksum behind it."""

    version: int
    entry: Entry
    chunk_bytes: int
    ranks: list[int]
    sums: bytes

    @property
    def count(self) -> int:
        """Chunks of the file."""
        return len(self.sums) // CHECKSUM_BYTES

    def sum_at(self, index: int) -> bytes:
        """The checksum of a chunk."""
        return self.sums[index * CHECKSUM_BYTES : (index + 1) * CHECKSUM_BYTES]

    def rank_of(self, index: int) -> int:
        """Who has a chunk."""
        return self.ranks[index % len(self.ranks)]

    def chunks_of(self, rank: int) -> list[int]:
        """The chunks of a worker."""
        return list(range(self.ranks.index(rank), self.count, len(self.ranks)))


def chunk_path(name: bytes, index: int) -> bytes:
    """Under which name a worker keeps a chunk."""
    return joined(name + SUFFIX, b"%08d" % index)


def plan(
    source: Source, name: bytes, chunk_bytes: int, ranks: Sequence[int], tally: Tally
) -> Manifest:
    """How a file is to be dealt out.  Raises OSError."""
    entry = source.look(name)
    if entry.kind != FILE:
        raise PosixError(errno.EINVAL, f"{shown(name)} is no regular file; scatter deals out one")
    try:
        checked_chunks(entry.size, chunk_bytes)
    except ProtocolError:
        raise PosixError(
            errno.EINVAL, "give a chunk size that is a power of two from 4KiB to 64MiB"
        ) from None
    sums = all_sums(source, entry, chunk_bytes, tally)
    return Manifest(_VERSION, entry, chunk_bytes, list(ranks), sums)


def deal(
    source: Source,
    manifest: Manifest,
    rank: int,
    sink: Sink,
    tally: Tally,
    on_stored: Callable[[int], None],
) -> None:
    """Gives one worker its chunks, those that it has not yet.  Raises OSError."""
    name, mine = manifest.entry.path, manifest.chunks_of(rank)
    size = manifest.entry.size
    tally.total = sum(bytes_of_chunk(index, size, manifest.chunk_bytes) for index in mine)
    folder = Entry(name + SUFFIX, FOLDER, 0, 0o700, 0, 0)
    raise_failure(sink.make([folder], is_last=False))
    per_pack = max(1, min(TRANSFER_PACK_COUNT, TRANSFER_PACK_BYTES // manifest.chunk_bytes))
    for start in range(0, len(mine), per_pack):
        tally.check()
        _deal_pack(source, manifest, mine[start : start + per_pack], sink, tally, on_stored)
    if source.look(name).version != manifest.entry.version:
        raise changed(manifest.entry)
    body = encode_args(manifest)
    whole = body + sum_of(body)
    path = joined(name + SUFFIX, _MANIFEST)
    entry = _entry(path, len(whole), manifest.entry)
    raise_failure(sink.put_small([entry], [sum_of(whole)], [whole]).get())
    tally.files += 1


def _entry(path: bytes, size: int, like: Entry) -> Entry:
    return Entry(path, FILE, size, 0o600, like.mtime_ns, like.atime_ns, blocks=-(-size // 512))


def _deal_pack(
    source: Source,
    manifest: Manifest,
    indexes: list[int],
    sink: Sink,
    tally: Tally,
    on_stored: Callable[[int], None],
) -> None:
    file, size = manifest.entry, manifest.chunk_bytes
    entries = [
        _entry(chunk_path(file.path, index), bytes_of_chunk(index, file.size, size), file)
        for index in indexes
    ]
    sums = [manifest.sum_at(index) for index in indexes]
    there = sink.have_small(entries, sums)
    left = [place for place, is_there in enumerate(there) if not is_there]
    data: list[Buffer] = []
    for place in left:
        chunk = source.read(file, indexes[place] * size, entries[place].size).get()
        if sum_of(chunk) != sums[place]:
            raise changed(file)
        data.append(chunk)
    if left:
        chosen = [entries[place] for place in left]
        raise_failure(sink.put_small(chosen, [sums[place] for place in left], data).get())
    for place, index in enumerate(indexes):
        tally.chunks += 1
        tally.bytes += entries[place].size
        if not there[place]:
            tally.sent += 1
            tally.sent_bytes += entries[place].size
            on_stored(index)


def read_manifest(source: Source, name: bytes) -> Manifest | None:
    """What a worker knows of a file that was dealt out; None if it has nothing of it.

    Raises DamageError, OSError.
    """
    path = joined(name + SUFFIX, _MANIFEST)
    try:
        entry = source.look(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    whole = bytes(source.read(entry, 0, entry.size).get())
    body = whole[:-CHECKSUM_BYTES]
    if sum_of(body) != whole[-CHECKSUM_BYTES:]:
        raise DamageError(f"{shown(path)} is damaged; scatter the file again")
    manifest = decode_args(body, Manifest)
    count = checked_chunks(manifest.entry.size, manifest.chunk_bytes)
    if manifest.version != _VERSION or len(manifest.sums) != count * CHECKSUM_BYTES:
        raise DamageError(f"{shown(path)} is of another version of mpifs")
    if not manifest.ranks:
        raise DamageError(f"{shown(path)} names no ranks")
    return manifest


class _Checked:
    """A promise of a chunk that is what was dealt out."""

    def __init__(self, promise: Promise[Buffer], manifest: Manifest, index: int) -> None:
        self._promise = promise
        self._manifest = manifest
        self._index = index

    def get(self) -> Buffer:
        data = self._promise.get()
        if sum_of(data) != self._manifest.sum_at(self._index):
            rank, name = self._manifest.rank_of(self._index), shown(self._manifest.entry.path)
            raise DamageError(
                f"worker {rank}: chunk {self._index} of {name} is damaged; scatter the file again"
            )
        return data


@dataclass(slots=True)
class DealtSource:
    """A file that was dealt out, as an ends.Source of this one file.  One thread."""

    manifest: Manifest
    sources: dict[int, Source]
    given: dict[int, list[int]] = field(default_factory=dict)
    """Chunks that each worker has given."""
    _chunks: dict[int, Entry] = field(default_factory=dict)

    def look(self, path: bytes) -> Entry:
        """See ends.Source: it does not change."""
        return self.manifest.entry

    def entries(self, path: bytes, after: bytes) -> ListReply:
        """See ends.Source: it is no folder."""
        return ListReply([], True)

    def take(self, entries: Sequence[Entry]) -> list[Taken]:
        """See ends.Source; not used for it."""
        raise ProtocolError("a file that was dealt out is not small")

    def sums(self, entry: Entry, chunk_bytes: int, first: int, count: int) -> bytes:
        """See ends.Source."""
        end = (first + count) * CHECKSUM_BYTES
        return self.manifest.sums[first * CHECKSUM_BYTES : end]

    def read(self, entry: Entry, offset: int, length: int) -> Promise[Buffer]:
        """See ends.Source: from the worker that has the chunk."""
        index = offset // self.manifest.chunk_bytes
        rank = self.manifest.rank_of(index)
        chunk = self._chunk(rank, index)
        if chunk.size != length:
            raise DamageError(f"worker {rank}: chunk {index} is {chunk.size} bytes long")
        self.given.setdefault(rank, []).append(index)
        return _Checked(self.sources[rank].read(chunk, 0, length), self.manifest, index)

    def _chunk(self, rank: int, index: int) -> Entry:
        """A chunk's file; many of them are asked for at once."""
        found = self._chunks.get(index)
        if found is not None:
            return found
        name = self.manifest.entry.path
        before = b"%08d" % (index - 1) if index else b""
        page = self.sources[rank].entries(name + SUFFIX, before)
        for entry in page.entries[:TRANSFER_LIST_COUNT]:
            last = entry.path.rpartition(b"/")[2]
            if last.isdigit() and entry.kind == FILE:
                number = int(last)
                if number < self.manifest.count and self.manifest.rank_of(number) == rank:
                    self._chunks[number] = entry
        if index not in self._chunks:
            raise PosixError(
                errno.ENOENT,
                f"worker {rank}: chunk {index} of {shown(name)} is not there; scatter it again",
            )
        return self._chunks[index]
