"""What ranks tell each other to move files between their local disks.  See doc/wire.md, section 10.

Paths are bytes, relative to the folder of the rank that is asked; "" is that folder itself.
"""

from __future__ import annotations

import msgspec

from mpifs.core.errors import PosixError, ProtocolError
from mpifs.core.layout import is_chunk_size
from mpifs.core.limits import (
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    FILE_BYTES_MAX,
    TRANSFER_CHUNK_BYTES,
    TRANSFER_CHUNKS_LIMIT,
    TRANSFER_CHUNKS_MAX,
)

FILE, FOLDER, LINK, OTHER = 1, 2, 3, 4
"""What an entry is; OTHER (FIFOs, devices, sockets) is not moved."""
_EFBIG = 27


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One file, folder or symbolic link; times in ns, `blocks` of 512 bytes."""

    path: bytes
    kind: int
    size: int
    mode: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int = 0
    device: int = 0
    inode: int = 0
    blocks: int = 0
    link: bytes = b""

    @property
    def version(self) -> tuple[int, int, int, int, int]:
        """Another one after any change of the file, or when another file has its name."""
        return self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns

    @property
    def is_sparse(self) -> bool:
        """Whether there are holes in it."""
        return self.kind == FILE and self.blocks * 512 < self.size


class Local(msgspec.Struct, frozen=True):
    """LOCAL: the folder in which each rank of a host has its own, `rank-K`."""

    folder: bytes
    rank: int


class LocalReply(msgspec.Struct, frozen=True):
    """Who answers, and the free bytes of its disk."""

    host: str
    pid: int
    free: int


class PathAsk(msgspec.Struct, frozen=True, array_like=True):
    """LOOK and LIST_FOLDER: entries of a folder in the order of names, those behind `after`."""

    path: bytes
    after: bytes = b""


class ListReply(msgspec.Struct, frozen=True, array_like=True):
    """Entries of a folder; `is_end`: there are no more behind them."""

    entries: list[Entry]
    is_end: bool


class SumsAsk(msgspec.Struct, frozen=True, array_like=True):
    """`count` chunks of a file from `first` on; ESTALE if it is not of that version any more."""

    entry: Entry
    chunk_bytes: int
    first: int
    count: int


class ReadAsk(msgspec.Struct, frozen=True, array_like=True):
    """Bytes of a file; ESTALE as above."""

    entry: Entry
    offset: int
    length: int


class Take(msgspec.Struct, frozen=True, array_like=True):
    """Small files to be read whole."""

    entries: list[Entry]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An item that failed: its place in the request, an errno, a sentence."""

    item: int
    code: int
    detail: str


class TakeReply(msgspec.Struct, frozen=True, array_like=True):
    """Checksums of the files, b"" for those that failed and are not in the body."""

    sums: list[bytes]
    failures: list[Failure]


class Failures(msgspec.Struct, frozen=True, array_like=True):
    """The items that failed; all others are done."""

    failures: list[Failure]


class Begin(msgspec.Struct, frozen=True, array_like=True):
    """A file to be received under `entry.path`; `checksum` is sum_of_sums of its chunks' sums."""

    entry: Entry
    chunk_bytes: int
    checksum: bytes


class BeginReply(msgspec.Struct, frozen=True, array_like=True):
    """`has_file`: a file of that name and size is there, which may be the same one."""

    number: int
    has_file: bool


class Have(msgspec.Struct, frozen=True, array_like=True):
    """Chunks from `first` on, their sums in the body, compared with the file that has the name
    already (`of_file`) or with the partial file, which is made if it is not there."""

    number: int
    first: int
    of_file: bool


class HaveReply(msgspec.Struct, frozen=True, array_like=True):
    """One byte per chunk or file: 1 if it is there."""

    there: bytes


class Write(msgspec.Struct, frozen=True, array_like=True):
    """One chunk, its bytes in the body."""

    number: int
    index: int
    checksum: bytes


class Number(msgspec.Struct, frozen=True, array_like=True):
    """FINISH and ABANDON of what BEGIN has numbered, PULL_POLL and PULL_CANCEL of a pull; `after`:
    errors of a pull that are known already."""

    number: int
    after: int = 0


class SmallFiles(msgspec.Struct, frozen=True, array_like=True):
    """Files with their checksums; for PUT_SMALL their bytes lie one behind the other in `data`."""

    entries: list[Entry]
    sums: list[bytes]
    data: bytes = b""


class Make(msgspec.Struct, frozen=True, array_like=True):
    """Folders and links to be made; `is_last`: folders get their modes and times."""

    entries: list[Entry]
    is_last: bool


class Pull(msgspec.Struct, frozen=True, array_like=True):
    """Names to be fetched from `source`, to stand under `into`."""

    source: int
    names: list[bytes]
    into: bytes


class PullNumber(msgspec.Struct, frozen=True, array_like=True):
    """Which pull it is, for PULL_POLL."""

    number: int


class TallyReport(msgspec.Struct, frozen=True, array_like=True):
    """How far a transfer is; `size` bytes of `total` are there.  `errors` are (path, sentence),
    those behind `Number.after`."""

    files: int
    folders: int
    size: int
    total: int
    chunks: int
    sent: int
    sent_bytes: int
    current: bytes
    errors: list[tuple[bytes, str]]
    error_count: int
    is_over: bool


def chunk_bytes_of(size: int) -> int:
    """Bytes of the chunks in which a file of `size` bytes travels.  Raises PosixError(EFBIG)."""
    chunk = TRANSFER_CHUNK_BYTES
    while chunk < CHUNK_BYTES_MAX and -(-size // chunk) > TRANSFER_CHUNKS_MAX:
        chunk *= 2
    if -(-size // chunk) > TRANSFER_CHUNKS_LIMIT:
        raise PosixError(_EFBIG, f"a file of {size:,} bytes is too long to be moved")
    return chunk


def checked_chunks(size: int, chunk_bytes: int) -> int:
    """How many chunks that file has.  Raises ProtocolError for impossible numbers."""
    if not 0 <= size <= FILE_BYTES_MAX or not is_chunk_size(
        chunk_bytes, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX
    ):
        raise ProtocolError("a file of an impossible size or chunk size")
    count = -(-size // chunk_bytes)
    if count > TRANSFER_CHUNKS_LIMIT:
        raise ProtocolError("a file of too many chunks")
    return count
