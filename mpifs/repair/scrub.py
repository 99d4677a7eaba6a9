"""Scrub: the check of the chunks as background work.  Its pace, and what it remembers.

The memory is a small JSON file in the volume's `index/`, replaced whole, so that a crash leaves the
old or the new one; without it a scrub begins anew, nothing else.

    stopped ──start──▶ running ──pass complete──▶ finished
       ▲                │    ▲ └──umount──▶ (still "running": goes on at the next mount)
       └──────stop──────┤    └─start─┐
                        └──pause──▶ paused
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from mpifs.core.limits import MIB, SCRUB_FINDINGS_MAX, SCRUB_RATE_BYTES
from mpifs.notefile import write_note

STOPPED, RUNNING, PAUSED, FINISHED = "stopped", "running", "paused", "finished"
FILE_NAME = "scrub.json"
_BURST_S = 0.25  # so much of a second's bytes may go at once: requests are whole batches.


@dataclass(slots=True)
class ScrubMemory:
    """What a volume remembers of its scrub.  Times are seconds since 1970, 0 = never."""

    state: str = STOPPED
    rate: int = SCRUB_RATE_BYTES
    repair: bool = False
    position: str = ""
    """Encoded key (hexadecimal) behind which this pass goes on; "" = at the beginning."""
    started: int = 0
    ended: int = 0
    inodes: int = 0
    chunks: int = 0
    bytes: int = 0
    """Of this pass, sessions before included."""
    found: int = 0
    repaired: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)
    """Of this pass, the first SCRUB_FINDINGS_MAX."""

    def begin_pass(self) -> None:
        """Forgets the pass before."""
        self.position, self.findings = "", []
        self.inodes = self.chunks = self.bytes = self.found = self.repaired = 0
        self.started, self.ended = int(time.time()), 0

    def end_pass(self) -> None:
        """Everything has been checked."""
        self.state, self.position, self.ended = FINISHED, "", int(time.time())

    def add(self, document: dict[str, Any]) -> bool:
        """Counts a finding and keeps it if there is room; False if it was found before."""
        if document in self.findings:
            return False
        self.found += 1
        self.repaired += bool(document["repaired"])
        if len(self.findings) < SCRUB_FINDINGS_MAX:
            self.findings.append(document)
        return True


def read_memory(folder: str) -> ScrubMemory:
    """The memory in an index folder; a fresh one if there is none or it makes no sense."""
    try:
        with open(os.path.join(folder, FILE_NAME), encoding="utf-8") as file:
            memory = ScrubMemory(**json.load(file))
        bytes.fromhex(memory.position)
    except (OSError, ValueError, TypeError):
        return ScrubMemory()
    fresh = ScrubMemory()
    is_sound = all(
        type(getattr(memory, name)) is type(value) for name, value in asdict(fresh).items()
    )
    return memory if is_sound and memory.rate > 0 else fresh


def write_memory(folder: str, memory: ScrubMemory) -> None:
    """Not synced: after a power loss a scrub repeats a little.  Raises OSError."""
    write_note(os.path.join(folder, FILE_NAME), asdict(memory), is_durable=False)


class Pace:
    """Keeps work at a rate of bytes a second.  Used by one thread; `rate` may be set by any."""

    def __init__(
        self,
        rate: int,
        sleep: Callable[[float], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rate = rate
        self._sleep = sleep
        self._clock = clock
        self._free_s = clock()

    def __call__(self, count: int) -> None:
        """Waits until `count` more bytes may have been read."""
        now = self._clock()
        # Time in which there was nothing to do is not saved up for a burst.
        self._free_s = max(self._free_s, now - _BURST_S) + count / max(self.rate, MIB // 1024)
        if self._free_s > now:
            self._sleep(self._free_s - now)
