"""Gets of one environment after a rest, when its pages may have left the memory.

The first one asks for its value's pages before LMDB searches it (valuepages.py says why): 1 MiB
from a cold store took 10 ms, and takes 2.  Those that follow are left to the kernel, whose large
windows pay as soon as a neighbour is wanted, too: readers of files that fit into memory, several at
once or at random, came out slower when each get asked for its own value.
"""

from __future__ import annotations

import os
import time

from mpifs.core.limits import COLD_QUIET_S
from mpifs.datafile import DATA_NAME
from mpifs.kv import ReadTransaction
from mpifs.valuepages import bring_in


class ColdGets:
    """Any thread; what it remembers only decides what is faster."""

    def __init__(self, path: str) -> None:
        self._file = os.path.join(path, DATA_NAME)
        self._last_s = float("-inf")

    def get(self, transaction: ReadTransaction, stored: bytes) -> memoryview | None:
        """The stored value of a chunk (by its encoded key), if there is one; see
        ReadTransaction.get."""
        now = time.monotonic()
        if now - self._last_s > COLD_QUIET_S:
            bring_in(self._file, "chunks", stored)
        self._last_s = now
        return transaction.get("chunks", stored)
