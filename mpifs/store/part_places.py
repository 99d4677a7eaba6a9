"""Where in the data file the large chunks lie of which parts are being read.

py-lmdb reads a byte of each page of a value that it finds: 257 misses of the processor's caches for
1 MiB, four times as long as all the rest of an answer to GET_PART.  A chunk's image stays in its
place as long as it is stored; so a place that was found once is read with pread.

It is a hint.  What lies there may have been deleted and its pages used again: whoever asks compares
each block with the sums of a table that belongs to the chunk.
"""

from __future__ import annotations

import contextlib
import io
import os

from mpifs.core.block_table import checked_table, table_bytes
from mpifs.core.image import IMAGE_HEADER_BYTES, slot_bytes, unpack_header
from mpifs.core.limits import PART_PLACES_MAX
from mpifs.datafile import DATA_NAME
from mpifs.valuepages import place_of


class PartPlaces:
    """Of one store, whose folder is `folder`.  One thread."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, "large", DATA_NAME)
        self._file: io.FileIO | None = None
        self._places: dict[bytes, int] = {}

    def read(self, key: bytes, begin: int, end: int) -> bytes | None:
        """Payload bytes [begin, end) of a chunk by its encoded key; None if its place is not known,
        or cannot be read."""
        place, file = self._places.get(key), self._file
        if place is None or file is None:
            return None
        with contextlib.suppress(OSError):
            found = os.pread(file.fileno(), end - begin, place + begin)
            if len(found) == end - begin:
                return found
        del self._places[key]
        return None

    def table(self, key: bytes, length: int, checksum: bytes) -> bytes:
        """The sums of a chunk's blocks that are stored with it; b"" if there are none that are
        right.  `length` and `checksum` are the chunk's."""
        size = table_bytes(length)
        if size and (key in self._places or self.find(key, length, checksum)):
            at = slot_bytes(length)
            stored = self.read(key, at, at + size)
            if stored is not None:
                return checked_table(stored, key, length, checksum) or b""
        return b""

    def find(self, key: bytes, length: int, checksum: bytes) -> bool:
        """Looks up the place of a chunk that may be in `large/`; it takes 0.1 ms.  Never raises."""
        with contextlib.suppress(OSError):
            if self._file is None:
                self._file = io.FileIO(self._path)
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            fd = self._file.fileno()
            place = place_of(fd, "chunks", key)
            head = b"" if place is None else os.pread(fd, IMAGE_HEADER_BYTES, place)
            if place is None or len(head) < IMAGE_HEADER_BYTES:
                return False
            if unpack_header(head) != (key, length, checksum):
                return False
            while len(self._places) >= PART_PLACES_MAX:
                del self._places[next(iter(self._places))]
            self._places[key] = place + IMAGE_HEADER_BYTES
            return True
        return False
