#!/usr/bin/env python3
"""Soak: parallel writers, readers, renamers and deleters for minutes, then a full compare.

Every file proves itself: its name holds a seed and a version, its content is made from them, so
that any reader can check any byte at any time without asking anyone.  At the end the tree is
compared with what the workers say they left, the volume is mounted again, and compared again.

    tools/soak.py [--minutes 10] [--workers 4] [--replicas 2] [--jobs 4] [--seed N]
                  [--options fuse=2] [--plain]
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.mount.harness import Guard, Volume, sweep

MIB = 1 << 20


def content(name: str, version: int, size: int) -> bytes:
    """The bytes of a version of a file: nothing else is right."""
    seed = hashlib.sha256(f"{name}/{version}".encode()).digest()
    return random.Random(seed).randbytes(size)


class Worker:
    """One process with names of its own in shared folders; what it left is what it remembers."""

    def __init__(self, root: Path, number: int, seed: int, deadline: float) -> None:
        self.root, self.number, self.deadline = root, number, deadline
        self.rng = random.Random(seed * 1000 + number)
        self.files: dict[
            str, tuple[str, int, int]
        ] = {}  # path → (name its bytes come from, version, size)
        self.count = 0
        self.bytes = 0

    def run(self) -> dict[str, tuple[str, int, int]]:
        """Random operations until the deadline."""
        actions: list[tuple[Callable[[], None], int]] = [
            (self.write_new, 5), (self.overwrite, 3), (self.check, 6), (self.rename, 4),
            (self.delete, 3), (self.replace, 3), (self.map, 2), (self.hold_unlinked, 1),
            (self.listing, 1), (self.resize, 2),
        ]  # fmt: skip
        calls = [call for call, weight in actions for _ in range(weight)]
        while time.monotonic() < self.deadline:
            call = self.rng.choice(calls) if self.files else self.write_new
            call()
            self.count += 1
        return self.files

    def fresh(self) -> str:
        """A new name in one of the folders all workers share."""
        return f"d{self.rng.randrange(12)}/w{self.number}-{self.count}-{self.rng.randrange(10**6)}"

    def some(self) -> str:
        """One of the own files."""
        return self.rng.choice(list(self.files))

    def size(self) -> int:
        """Mostly small, sometimes several chunks."""
        return self.rng.choice((0, 1, 100, 4096, 5000, 65_536, 300_001, MIB, 3 * MIB + 17))

    def put(self, path: str, name: str, version: int, size: int, flags: int = os.O_EXCL) -> None:
        """Writes in pieces of odd sizes, out of order."""
        data = content(name, version, size)
        self.bytes += size
        fd = os.open(self.root / path, os.O_RDWR | os.O_CREAT | flags, 0o644)
        try:
            step = self.rng.choice((997, 4096, 65_536, 1_000_003))
            starts = list(range(0, size, step)) if size / step < 500 else [0]
            step = step if len(starts) > 1 or size <= step else size
            if self.rng.random() < 0.3:
                self.rng.shuffle(starts)
            for start in starts:
                piece = memoryview(data)[start : start + step]
                while piece:
                    done = os.pwrite(fd, piece, start)
                    piece, start = piece[done:], start + done
            os.ftruncate(fd, size)
            if self.rng.random() < 0.1:
                os.fsync(fd)
        finally:
            os.close(fd)
        self.files[path] = (name, version, size)

    def write_new(self) -> None:
        if sum(size for _, _, size in self.files.values()) > 48 * MIB or len(self.files) > 400:
            return self.delete()
        path = self.fresh()
        return self.put(path, path, 0, self.size())

    def overwrite(self) -> None:
        path = self.some()
        name, version, _ = self.files[path]
        self.put(path, name, version + 1, self.size(), self.rng.choice((0, os.O_TRUNC)))

    def resize(self) -> None:
        path = self.some()
        name, version, size = self.files[path]
        cut = self.rng.randrange(size + 1)
        os.truncate(self.root / path, cut)
        data = (self.root / path).read_bytes()
        expect(
            data == content(name, version, size)[:cut],
            f"{path}: wrong bytes after truncate to {cut}",
        )
        os.truncate(self.root / path, size)
        with open(self.root / path, "r+b") as file:
            file.seek(cut)
            expect(file.read() == bytes(size - cut), f"{path}: no zeros behind {cut}")
            file.seek(cut)
            file.write(content(name, version, size)[cut:])

    def check(self) -> None:
        self.verify(self.some())

    def verify(self, path: str) -> None:
        """The whole file, or a piece of it."""
        name, version, size = self.files[path]
        want = content(name, version, size)
        if self.rng.random() < 0.5:
            expect((self.root / path).read_bytes() == want, f"{path}: wrong bytes")
        else:
            with open(self.root / path, "rb", buffering=0) as file:
                start = self.rng.randrange(size + 1)
                file.seek(start)
                expect(
                    file.read(70_001) == want[start : start + 70_001],
                    f"{path}: wrong bytes at {start}",
                )
        expect(os.stat(self.root / path).st_size == size, f"{path}: wrong size")

    def rename(self) -> None:
        old, new = self.some(), self.fresh()
        os.rename(self.root / old, self.root / new)
        self.files[new] = self.files.pop(old)
        expect(not (self.root / old).exists(), f"{old}: still there after rename")
        self.verify(new)

    def replace(self) -> None:
        """Write beside and rename over: the name always shows a whole version."""
        path, beside = self.some(), self.fresh()
        name, version, _ = self.files[path]
        self.put(beside, name, version + 1, self.size())
        os.rename(self.root / beside, self.root / path)
        self.files[path] = self.files.pop(beside)
        self.verify(path)

    def delete(self) -> None:
        path = self.some()
        os.unlink(self.root / path)
        del self.files[path]
        expect(not os.path.lexists(self.root / path), f"{path}: still there after unlink")

    def map(self) -> None:
        path = self.some()
        name, version, size = self.files[path]
        if size:
            data = content(name, version + 1, size)
            with open(self.root / path, "r+b") as file, mmap.mmap(file.fileno(), size) as view:
                view[:] = data
                if self.rng.random() < 0.5:
                    view.flush()
            self.files[path] = (name, version + 1, size)
            self.verify(path)

    def hold_unlinked(self) -> None:
        path = self.fresh()
        self.put(path, path, 7, 200_000)
        with open(self.root / path, "r+b", buffering=0) as file:
            os.unlink(self.root / path)
            name, version, size = self.files.pop(path)
            file.write(b"x" * 10)
            file.seek(0)
            data = b"".join(iter(lambda: file.read(65_536), b""))
            want = b"x" * 10 + content(name, version, size)[10:]
            expect(data == want, f"{path}: wrong bytes after unlink")

    def listing(self) -> None:
        folder = f"d{self.rng.randrange(12)}"
        names = os.listdir(self.root / folder)
        expect(len(names) == len(set(names)), f"{folder}: a name twice")
        mine = {n for n in names if n.startswith(f"w{self.number}-")}
        want = {p.partition("/")[2] for p in self.files if p.startswith(f"{folder}/")}
        expect(mine == want, f"{folder}: listing differs: {sorted(mine ^ want)[:5]}")


def expect(fact: bool, message: str) -> None:
    """Stops the worker on the first lie."""
    if not fact:
        raise RuntimeError(message)


def work(root: Path, number: int, seed: int, seconds: float, answers: Any) -> None:
    """A worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(root, number, seed, time.monotonic() + seconds)
    try:
        answers.put((number, worker.run(), worker.count, worker.bytes, ""))
    except Exception as error:  # noqa: BLE001 - the parent reports it
        text = f"{type(error).__name__}: {error}"
        answers.put((number, worker.files, worker.count, worker.bytes, text))


def compare(root: Path, files: dict[str, tuple[str, int, int]]) -> list[str]:
    """Every name and every byte."""
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    wrong = [f"{path}: is missing" for path in sorted(files.keys() - there)]
    wrong += [f"{path}: should not be there" for path in sorted(there - files.keys())]
    for path, (name, version, size) in files.items():
        if path in there and (root / path).read_bytes() != content(name, version, size):
            wrong.append(f"{path}: wrong bytes")
    return wrong


def soak(
    root: Path, arguments: argparse.Namespace
) -> tuple[dict[str, tuple[str, int, int]], list[str]]:
    """Runs the workers and gathers what they left."""
    for number in range(12):
        (root / f"d{number}").mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    seconds = arguments.minutes * 60
    jobs = [
        context.Process(target=work, args=(root, n, arguments.seed, seconds, answers))
        for n in range(arguments.jobs)
    ]
    for job in jobs:
        job.start()
    files: dict[str, tuple[str, int, int]] = {}
    wrong: list[str] = []
    try:
        for _ in jobs:
            number, left, count, size, error = answers.get(timeout=seconds + 180)
            done = f"{count} operations, {size / MIB:.0f} MiB written, {len(left)} files left"
            print(f"worker {number}: {done} {error}", flush=True)
            files.update(left)
            wrong += [f"worker {number}: {error}"] if error else []
    finally:
        for job in jobs:
            job.join(10)
            if job.is_alive():
                job.kill()
    return files, wrong


def main() -> int:
    """0 if every byte was right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--options", default="")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--plain", action="store_true", help="on the local disk: tests this tool")
    arguments = parser.parse_args()
    print(
        f"seed {arguments.seed}: {arguments.minutes:g} minutes with {arguments.jobs} jobs",
        flush=True,
    )
    top = Path(tempfile.mkdtemp(prefix=f"mpifs-test-{os.getpid()}-"))
    guard = Guard(top)
    guard.arm(arguments.minutes * 60 + 600)
    volume = None
    try:
        if arguments.plain:
            files, wrong = soak(top / "plain", arguments)
            wrong += compare(top / "plain", files)
        else:
            mkfs = ("--replicas", str(arguments.replicas))
            options = tuple(filter(None, arguments.options.split(",")))
            volume = Volume(
                top / "volume", top, workers=arguments.workers, mkfs=mkfs, options=options
            )
            volume.make().mount()
            files, wrong = soak(volume.mnt / "soak", arguments)
            wrong += compare(volume.mnt / "soak", files)
            volume.remount()
            wrong += [f"after the remount: {line}" for line in compare(volume.mnt / "soak", files)]
            if wrong:
                print(volume.log_tail())
            volume.umount()
    finally:
        left = sweep(top, own=(guard.pid,))
        guard.close()
        shutil.rmtree(top, ignore_errors=True)
    for line in [*wrong, *left][:50]:
        print(line, file=sys.stderr)
    result = f"{len(files)} files compared; {len(wrong)} wrong, {len(left)} left behind"
    print(f"{result}; seed {arguments.seed}")
    return 1 if wrong or left else 0


if __name__ == "__main__":
    sys.exit(main())
