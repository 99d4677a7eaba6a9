"""One regular file on its way out of the volume, and its parts."""

from __future__ import annotations

import errno
from typing import NamedTuple, Protocol

from mpifs.core.errors import PosixError
from mpifs.core.stage_messages import (
    Dress,
    StageDone,
    StageOutOrder,
    StageOutPart,
    encode_body,
)
from mpifs.core.types import ChunkRef
from mpifs.index.inode import Inode
from mpifs.job.stage_orders import Part


class State(NamedTuple):
    """By what a file of the volume is known again."""

    size: int
    mtime_ns: int
    ctime_ns: int


class OutEnd(Protocol):
    """What a file tells; called by the run's thread."""

    def again(self, part: OutPart, store: int, error: OSError) -> bool:
        """A worker could not do a part; whether it goes another way now."""

    def over(self, file: OutFile) -> None:
        """All parts are answered."""


class OutFile:
    """A file of the volume and where it goes.  `is_check`: only what lies there is compared, under
    its own name.  `is_whole`: one worker makes all of it."""

    __slots__ = (
        "checks", "dress", "ends", "error", "folder", "inode", "is_check", "is_whole", "name",
        "part_name", "parts_there", "path", "refs", "state", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        ends: OutEnd,
        path: bytes,
        inode: Inode,
        refs: list[tuple[int, ChunkRef]],
        folder: bytes,
        name: bytes,
        part_name: bytes,
        dress: Dress,
    ) -> None:
        self.ends = ends
        self.path = path
        self.inode = inode
        self.state = state_of(inode)
        self.refs = refs
        self.folder = folder
        self.name = name
        self.part_name = part_name
        self.dress = dress
        self.is_check = False
        self.is_whole = False
        self.checks = False
        self.waiting = 1
        self.parts_there = 0
        self.error: OSError | None = None

    def kept(self, chunk: int, ref: ChunkRef) -> int:
        """How many bytes of a chunk belong to the file: it may have been cut since."""
        return min(ref.length, self.state.size - chunk * self.inode.chunk_size)

    @property
    def has_holes(self) -> bool:
        """Whether some of it is in no chunk."""
        return sum(self.kept(chunk, ref) for chunk, ref in self.refs) != self.state.size

    def part_done(self) -> None:
        """One part less to wait for."""
        self.waiting -= 1
        if not self.waiting:
            self.ends.over(self)


class OutPart:
    """One chunk of a file.  `tried`: stores that could not give it, or could not write."""

    __slots__ = ("chunk", "file", "ref", "tried")

    def __init__(self, file: OutFile, chunk: int, ref: ChunkRef) -> None:
        self.file = file
        self.chunk = chunk
        self.ref = ref
        self.tried: set[int] = set()
        file.waiting += 1

    @property
    def folder(self) -> bytes:
        """See Part."""
        return self.file.folder

    @property
    def size(self) -> int:
        """See Part."""
        return self.ref.length

    def row(self, folder: int) -> StageOutPart:
        """As it stands in an order."""
        file, ref = self.file, self.ref
        return StageOutPart(
            folder,
            file.name if file.is_check else file.part_name,
            self.chunk * file.inode.chunk_size,
            file.inode.ino,
            self.chunk,
            ref.generation,
            ref.length,
            ref.checksum,
            file.checks,
            not file.is_check,
            file.name if file.is_whole else b"",
            file.dress if file.is_whole else None,
            file.kept(self.chunk, ref),
        )

    def answered(self, store: int, done: StageDone) -> None:
        """See Part."""
        if done.code:
            self.failed(store, PosixError(done.code, done.detail))
            return
        self.file.parts_there += done.was_there
        self.file.part_done()

    def failed(self, store: int, error: OSError) -> None:
        """See Part."""
        if self.file.is_check and error.errno == errno.EIO:
            pass  # what lies there is another file's
        elif self.file.ends.again(self, store, error):
            return
        self.file.error = self.file.error or error
        self.file.part_done()


def encode_out_order(probe: bytes, folders: list[bytes], rows: list[tuple[int, Part]]) -> bytes:
    """The body of a STAGE_OUT."""
    items = []
    for number, part in rows:
        assert isinstance(part, OutPart)
        items.append(part.row(number))
    return encode_body(StageOutOrder(folders, items, probe))


def state_of(inode: Inode) -> State:
    """As the file is now."""
    return State(inode.size, inode.mtime_ns, inode.ctime_ns)
