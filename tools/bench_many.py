"""What grows with the number of files: rates, the time of a mount, rank 0's memory.

    .venv/bin/python tools/bench_many.py FOLDER [--files 1000000] [--few 10000] [--rounds 8]

Two fresh volumes in FOLDER, with --few and --files files of 100 B, filled at rest by
fill_volume.py (that is not measured), mounted side by side with default options.  In turn in both:

    mount, umount     of the volumes one after the other, with the index out of the kernel's cache
    create            files of 4 KiB, created, written, closed by one process in `flat`, a folder
                      that holds up to 100,000; quotient of the medians and of each round
    ls -l             of `flat`, beside the null file system with as many files
    walk              every name and its attributes (find -size +1G), once
    data              four files of 128 MiB written and read cold: fills buffers and cache
    memory            of rank 0 after each step: resident (VmRSS), of it anonymous (RssAnon: heaps,
                      buffers), mapped files (RssFile: programs, pages of the index, which the
                      kernel may take back) and shared memory (RssShmem: MPI)
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from bench_volume import BenchVolume, drivers, remove
from fill_volume import FLAT, fill

from mpifs.bench.cold import drop_file
from mpifs.bench.places import NAMES_EXPIRE_S
from mpifs.bench.processes import Drivers, Mark, NullMount
from mpifs.bench.stage import rate_of

FLAT_COUNT = 100_000
CREATE_COUNT = 1000
CREATE_BYTES = 4096
DATA_BYTES = 128 << 20
FIRST_NEW = 5_000_000
"""Number of the first file created through the mount: above all that were filled in."""


def memory(pid: int) -> str:
    """A process's resident memory and what it consists of, in MiB."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    found = {name: int(fields[name].split()[0]) / 1024 for name in fields if "Rss" in name[:5]}
    return (
        f"{int(fields['VmRSS'].split()[0]) / 1024:6.0f} MiB "
        f"(anonymous {found['RssAnon']:.0f}, files {found['RssFile']:.0f}, "
        f"shared {found['RssShmem']:.0f}), most so far {int(fields['VmHWM'].split()[0]) / 1024:.0f}"
    )


def say_memory(volumes: list[BenchVolume], when: str) -> None:
    """Prints rank 0's memory of all volumes."""
    for volume in volumes:
        print(f"  rank 0, {volume.home.name:8} {when:14} {memory(volume.place.master)}", flush=True)


def make(volume: BenchVolume, count: int) -> None:
    """A filled volume at rest."""
    volume.mount()
    volume.umount()
    took = fill(volume.store, count, FLAT_COUNT, 100)
    data = volume.store / "index" / "data.mdb"
    print(f"{volume.home.name}: {count} files filled in {took:.0f} s; index ", end="")
    print(f"{data.stat().st_size / count:.0f} B a file", flush=True)


def measure_mounts(volumes: list[BenchVolume], rounds: int) -> None:
    """Mounts and unmounts in turn; leaves them mounted."""
    took: dict[str, list[float]] = {v.home.name: [] for v in volumes}
    left: dict[str, list[float]] = {v.home.name: [] for v in volumes}
    for turn in range(rounds):
        for volume in volumes:
            drop_file(os.fspath(volume.store / "index" / "data.mdb"), ())
            took[volume.home.name].append(volume.mount())
        for volume in volumes:
            if turn < rounds - 1:
                left[volume.home.name].append(volume.umount())
    for name, values in took.items():
        shown = " ".join(f"{value:.2f}" for value in values)
        print(f"mount {name:10} {statistics.median(values):.2f} s ({shown})", end="")
        if left[name]:
            print(f", umount {statistics.median(left[name]):.2f} s", end="")
        print(flush=True)


def measure_creates(volumes: list[BenchVolume], crew: Drivers, rounds: int) -> None:
    """Creates in turn; rates and the quotient of the last volume to the first."""
    rates: dict[str, list[float]] = {volume.home.name: [] for volume in volumes}
    for turn in range(rounds):
        for volume in volumes[:: 1 if turn % 2 else -1]:
            volume.place.settle()
            folder = os.fspath(volume.mnt / FLAT)
            first = FIRST_NEW + turn * CREATE_COUNT
            words = {"folder": folder, "first": first, "count": CREATE_COUNT}
            work = ("create", {**words, "size": CREATE_BYTES, "seed": 1})
            rates[volume.home.name].append(rate_of(crew.run([work])))
    few, many = rates.values()
    for name, values in rates.items():
        print(f"create {name:9} {statistics.median(values):8.0f} /s", flush=True)
    quotients = [b / a for a, b in zip(few, many, strict=True)]
    whole = statistics.median(many) / statistics.median(few)
    print(
        f"create, many ÷ few: of the medians {whole:.2f}, "
        f"median of rounds {statistics.median(quotients):.2f} "
        f"({min(quotients):.2f} to {max(quotients):.2f})"
    )


def measure_listing(volume: BenchVolume, crew: Drivers, home: Path, rounds: int) -> None:
    """`ls -l` in turn in the volume and in the null file system with as many files."""
    mnt = home / "null"
    mnt.mkdir()
    with Mark() as mark, open(home / "null.log", "w+b") as log:
        null = NullMount(mark, log, os.fspath(mnt), [])
        try:
            folder = mnt / FLAT
            folder.mkdir()
            count = len(os.listdir(volume.mnt / FLAT))
            words = {"folder": os.fspath(folder), "first": 0, "count": count}
            crew.run([("create", {**words, "size": 0, "seed": 1})])
            seconds: dict[str, list[float]] = {"mpifs": [], "null": []}
            for _ in range(rounds):
                for name, where in (("mpifs", volume.mnt / FLAT), ("null", folder)):
                    time.sleep(NAMES_EXPIRE_S)
                    work = ("list_long", {"folder": os.fspath(where), "count": count})
                    seconds[name].append(count / rate_of(crew.run([work])))
        finally:
            null.close()
    mine, other = (statistics.median(values) for values in seconds.values())
    print(f"ls -l of {count}: {mine:.2f} s, null file system {other:.2f} s: {mine / other:.2f}")


def walk(volume: BenchVolume) -> float:
    """Looks at every name and its attributes; seconds."""
    start = time.perf_counter()
    subprocess.run(["find", os.fspath(volume.mnt), "-size", "+1G"], check=True)
    return time.perf_counter() - start


def use_data(volume: BenchVolume, crew: Drivers) -> None:
    """Fills the buffers and the cache of rank 0: files written and read by four processes."""
    paths = [os.fspath(volume.mnt / f"data{number}") for number in range(4)]
    words = {"size": DATA_BYTES, "record": 1 << 20}
    crew.run(
        [
            ("write", {**words, "path": path, "seed": 1, "fsync": True, "fresh": True})
            for path in paths
        ]
    )
    crew.run([("drop", {"paths": paths})])
    volume.place.drop_own_caches()
    crew.run([("read", {**words, "path": path}) for path in paths])


def measure(volumes: list[BenchVolume], home: Path, words: argparse.Namespace) -> None:
    """Everything, in the order of the page above."""
    for volume, count in zip(volumes, (words.few, words.files), strict=True):
        make(volume, count)
    measure_mounts(volumes, min(3, words.rounds))
    say_memory(volumes, "mounted")
    with drivers(home) as crew:
        measure_creates(volumes, crew, words.rounds)
        say_memory(volumes, "creates")
        measure_listing(volumes[1], crew, home, min(3, words.rounds))
        say_memory(volumes[1:], "ls -l")
        took = walk(volumes[1])
        print(f"walk over {words.files} files: {took:.1f} s")
        say_memory(volumes[1:], "walk")
        use_data(volumes[1], crew)
        say_memory(volumes[1:], "data")
    for volume in volumes:
        print(f"umount {volume.home.name}: {volume.umount():.2f} s")


def main() -> None:
    """Measures and removes the volumes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    words = parser.parse_args()
    home = words.folder / "many"
    home.mkdir(parents=True)
    volumes = [BenchVolume(home / name, words.workers) for name in ("few", "many")]
    try:
        measure(volumes, home, words)
    finally:
        for volume in volumes:
            remove(volume)
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
