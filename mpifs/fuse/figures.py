"""What the kernel has asked of this process: how often each kind of request, and how long it took.

Each loop thread counts in lists of its own, so nothing is locked and nothing waits; who reads adds
them up and may miss a request that is just being counted.  About 0.4 microseconds a request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, NamedTuple, Protocol

from mpifs.core.limits import FIGURES_BUCKETS, FIGURES_SLOW_MAX, FIGURES_SLOW_S
from mpifs.core.types import Caller

KINDS = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD",
    9: "MKDIR", 10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ",
    16: "WRITE", 17: "STATFS", 18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR",
    23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH", 26: "INIT", 27: "OPENDIR", 28: "READDIR",
    29: "RELEASEDIR", 30: "FSYNCDIR", 31: "GETLK", 32: "SETLK", 33: "SETLKW", 34: "ACCESS",
    35: "CREATE", 36: "INTERRUPT", 37: "BMAP", 38: "DESTROY", 39: "IOCTL", 40: "POLL",
    41: "NOTIFY_REPLY", 42: "BATCH_FORGET", 43: "FALLOCATE", 44: "READDIRPLUS", 45: "RENAME2",
    46: "LSEEK", 47: "COPY_FILE_RANGE", 49: "SYNCFS", 50: "TMPFILE", 51: "STATX",
}  # fmt: skip
"""Names of include/uapi/linux/fuse.h, by opcode."""
_OTHER = 0
_COUNT, _SECONDS, _ERRORS, _BUCKETS = range(4)
"""Places in a row; from the last one on stand the buckets."""


class Asked(Protocol):
    """What is looked at of a slow request."""

    @property
    def caller(self) -> Caller:
        """Who asked."""
        ...


class Slow(NamedTuple):
    """One request that took long."""

    kind: str
    seconds: float
    ended_s: float
    """Of the epoch."""
    pid: int
    """The process that asked; 0 is the kernel itself."""


class Counter:
    """One thread's counts; that thread alone writes."""

    __slots__ = ("is_refused", "rows", "slow")

    def __init__(self) -> None:
        self.is_refused = False
        """Set while a request is served that is answered with an error."""
        size = max(KINDS) + 1
        self.rows: list[list[Any]] = [[0, 0.0, 0, *[0] * FIGURES_BUCKETS] for _ in range(size)]
        self.slow: deque[Slow] = deque(maxlen=FIGURES_SLOW_MAX)

    def count(self, opcode: int, seconds: float, request: Asked) -> None:
        """One request has been served."""
        try:
            row = self.rows[opcode]
        except IndexError:
            row = self.rows[_OTHER]
        row[_COUNT] += 1
        row[_SECONDS] += seconds
        if self.is_refused:
            self.is_refused = False
            row[_ERRORS] += 1
        place = int(seconds * 1e6).bit_length()
        if seconds < FIGURES_SLOW_S:
            row[_BUCKETS + place] += 1
        else:
            row[_BUCKETS + min(place, FIGURES_BUCKETS - 1)] += 1
            self.slow.append(
                Slow(KINDS.get(opcode, "OTHER"), seconds, time.time(), request.caller.pid)
            )


class Figures:
    """The counters of all threads.  `_counters` only grows: loop threads live as long as a mount,
    of which a process has one."""

    def __init__(self) -> None:
        self._here = threading.local()
        self._counters: list[Counter] = []

    def counter(self) -> Counter:
        """A new one, for the calling thread."""
        made = Counter()
        self._here.counter = made
        self._counters.append(made)
        return made

    def refused(self) -> None:
        """The request that this thread serves is answered with an error."""
        counter = getattr(self._here, "counter", None)
        if counter is not None:
            counter.is_refused = True

    def document(self) -> dict[str, Any]:
        """Everything since the mount.  `buckets[i]` counts requests that took less than 2**i
        microseconds, and not less than half of it."""
        kinds = []
        counters = list(self._counters)
        for opcode in range(max(KINDS) + 1):
            rows = [counter.rows[opcode] for counter in counters]
            count = sum(row[_COUNT] for row in rows)
            if count:
                buckets = [
                    sum(column) for column in zip(*(r[_BUCKETS:] for r in rows), strict=True)
                ]
                kinds.append(
                    {
                        "kind": KINDS.get(opcode, "OTHER"),
                        "count": count,
                        "seconds": sum(row[_SECONDS] for row in rows),
                        "errors": sum(row[_ERRORS] for row in rows),
                        "buckets": buckets,
                    }
                )
        slow = sorted((s for c in counters for s in list(c.slow)), key=lambda one: one.ended_s)
        return {"kinds": kinds, "slow": [one._asdict() for one in slow[-FIGURES_SLOW_MAX:]]}


FIGURES = Figures()
"""Of this process."""
