"""How fast `mpifs fsck` checks data, beside plain reading and hashing of the same files.

    .venv/bin/python tools/bench_fsck.py [FOLDER] [--gib 4] [--files 100000] [--workers 4]
                                         [--repeats 5] [--keep] [--cold]

One volume of --gib GiB in chunks of 1 MiB, one of --files files of 4 KiB.  The plain rate: one
process per store reads every image out of its LMDB files and hashes the payload with the volume's
function; all begin at once, the slowest counts.  fsck and plain take turns, medians are told.
Caches are warm, so that nothing but the processor counts, or with --cold the stores' files are
taken out of the kernel's cache before each turn.  The checks' time is fsck's own (the ranks' start
is not in it): all of it, and that of the data alone, which is what a run with --no-data takes less.
Memory is each rank's own (anonymous) and its largest resident size, which includes the pages of
mapped files that the kernel may take back.
FOLDER (default: a temporary one) keeps the volumes with --keep, and a later run
uses them again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path

from mpifs.bench.cold import drop_file
from mpifs.core.checksum import function_of
from mpifs.core.image import IMAGE_HEADER_BYTES, decode_header
from mpifs.core.types import ChecksumKind
from mpifs.job.processes import JOB_VARIABLE
from mpifs.kv import Environment

GIB = 1 << 30
MIB = 1 << 20
FILE_BYTES = 256 * MIB
SMALL_BYTES = 4096
SAMPLE_S = 0.05
DATABASES = ("chunks", "headers", "meta")


def mpifs(*words: str | Path) -> str:
    """An mpifs command; its standard output."""
    command = [sys.executable, "-m", "mpifs", *map(str, words)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} gave {done.returncode}: {done.stderr}")
    return done.stdout


def make_volume(place: Path, workers: int, count: int, size: int) -> Path:
    """A volume at rest with `count` files of `size` random bytes; one that is there is kept."""
    store, mnt = place / "store", place / "mnt"
    if (place / "made").exists():
        return store
    mnt.mkdir(parents=True)
    mpifs("mount", store, mnt, "-w", str(workers), "-o", "noatime")
    try:
        for number in range(count):
            folder = mnt / f"{number // 1000}"
            folder.mkdir(exist_ok=True)
            with open(folder / f"f{number}", "wb", buffering=0) as file:
                for start in range(0, size, MIB):
                    file.write(os.urandom(min(MIB, size - start)))
    finally:
        mpifs("umount", mnt)
    (place / "made").touch()
    return store


# The plain rate.


def read_store(folder: str, ready: Event, go: Event, results: multiprocessing.Queue[int]) -> None:
    """A process: reads and hashes every payload of a store; tells how many bytes that were."""
    total = 0
    names = [n for n in ("small", "large") if os.path.exists(os.path.join(folder, n, "data.mdb"))]
    environments = [Environment(os.path.join(folder, name), DATABASES) for name in names]
    ready.set()
    go.wait()
    for environment in environments:
        with environment.read() as transaction:
            for _, image in transaction.scan("chunks"):
                header = decode_header(image)
                end = IMAGE_HEADER_BYTES + header.length
                digest = function_of(ChecksumKind(header.checksum_kind))
                if digest(image[IMAGE_HEADER_BYTES:end]) != header.checksum:
                    raise SystemExit("a payload is damaged: no figures of such a volume")
                total += header.length
    results.put(total)


def plain_rate(store: Path) -> float:
    """Bytes per second of all stores together."""
    context = multiprocessing.get_context("spawn")
    go, results = context.Event(), context.Queue()
    folders = sorted(path for path in store.iterdir() if path.name.startswith("worker-"))
    waits = [context.Event() for _ in folders]
    processes = [
        context.Process(target=read_store, args=(str(folder), ready, go, results))
        for folder, ready in zip(folders, waits, strict=True)
    ]
    for process in processes:
        process.start()
    for ready in waits:
        ready.wait(60)
    start = time.perf_counter()
    go.set()
    total = sum(results.get(timeout=600) for _ in processes)
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return total / seconds


# fsck.


@dataclass
class Memory:
    """Most memory of each rank so far, in MiB: own, and resident with mapped files."""

    own: dict[str, float] = field(default_factory=dict)
    resident: dict[str, float] = field(default_factory=dict)

    def look(self, store: Path) -> None:
        """Takes a sample of all ranks of the volume's job."""
        try:
            job = json.loads((store / "run" / "state.json").read_text())["job"]
        except (OSError, ValueError, KeyError):
            return
        mark = f"{JOB_VARIABLE}={job}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                self._look_at(entry, mark)

    def _look_at(self, entry: Path, mark: bytes) -> None:
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            rank = next(
                (v[21:].decode() for v in environment if v.startswith(b"OMPI_COMM_WORLD_RANK=")), ""
            )
            if mark not in environment or not rank:
                return
            status = (entry / "status").read_text()
        except OSError:
            return
        for name, table in (("RssAnon:", self.own), ("VmHWM:", self.resident)):
            if name in status:
                value = int(status.split(name)[1].split()[0]) / 1024
                table[rank] = max(table.get(rank, 0.0), value)


@dataclass
class Run:
    """One fsck: what it checked, its own seconds, the command's, and memory."""

    bytes: int
    chunks: int
    seconds: float
    wall_s: float


def run_fsck(store: Path, memory: Memory, *words: str) -> Run:
    """`mpifs fsck --json` of a sound volume."""
    quit_now = threading.Event()

    def watch() -> None:
        while not quit_now.wait(SAMPLE_S):
            memory.look(store)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        document = json.loads(mpifs("fsck", store, "--json", *words))
    finally:
        wall_s = time.perf_counter() - start
        quit_now.set()
        watcher.join()
    checked = document["checked"]
    return Run(checked["bytes"], checked["chunks"], checked["seconds"], wall_s)


def cool(store: Path) -> None:
    """Takes the stores' files out of the kernel's cache."""
    for path in store.glob("worker-*/*/data.mdb"):
        drop_file(str(path), ())


def measure(store: Path, repeats: int, title: str, *, is_cold: bool) -> None:
    """Turns of plain and fsck; prints medians."""
    memory = Memory()
    plain_rate(store)  # warms the caches.
    runs, plain, data = [], [], []
    for _ in range(repeats):
        if is_cold:
            cool(store)
        plain.append(plain_rate(store))
        if is_cold:
            cool(store)
        runs.append(run_fsck(store, memory))
        rest = run_fsck(store, memory, "--no-data")
        data.append(runs[-1].bytes / max(runs[-1].seconds - rest.seconds, 1e-3))
    whole = [run.bytes / run.seconds for run in runs]
    print(f"{title}: {runs[0].chunks} chunks, {runs[0].bytes / GIB:.2f} GiB")
    print(f"  plain reading and hashing   {statistics.median(plain) / MIB:8.0f} MiB/s")
    for name, rates in (("all checks of fsck", whole), ("the data alone", data)):
        shares = [rate / base for rate, base in zip(rates, plain, strict=True)]
        print(
            f"  {name:26}  {statistics.median(rates) / MIB:8.0f} MiB/s, of the plain rate "
            f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        )
    seconds = [run.seconds for run in runs]
    walls = [run.wall_s for run in runs]
    print(
        f"  seconds of the checks {statistics.median(seconds):.2f}, "
        f"of the whole command {statistics.median(walls):.2f}"
    )
    for rank in sorted(memory.own, key=int):
        print(
            f"  rank {rank}: {memory.own[rank]:6.0f} MiB of its own, "
            f"{memory.resident.get(rank, 0):6.0f} MiB resident with mapped files"
        )


def main() -> int:
    """Makes the volumes and measures; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", default=None)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--cold", action="store_true")
    words = parser.parse_args()
    home = Path(words.folder or tempfile.mkdtemp(prefix="mpifs-bench-fsck-"))
    try:
        if words.gib:
            count = max(1, round(words.gib * GIB / FILE_BYTES))
            store = make_volume(home / "large", words.workers, count, FILE_BYTES)
            measure(store, words.repeats, "large files in chunks of 1 MiB", is_cold=words.cold)
        if words.files:
            store = make_volume(home / "small", words.workers, words.files, SMALL_BYTES)
            measure(store, words.repeats, "files of 4 KiB", is_cold=words.cold)
    finally:
        if not words.keep:
            for name in ("large", "small"):
                shutil.rmtree(home / name, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
