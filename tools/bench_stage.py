"""Files per second of stage-in and stage-out beside `cp -a` through the mount and `tar` on a disk.

    .venv/bin/python tools/bench_stage.py [--files 20000] [--size 1024] [--rounds 3] [--workers 4]

All four are measured in turn, `--rounds` times, in one folder; the medians and their ratios are
printed.  The volume is mounted meanwhile.  Everything that was made is removed again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PER_FOLDER = 1000


def mpifs(*words: str | Path) -> str:
    """Runs a command of this checkout; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "mpifs", *map(str, words)], check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode()


def plant(top: Path, files: int, size: int) -> None:
    """Files of random bytes, PER_FOLDER in each folder."""
    for first in range(0, files, PER_FOLDER):
        folder = top / f"d{first // PER_FOLDER}"
        folder.mkdir(parents=True)
        data = memoryview(os.urandom(size * min(PER_FOLDER, files - first)))
        for n in range(min(PER_FOLDER, files - first)):
            (folder / f"f{n}").write_bytes(data[n * size : (n + 1) * size])


def timed(action: Callable[[], object]) -> float:
    """Seconds."""
    start = time.monotonic()
    action()
    return time.monotonic() - start


def tar(source: Path, target: Path) -> None:
    """Copies a tree by a pipe of two tars."""
    target.mkdir()
    packer = subprocess.Popen(["tar", "cf", "-", "."], cwd=source, stdout=subprocess.PIPE)
    subprocess.run(["tar", "xf", "-"], cwd=target, stdin=packer.stdout, check=True)
    assert packer.wait() == 0


def measure(place: Path, rounds: int, *, with_cp: bool) -> dict[str, list[float]]:
    """Seconds of each way, one after the other, `rounds` times."""
    source, mount = place / "source", place / "mnt"
    found: dict[str, list[float]] = {"stage-in": [], "stage-out": [], "tar": []}
    if with_cp:
        found["cp -a"] = []
    for turn in range(rounds):
        if with_cp:
            copy = ["cp", "-a", str(source), str(mount / "copied")]
            found["cp -a"].append(timed(lambda copy=copy: subprocess.run(copy, check=True)))
            shutil.rmtree(mount / "copied")
        target = f"{mount}:/staged{turn}"
        done = json.loads(mpifs("stage-in", "--json", source, target))
        assert not done["failed"], done
        found["stage-in"].append(done["seconds"])
        done = json.loads(mpifs("stage-out", "--json", target, place / "out"))
        assert not done["failed"], done
        found["stage-out"].append(done["seconds"])
        subprocess.run(["diff", "-r", source, place / "out"], check=True)
        found["tar"].append(timed(lambda: tar(source, place / "tar")))
        for made in (place / "out", place / "tar", mount / f"staged{turn}"):
            shutil.rmtree(made)
    return found


def main() -> int:
    """Measures and prints; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--no-cp", action="store_true", help="leave the slow one out")
    parser.add_argument("--folder", default=None, help="where everything is made")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="mpifs-bench-stage-", dir=given.folder))
    try:
        (place / "mnt").mkdir()
        plant(place / "source", given.files, given.size)
        mpifs("mount", place / "volume", place / "mnt", "-w", str(given.workers))
        try:
            found = measure(place, given.rounds, with_cp=not given.no_cp)
        finally:
            mpifs("umount", place / "mnt")
        print(mpifs("fsck", place / "volume"), end="")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    rates = {name: given.files / statistics.median(each) for name, each in found.items()}
    for name, rate in rates.items():
        spread = ", ".join(f"{given.files / seconds:.0f}" for seconds in found[name])
        ratio = f"{rate / rates['cp -a']:.1f} x cp -a, " if "cp -a" in rates else ""
        print(f"{name:10} {rate:8.0f} files/s  ({ratio}{rate / rates['tar']:.2f} x tar; {spread})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
