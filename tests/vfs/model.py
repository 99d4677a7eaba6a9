"""One file of a volume beside a bytearray that says what it must hold."""

from __future__ import annotations

import os
import random

from mpifs.core.types import Caller
from tests.vfs.loopback import LoopbackVolume, content


class Model:
    """Does the same to `/file` (`fh`, for reading and writing) and to `data`."""

    def __init__(self, volume: LoopbackVolume, chance: random.Random) -> None:
        self.volume = volume
        self.vfs = volume.open()
        self.fh = self.vfs.create(b"/file", 0o644, os.O_RDWR, Caller(0, 0))
        self.data = bytearray()
        self._chance = chance

    def note_write(self, data: bytes, offset: int) -> None:
        """The file has taken `data`."""
        self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
        self.data[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        """Both ways."""
        self.vfs.truncate(b"/file", size, self.fh)
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def check_part(self, end: int, length_max: int, what: object) -> None:
        """Reads somewhere before `end`."""
        offset, length = self._chance.randrange(end), self._chance.randrange(1, length_max)
        into = bytearray(length)
        count = self.vfs.read(self.fh, memoryview(into), offset)
        assert into[:count] == self.data[offset : offset + length], what

    def check_all(self) -> None:
        """The file as it is, durable, and opened again."""
        assert content(self.vfs) == self.data
        self.vfs.fsync(self.fh)
        assert self.vfs.writeback.dirty_bytes == 0
        self.volume.close()
        assert content(self.volume.open()) == self.data
        self.volume.close()
