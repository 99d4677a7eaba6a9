"""Carries out phases in a place: brings about what a phase needs, has it done, checks bytes.

A method of Stage is one phase in one place once, and gives its figure: MB/s (10^6 bytes), a rate
per second, milliseconds …; None where the place cannot tell.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Sequence
from typing import Any

from mpifs.bench.places import Place
from mpifs.bench.plan import Plan
from mpifs.bench.processes import Drivers
from mpifs.bench.workloads import RECORD_BYTES, Spell, places_of, small_name

BIG = "big"
HARD = "hard"
HARD_RECORD_BYTES = 47_008
"""The record of IO500's ior-hard: a multiple of nothing."""
PAGE_BYTES = 4096
_CHECKED_COUNT = 16  # pieces of a written file that are compared afterwards.
_CALM_S = 3.0
_MB = 1e6


def rate_of(spells: Sequence[Spell]) -> float:
    """Amount per second from the first beginning to the last end."""
    begin = min(spell.begin_s for spell in spells)
    end = max(spell.end_s for spell in spells)
    return sum(spell.amount for spell in spells) / max(end - begin, 1e-9)


class Stage:
    """All phases in one place.  Used by one thread."""

    def __init__(
        self, place: Place, drivers: Drivers, plan: Plan, archive: tuple[str, int]
    ) -> None:
        self.place = place
        self._drivers = drivers
        self._plan = plan
        self._archive = archive
        self._seed = 100

    # What phases need

    def _side_by_side(self, works: list[tuple[str, dict[str, Any]]]) -> float:
        """Timed workloads, in a place that does nothing else; amount a second."""
        self.place.settle()
        return rate_of(self._drivers.run(works))

    def _run(self, work: str, **words: Any) -> float:
        return self._side_by_side([(work, words)])

    def _remove(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.place.path(name))
            self.place.seeds.pop(name, None)

    def _write(
        self, names: Sequence[str], size: int, record: int = RECORD_BYTES, *, fsync: bool = False
    ) -> float:
        """Writes files side by side, over what is there; MB/s."""
        works, place = [], self.place
        for name in names:
            self._seed += 1
            is_fresh = name not in place.seeds
            words = {"path": place.path(name), "size": size, "seed": self._seed, "record": record}
            works.append(("write", {**words, "fsync": fsync, "fresh": is_fresh}))
            place.seeds[name] = self._seed
        rate = self._side_by_side(works) / _MB
        for name in names:
            self._drivers.run([("flush", {"path": place.path(name)})])
            pieces = [
                (place.seeds[name], offset, PAGE_BYTES)
                for offset in places_of(size, PAGE_BYTES, _CHECKED_COUNT, self._seed)
            ]
            self._check(name, pieces)
        return rate

    def _check(self, name: str, pieces: list[tuple[int, int, int]]) -> None:
        if self.place.keeps_data:
            self._drivers.run([("check", {"path": self.place.path(name), "pieces": pieces})])

    def _read(self, names: Sequence[str], size: int, record: int = RECORD_BYTES) -> float:
        works = [
            ("read", {"path": self.place.path(name), "size": size, "record": record})
            for name in names
        ]
        return self._side_by_side(works) / _MB

    def _need(self, names: Sequence[str], size: int) -> None:
        missing = [name for name in names if name not in self.place.seeds]
        if missing:
            self._write(missing, size)

    def _cool(self, paths: Sequence[str]) -> None:
        """The kernel has no page of these files afterwards, and the file system has dropped what
        it caches itself.  What the kernel has of the stores' files stays."""
        self._drivers.run([("drop", {"paths": list(paths)})])
        self.place.drop_chunks()

    def _cool_names(self, *names: str) -> None:
        self._cool([self.place.path(name) for name in names])

    def _freeze(self, name: str) -> None:
        """Nothing of a file is in any memory afterwards, as far as the kernel allows."""
        self._drivers.run([("drop", {"paths": [self.place.path(name)]})])
        self.place.drop_own_caches()

    # One large file

    def write_close(self) -> float:
        """A new file, written and closed."""
        self._remove(BIG)
        return self._write([BIG], self._plan.size)

    def write_fsync(self) -> float:
        """The same, durable."""
        self._remove(BIG)
        return self._write([BIG], self._plan.size, fsync=True)

    def overwrite(self) -> float:
        """Other bytes over those of a file, written and closed."""
        self._need([BIG], self._plan.size)
        return self._write([BIG], self._plan.size)

    def read_cold(self) -> float:
        """Read with the file's pages and rank 0's chunks dropped."""
        self._need([BIG], self._plan.size)
        self._cool_names(BIG)
        return self._read([BIG], self._plan.size)

    def read_disk(self) -> float:
        """Read with the stores' pages dropped, too."""
        self._need([BIG], self._plan.size)
        self._freeze(BIG)
        return self._read([BIG], self._plan.size)

    def read_warm(self) -> float:
        """Read once more, from the kernel's cache if the file system allows it."""
        self._need([BIG], self._plan.size)
        self._read([BIG], self._plan.size)
        return self._read([BIG], self._plan.size)

    def write_hard(self) -> float:
        """In unaligned records, written and closed."""
        self._remove(HARD)
        rate = self._write([HARD], self._plan.size // 2, HARD_RECORD_BYTES)
        return rate

    def read_hard(self) -> float:
        """In unaligned records, cold."""
        self._need([HARD], self._plan.size // 2)
        self._cool_names(HARD)
        return self._read([HARD], self._plan.size // 2, HARD_RECORD_BYTES)

    def random_read(self) -> float:
        """4 KiB at random of a file larger than rank 0's cache, a second.

        The stores' own pages stay in the kernel's cache, as those of the limit (LMDB gets) are:
        else the phase would measure the disk, which reads a chunk at once.
        """
        self._need([BIG], self._plan.size)
        self._read([BIG], self._plan.size)
        self._cool_names(BIG)
        return self._run(
            "random_read",
            path=self.place.path(BIG),
            size=self._plan.size,
            record=PAGE_BYTES,
            count=self._plan.random_reads,
            seed=self._next_seed(),
        )

    def random_write(self) -> float:
        """4 KiB at random over a large file, an fsync after each hundred; a second."""
        plan, place = self._plan, self.place
        self._need([BIG], plan.size)
        seed, before = self._next_seed(), place.stored_bytes()
        rate = self._run(
            "random_write",
            path=place.path(BIG),
            size=plan.size,
            record=PAGE_BYTES,
            count=plan.random_writes,
            seed=seed,
            sync_each=plan.sync_each,
        )
        after = place.stored_bytes()
        if before is not None and after is not None:
            asked = plan.random_writes * PAGE_BYTES
            place.extras["random_write_cost"] = (after - before) / asked
        offsets = places_of(plan.size, PAGE_BYTES, plan.random_writes, seed)
        self._check(BIG, [(seed, offset, PAGE_BYTES) for offset in offsets[-_CHECKED_COUNT:]])
        return rate

    def random_write_cost(self) -> float | None:
        """Bytes written to disk per byte asked for, in the same workload."""
        if "random_write_cost" not in self.place.extras:
            self.random_write()
        return self.place.extras.pop("random_write_cost", None)

    def _next_seed(self) -> int:
        self._seed += 1
        return self._seed

    # Several at once

    def writers(self, count: int) -> float:
        """New files by several processes, each its own; in sum."""
        names = [f"part{number}" for number in range(count)]
        self._remove(*names)
        return self._write(names, self._plan.part)

    def readers(self, count: int) -> float:
        """Cold files by several processes, each its own; in sum."""
        names = [f"part{number}" for number in range(count)]
        self._need(names, self._plan.part)
        self._cool_names(*names)
        return self._read(names, self._plan.part)

    # Many small files

    @property
    def _small(self) -> str:
        return self.place.path("small")

    def create(self, count: int) -> float:
        """Small files created, written and closed by several processes; files a second in sum."""
        place, plan = self.place, self._plan
        shutil.rmtree(self._small, ignore_errors=True)
        os.mkdir(self._small)
        each = plan.files // count
        words = {"folder": self._small, "count": each, "size": plan.small_bytes, "seed": 1}
        works = [("create", {**words, "first": number * each}) for number in range(count)]
        rate = self._side_by_side(works)
        place.small_count = each * count
        place.touch()
        return rate

    def _need_small(self) -> dict[str, Any]:
        if not self.place.small_count:
            self.create(1)
        return {"folder": self._small, "count": self.place.small_count}

    def _by_name(self, work: str, **more: Any) -> float:
        """A workload that goes through all names, which the kernel does not know any more."""
        words = self._need_small()
        self.place.forget_names()
        rate = self._run(work, **words, **more)
        self.place.touch()
        return rate

    def stat(self) -> float:
        """stat(2) of each."""
        return self._by_name("stat")

    def open(self) -> float:
        """open(2) and close(2) of each."""
        return self._by_name("open_close")

    def list_long(self) -> float:
        """`ls -l`; entries a second."""
        return self._by_name("list_long")

    def small_read_cold(self) -> float:
        """Opened, read and closed, with all caches dropped."""
        words = self._need_small()
        self._cool([small_name(self._small, number) for number in range(words["count"])])
        self.place.touch()
        return self._by_name("read_small", size=self._plan.small_bytes, first=0)

    def small_read_warm(self) -> float:
        """Opened, read and closed once more."""
        words = self._need_small()
        self._run("read_small", **words, size=self._plan.small_bytes, first=0)
        rate = self._run("read_small", **words, size=self._plan.small_bytes, first=0)
        self.place.touch()
        return rate

    def rename(self) -> float:
        """Each gets another name in its folder."""
        rate = self._by_name("rename", back=False)
        self._run("rename", **self._need_small(), back=True)
        return rate

    def unlink(self) -> float:
        """Each is removed."""
        rate = self._by_name("unlink")
        self.place.small_count = 0
        return rate

    def untar(self) -> float:
        """An archive of a source tree unpacked by tar(1); files a second."""
        archive, count = self._archive
        folder = self.place.path("tree")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            return self._run("untar", archive=archive, folder=folder, count=count)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # Rest

    def prepare_rest(self) -> None:
        """Before the pause: there is a cold file for the first request after it."""
        self._need([BIG], self._plan.size)
        self._freeze(BIG)

    def first_request(self) -> float:
        """Open and read of 4 KiB, just now; milliseconds."""
        slots = self._plan.size // PAGE_BYTES
        offset = random.randrange(slots) * PAGE_BYTES
        spells = self._drivers.run(
            [("first_request", {"path": self.place.path(BIG), "offset": offset})]
        )
        return (spells[0].end_s - spells[0].begin_s) * 1e3


def rest(stages: Sequence[Stage], pause_s: float, *, is_first: bool) -> list[float | None]:
    """Lets all places rest at once: processor time of each in % of a core meanwhile."""
    if is_first:
        for stage in stages:
            stage.prepare_rest()
        time.sleep(min(_CALM_S, pause_s))  # what that has set going comes to its end.
    since_s = time.monotonic()
    before = [stage.place.processor_s() for stage in stages]
    time.sleep(pause_s)
    took_s = time.monotonic() - since_s
    after = [stage.place.processor_s() for stage in stages]
    return [_percent(*pair, took_s) for pair in zip(before, after, strict=True)]


def _percent(before_s: float | None, after_s: float | None, took_s: float) -> float | None:
    if before_s is None or after_s is None:
        return None
    return (after_s - before_s) / took_s * 100
