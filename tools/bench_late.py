"""How much parallel readers gain when each answer of a worker is late.

    .venv/bin/python tools/bench_late.py FOLDER [--late-ms 5] [--readers 1,8] [--repeats 3]
                                          [--warm-stores]

Mounts a fresh volume in FOLDER whose workers send every answer to a read that much later (the fault
point store.read; others are served meanwhile), and has 1 and then 8 processes read cold, each its
own files, in turn.  Told are medians of the rate in sum and of the quotient:

    small files       open, read and close of files of 64 KiB, in no order
    small, in order   the same by name: some are fetched ahead for one reader already
    random            4 KiB at random places of a file of 128 MiB, nearly each in another chunk
    one large file    sequential: readahead has several chunks under way for one reader already

--warm-stores leaves the stores' pages in the kernel's cache, so that the delay counts and not the
disk, which serves one read of a worker after the other.  With 5 ms a reader that waits for each
answer makes at most 200 requests a second.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

from bench_volume import BenchVolume, drivers, remove

from mpifs.bench.processes import Drivers
from mpifs.bench.stage import rate_of
from mpifs.bench.workloads import small_name

MIB = 1 << 20
SMALL_BYTES = 64 << 10
SMALL_COUNT = 150
LARGE_BYTES = 128 * MIB
RANDOM_COUNT = 24
"""So few that hardly one meets a chunk that is still in the cache (64 MiB)."""

Works = list[tuple[str, dict[str, Any]]]


def prepare(volume: BenchVolume, crew: Drivers, readers: int) -> None:
    """Files for each reader."""
    for number in range(readers):
        folder = volume.mnt / f"r{number}"
        folder.mkdir()
        words = {"folder": os.fspath(folder), "first": 0, "count": SMALL_COUNT}
        crew.run([("create", {**words, "size": SMALL_BYTES, "seed": number})])
        large = {"path": os.fspath(folder / "large"), "size": LARGE_BYTES, "seed": number}
        crew.run([("write", {**large, "record": MIB, "fsync": True, "fresh": True})])


def cool(volume: BenchVolume, crew: Drivers, readers: int, is_disk_cold: bool) -> None:
    """Nothing is in a cache afterwards, or nothing but the stores' pages in the kernel's."""
    paths = []
    for number in range(readers):
        folder = os.fspath(volume.mnt / f"r{number}")
        paths += [os.path.join(folder, "large")]
        paths += [small_name(folder, file) for file in range(SMALL_COUNT)]
    crew.run([("drop", {"paths": paths})])
    if is_disk_cold:
        volume.place.drop_own_caches()
    else:
        volume.place.drop_chunks()


def works_of(phase: str, volume: BenchVolume, readers: int, seed: int) -> Works:
    """What the readers of a phase do."""
    works: Works = []
    for number in range(readers):
        folder = os.fspath(volume.mnt / f"r{number}")
        large = {"path": os.path.join(folder, "large"), "size": LARGE_BYTES}
        if phase.startswith("small"):
            words = {"folder": folder, "first": 0, "count": SMALL_COUNT, "size": SMALL_BYTES}
            order = None if phase == "small, in order" else seed + number
            works.append(("read_small", {**words, "seed": order}))
        elif phase == "random":
            words = {**large, "record": 4096, "count": RANDOM_COUNT, "seed": seed + number}
            works.append(("random_read", words))
        else:
            works.append(("read", {**large, "record": MIB}))
    return works


def measure(
    volume: BenchVolume, crew: Drivers, counts: list[int], repeats: int, is_disk_cold: bool
) -> None:
    """All phases, the counts of readers in turn; prints medians."""
    most = max(counts)
    for phase, unit, scale in (
        ("small files", "/s", 1),
        ("small, in order", "/s", 1),
        ("random", "/s", 1),
        ("one large file", "MB/s", 1e6),
    ):
        rates: dict[int, list[float]] = {count: [] for count in counts}
        for repeat in range(repeats):
            for count in counts:
                cool(volume, crew, most, is_disk_cold)
                works = works_of(phase, volume, count, repeat * 1000)
                rates[count].append(rate_of(crew.run(works)) / scale)
        line = "  ".join(
            f"{count}: {statistics.median(rates[count]):8.1f} {unit}" for count in counts
        )
        first, last = counts[0], counts[-1]
        quotients = [b / a for a, b in zip(rates[first], rates[last], strict=True)]
        print(
            f"{phase:15}  {line}   {last} ÷ {first}: {statistics.median(quotients):.2f} "
            f"({min(quotients):.2f} to {max(quotients):.2f})",
            flush=True,
        )


def main() -> None:
    """Measures and removes the volume."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--late-ms", type=float, default=5)
    parser.add_argument("--readers", default="1,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--warm-stores", action="store_true")
    words = parser.parse_args()
    counts = [int(count) for count in words.readers.split(",")]
    late = {"MPIFS_FAULT": f"store.read:1:delay={words.late_ms:g}"} if words.late_ms else {}
    volume = BenchVolume(words.folder / "late", words.workers, late)
    try:
        volume.mount()
        with drivers(volume.home) as crew:
            prepare(volume, crew, max(counts))
            measure(volume, crew, counts, words.repeats, not words.warm_stores)
    finally:
        remove(volume)


if __name__ == "__main__":
    main()
