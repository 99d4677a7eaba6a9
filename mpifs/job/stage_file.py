"""One regular file on its way into the volume, and its parts."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Protocol

from mpifs.core.errors import PosixError
from mpifs.core.stage_messages import Identity, StageDone, StageOrder, StagePart, encode_body
from mpifs.core.types import ChunkRef
from mpifs.index.inode import Inode
from mpifs.index.staged import Numbers
from mpifs.job.stage_orders import Part

LinkKey = tuple[int, int]
"""(st_dev, st_ino) of a source with several names."""


class FileEnd(Protocol):
    """What a file tells; called by the run's thread."""

    def stored(self, file: StagedFile, chunk: int, ref: ChunkRef) -> None:
        """A chunk is durable on all its stores."""

    def lost(self, part: InPart) -> None:
        """A chunk is not wanted any more, or could not be stored everywhere."""

    def is_blind(self, part: InPart, store: int, done: StageDone) -> bool:
        """Whether the worker does not see a file that is there: then the part goes another way."""

    def resend(self, part: InPart) -> None:
        """A worker does not see the source: rank 0 is to read and send this part."""

    def settled(self, part: InPart) -> None:
        """A part is durable, or it is garbage."""

    def over(self, file: StagedFile) -> None:
        """All parts are answered."""


class StagedFile:
    """A source file, where it is to go, and what has become of its parts.

    `waiting` counts parts that are not answered, and one while parts are still being added.
    `partial` is the inode of a large file that is in the index before it is whole.
    """

    __slots__ = (
        "chunk_size",
        "ends",
        "error",
        "folder",
        "found",
        "identity",
        "is_over",
        "key",
        "name",
        "numbers",
        "parent",
        "partial",
        "refs",
        "replaces",
        "replicas",
        "target",
        "waiting",
        "xattrs",
    )  # fmt: skip

    def __init__(
        self,
        ends: FileEnd,
        folder: bytes,
        name: bytes,
        found: os.stat_result,
        parent: Inode,
        target: bytes,
        numbers: Numbers,
    ) -> None:
        self.ends = ends
        self.folder = folder
        self.name = name
        self.found = found
        self.identity = Identity(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        self.parent = parent
        self.target = target
        self.numbers = numbers
        self.chunk_size = parent.chunk_size
        self.replicas = parent.replicas
        self.refs: list[tuple[int, ChunkRef]] = []
        self.xattrs: list[tuple[bytes, bytes]] = []
        self.waiting = 1
        self.error: OSError | None = None
        self.is_over = False
        self.replaces = False
        self.partial: Inode | None = None
        self.key: LinkKey | None = None

    @property
    def path(self) -> bytes:
        """Of the source."""
        return os.path.join(self.folder, self.name)

    def part_done(self) -> None:
        """One part less to wait for."""
        self.waiting -= 1
        if not self.waiting:
            self.ends.over(self)


class InPart:
    """One chunk of a file.  Owned by the run's thread."""

    __slots__ = (
        "checksum", "chunk", "error", "file", "generation", "is_unseen", "length", "stores",
        "waiting",
    )  # fmt: skip

    def __init__(
        self, file: StagedFile, chunk: int, generation: int, length: int, stores: tuple[int, ...]
    ) -> None:
        self.file = file
        self.chunk = chunk
        self.generation = generation
        self.length = length
        self.stores = stores
        self.waiting = len(stores)
        self.checksum = b""
        self.error: OSError | None = None
        self.is_unseen = False
        file.waiting += 1

    @property
    def folder(self) -> bytes:
        """See Part."""
        return self.file.folder

    @property
    def size(self) -> int:
        """See Part."""
        return self.length

    @property
    def offset(self) -> int:
        """Where it begins in the file."""
        return self.chunk * self.file.chunk_size

    def answered(self, store: int, done: StageDone) -> None:
        """See Part.  Two replicas that were read apart must be the same bytes."""
        if done.code:
            if self.file.ends.is_blind(self, store, done):
                self.is_unseen = True
            else:
                self.error = self.error or PosixError(done.code, done.detail)
        elif self.checksum and done.checksum != self.checksum:
            sentence = "changed while it was staged; run the same command again"
            self.error = self.error or PosixError(errno.ESTALE, sentence)
        else:
            self.checksum = done.checksum
        self._one_less()

    def failed(self, store: int, error: OSError) -> None:
        """See Part."""
        self.error = self.error or error
        self._one_less()

    def _one_less(self) -> None:
        self.waiting -= 1
        if self.waiting:
            return
        if self.is_unseen and self.error is None:
            self.file.ends.resend(self)
        else:
            self._settle()

    def sent(self, checksum: bytes, error: OSError | None) -> None:
        """Rank 0 has read it and sent it to all its stores, or could not.  What a worker has read
        before is the same: else it has refused the second one."""
        self.checksum, self.error = checksum, error
        self._settle()

    def _settle(self) -> None:
        """All stores have answered."""
        file = self.file
        if self.error is not None:
            file.error = file.error or self.error
            file.ends.lost(self)
        else:
            ref = ChunkRef(self.generation, self.length, self.checksum, self.stores)
            file.ends.stored(file, self.chunk, ref)
        file.ends.settled(self)
        file.part_done()


def encode_order(folders: list[bytes], rows: list[tuple[int, Part]]) -> bytes:
    """The body of a STAGE_IN."""
    items = []
    for number, part in rows:
        assert isinstance(part, InPart)
        file = part.file
        items.append(
            StagePart(
                number,
                file.name,
                file.identity,
                part.chunk * file.chunk_size,
                part.length,
                file.numbers.ino,
                part.chunk,
                part.generation,
            )
        )
    return encode_body(StageOrder(folders, items))


def data_chunks(path: bytes, found: os.stat_result, chunk_size: int) -> Iterable[int]:
    """The chunks of a file that hold data, in order; the others are holes.  Raises OSError."""
    count = -(-found.st_size // chunk_size)
    if found.st_blocks * 512 >= found.st_size:
        return range(count)
    return _sparse_chunks(path, found.st_size, chunk_size)


def _sparse_chunks(path: bytes, size: int, chunk_size: int) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise PosixError(errno.ESTALE, "changed while it was staged")
        chunk = position = 0
        while position < size:
            try:
                start = os.lseek(file, position, os.SEEK_DATA)
                end = os.lseek(file, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                start, end = position, size  # a file system that does not know its holes
            for each in range(max(chunk, start // chunk_size), -(-min(end, size) // chunk_size)):
                yield each
                chunk = each + 1
            position = max(end, position + 1)
    finally:
        os.close(file)
