"""How long programs wait when a worker dies: kills workers of a real mount under load.

    python tools/deaths.py [--kills 50] [--workers 4] [--at-once 1] [--hang]

Four threads read random chunks of a file that lies on all workers (one replica, small caches, the
kernel's pages dropped), one creates, fsyncs and removes small files.  After each kill (or SIGSTOP
with --hang) the longest single call is the pause.  Any error or wrong byte ends the run with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

CHUNK = 64 * 1024
CHUNKS = 512


def mpifs(*words: object) -> str:
    """Runs a command of mpifs; its output."""
    command = [sys.executable, "-m", "mpifs", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


class Load:
    """Readers and a writer; `worst_s` is the longest call since it was last set to 0."""

    def __init__(self, mount: Path, seed: int) -> None:
        self.mount = mount
        self.worst_s = 0.0
        self.calls = 0
        self.errors: list[str] = []
        self._quit = threading.Event()
        self._chance = random.Random(seed)
        self._sums: list[int] = []
        with open(mount / "big", "wb") as file:
            for _ in range(CHUNKS):
                data = self._chance.randbytes(CHUNK)
                self._sums.append(zlib.crc32(data))
                file.write(data)
            os.fsync(file.fileno())
        works = [self._read] * 4 + [self._write]
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends all threads."""
        self._quit.set()
        for thread in self._threads:
            thread.join(120)

    def _run(self, work: object) -> None:
        fd = os.open(self.mount / "big", os.O_RDONLY)
        assert callable(work)
        while not self._quit.is_set():
            start = time.perf_counter()
            try:
                work(fd)
            except OSError as error:
                self.errors.append(f"{work.__name__}: {error}")
            self.worst_s = max(self.worst_s, time.perf_counter() - start)
            self.calls += 1
        os.close(fd)

    def _read(self, fd: int) -> None:
        number = random.randrange(CHUNKS)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        data = os.pread(fd, CHUNK, number * CHUNK)
        if zlib.crc32(data) != self._sums[number]:
            self.errors.append(f"chunk {number} has wrong bytes")

    def _write(self, fd: int) -> None:
        path = self.mount / f"small-{random.randrange(50)}"
        data = random.randbytes(random.randrange(1, 3 * CHUNK))
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != data:
            self.errors.append(f"{path.name} has wrong bytes")


def states(mount: Path) -> list[tuple[int, int, str]]:
    """(worker, pid, state) of each."""
    rows = json.loads(mpifs("status", mount, "--json"))["workers"]
    return [(row["id"], row["pid"], row["state"]) for row in rows]


def strike(mount: Path, load: Load, count: int, chance: random.Random, number: int) -> float:
    """Kills `count` workers; the longest call until all serve again and a second has passed."""
    before = states(mount)
    victims = chance.sample(before, count)
    load.worst_s = 0.0
    for _, pid, _ in victims:
        os.kill(pid, number)
    deadline = time.monotonic() + 60
    old = {pid for _, pid, _ in victims}
    while time.monotonic() < deadline:
        time.sleep(0.3)
        now = states(mount)
        if all(state == "serving" for _, _, state in now) and not old & {p for _, p, _ in now}:
            break
    else:
        load.errors.append(f"not all workers came back: {now}")
    time.sleep(0.7)
    return load.worst_s


def main() -> int:
    """Mounts, kills, tells; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--hang", action="store_true", help="SIGSTOP instead of SIGKILL")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    words = parser.parse_args()
    print(f"seed {words.seed}")
    chance = random.Random(words.seed)
    home = Path(tempfile.mkdtemp(prefix="mpifs-deaths-"))
    mount = home / "mnt"
    mount.mkdir()
    load = None
    try:
        size = ["--chunk-size", "64KiB", "-w", words.workers]
        mpifs("mount", home / "volume", mount, *size, "-o", "cache=8MiB")
        load = Load(mount, words.seed)
        time.sleep(1)
        quiet = load.worst_s
        number = signal.SIGSTOP if words.hang else signal.SIGKILL
        pauses = []
        while len(pauses) < words.kills and not load.errors:
            pauses.append(strike(mount, load, words.at_once, chance, number))
            # Three failed restarts in a minute give a worker up; these do not fail.
            print(f"{len(pauses)}: {pauses[-1]:.2f} s", flush=True)
        load.stop()
        print(
            f"{len(pauses)} kills of {words.at_once}: pause median {statistics.median(pauses):.2f} "
            f"s, max {max(pauses):.2f} s; longest call before {quiet:.2f} s; {load.calls} calls"
        )
        for error in load.errors[:10]:
            print(error)
        mpifs("umount", mount)
        return 1 if load.errors else 0
    finally:
        if load is not None:
            load.stop()
        subprocess.run(["fusermount3", "-uz", mount], capture_output=True, check=False)
        if not os.path.ismount(mount):
            log = home / "volume" / "run" / "mpifs.log"
            if load is not None and load.errors and log.exists():
                lines = log.read_text(errors="replace").splitlines()
                print("\n".join(line for line in lines if " rank 0: " in line)[-6000:])
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
