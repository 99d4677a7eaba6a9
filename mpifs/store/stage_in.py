"""Reading parts of source files into chunk images, and noticing that a source has changed.

A part is good if the file, after it was read, is still the one that was found by the walk: same
size, mtime, ctime and inode number.  All parts of a file are compared with the same look, so they
are parts of one state of it (as far as the file system's clock tells changes apart).
"""

from __future__ import annotations

import errno
import os
import stat

from mpifs.core.block_table import add_table, stored_bytes
from mpifs.core.checksum import function_of
from mpifs.core.errors import PosixError
from mpifs.core.image import IMAGE_HEADER_BYTES, ImageHeader, encode_header_into, encode_key
from mpifs.core.stage_messages import Identity, StagePart
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.store.chunks import Image

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
CHANGED = errno.ESTALE
"""Of a part whose file is no longer what the walk saw."""


class PartReader:
    """Reads the parts of one order; used by one thread, as a context manager.

    The folder and the file that were read last stay open: parts of one come together.
    """

    def __init__(self, folders: list[bytes], kind: ChecksumKind) -> None:
        self._folders = folders
        self._kind = kind
        self._sum = function_of(kind)
        self._folder = -1
        self._folder_number = -1

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder >= 0:
            os.close(self._folder)

    def read(self, item: StagePart) -> Image:
        """The image of a part.  Raises OSError; ESTALE when the source has changed."""
        if item.folder != self._folder_number:
            self._enter(item.folder)
        buffer = bytearray(stored_bytes(item.length))
        end = IMAGE_HEADER_BYTES + item.length
        payload = memoryview(buffer)[IMAGE_HEADER_BYTES:end]
        read_part(self._folder, item.name, item.source, payload, item.offset)
        checksum = self._sum(payload)
        key = ChunkKey(item.inode, item.chunk, item.generation)
        encode_header_into(buffer, 0, self._kind, key, item.length, checksum)
        add_table(buffer, encode_key(key), item.length, checksum, self._kind)
        header = ImageHeader(self._kind, *key, item.length, checksum)
        return Image(header, memoryview(buffer))

    def _enter(self, number: int) -> None:
        if self._folder >= 0:
            folder, self._folder, self._folder_number = self._folder, -1, -1
            os.close(folder)
        self._folder = os.open(self._folders[number], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folder_number = number


def read_part(
    folder: int | None, name: bytes, source: Identity, into: memoryview, offset: int
) -> None:
    """Fills `into` from `offset` of the file `name` in the open folder (None: `name` is a path).

    Raises OSError; ESTALE when the file is not, or no longer, `source`.
    """
    try:
        file = os.open(name, _FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _changed() from None
        raise
    try:
        count = os.preadv(file, [into], offset)
        while 0 < count < len(into):
            more = os.preadv(file, [into[count:]], offset + count)
            count = count + more if more else -1
        found = os.fstat(file)
    finally:
        os.close(file)
    if count != len(into) or not stat.S_ISREG(found.st_mode) or identity_of(found) != source:
        raise _changed()


def identity_of(found: os.stat_result) -> Identity:
    """By what a file is known again."""
    return Identity(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _changed() -> PosixError:
    return PosixError(CHANGED, "changed while it was staged; run the same command again")
