"""Gets of one environment that may have to wait for the disk.

After a rest, and as long as gets are slow, a value's pages are asked for before LMDB searches it
(valuepages.py says why): a get of 1 MiB from a cold store took 10 ms, and takes 2.  From memory
that would cost 0.1 ms for nothing; a reader who goes through a file in order is served better by
the large window that the kernel reads by itself.
"""

from __future__ import annotations

import os
import time

from mpifs.core.image import encode_key
from mpifs.core.limits import COLD_GET_S, COLD_QUIET_S, MIB
from mpifs.core.types import ChunkKey
from mpifs.datafile import DATA_NAME
from mpifs.kv import ReadTransaction
from mpifs.valuepages import bring_in

_STEP_MAX = 8
"""Chunks of a file that is read in order lie so far apart on one store, or always equally far."""


class ColdGets:
    """Any thread; what it remembers only decides what is faster."""

    def __init__(self, path: str) -> None:
        self._file = os.path.join(path, DATA_NAME)
        self._last = ChunkKey(0, 0, 0)
        self._step = 0
        self._ended_s = float("-inf")
        self._is_slow = False

    def get(self, transaction: ReadTransaction, key: ChunkKey) -> memoryview | None:
        """The stored value of a chunk, if there is one; see ReadTransaction.get."""
        stored = encode_key(key)
        began = time.monotonic()
        follows = self._follows(key)
        if began - self._ended_s > COLD_QUIET_S or (self._is_slow and not follows):
            bring_in(self._file, "chunks", stored)
        value = transaction.get("chunks", stored)
        self._ended_s = time.monotonic()
        size = 0 if value is None else len(value)
        self._is_slow = self._ended_s - began > COLD_GET_S * max(1.0, size / MIB)
        return value

    def _follows(self, key: ChunkKey) -> bool:
        """Whether this may be a reader who goes on, in the same file or to the next one."""
        last, self._last = self._last, key
        if key.inode != last.inode:
            return 0 < key.inode - last.inode <= _STEP_MAX
        step, self._step = self._step, key.chunk - last.chunk
        return 0 < self._step <= _STEP_MAX or 0 < self._step == step
