"""Figures of one volume of four workers beside the plain disk, in one run, interleaved, medians.

    .venv/bin/python tools/figures.py [FOLDER] [--repeats 3] [--big]

Copies 1 GiB in and out (cold caches), makes, stats and lists 5,000 files of 4 KiB, unpacks a
source tree; then the CPU of all ranks while idle for 30 s and, with --big, the memory of rank 0
after 4 GiB.  Drops the kernel's caches, so it wants root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
FILES = 5000


def run(*command: str) -> str:
    """Runs a command; its standard output.  Raises on failure."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def mpifs(*words: str) -> str:
    """An mpifs command."""
    return run(sys.executable, "-m", "mpifs", *words)


def drop_caches() -> None:
    """Empties the kernel's caches of clean pages and names."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def timed(action: Callable[[], object]) -> float:
    """Seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def make_files(folder: Path) -> None:
    """Creates, writes and closes FILES files of 4 KiB."""
    folder.mkdir()
    block = os.urandom(4096)
    for number in range(FILES):
        with open(folder / f"f{number}", "wb", buffering=0) as file:
            file.write(block)


def stat_files(folder: Path) -> None:
    """Stats them all by name."""
    for number in range(FILES):
        os.stat(folder / f"f{number}")


def measure(place: Path, source: Path, tree: Path, scratch: Path) -> dict[str, float]:
    """One round in one place; MB/s or operations per second."""
    row = {}
    size = source.stat().st_size / 1e6
    drop_caches()
    row["cp in, MB/s"] = size / timed(lambda: shutil.copyfile(source, place / "big"))
    row["cp in and sync, MB/s"] = size / timed(
        lambda: (shutil.copyfile(source, place / "big2"), os.system(f"sync {place}/big2"))
    )
    drop_caches()
    row["cp out cold, MB/s"] = size / timed(lambda: shutil.copyfile(place / "big", scratch / "out"))
    row["create 4 KiB, files/s"] = FILES / timed(lambda: make_files(place / "many"))
    row["stat, /s"] = FILES / timed(lambda: stat_files(place / "many"))
    row["ls -l, entries/s"] = FILES / timed(lambda: run("ls", "-l", str(place / "many")))
    row["untar, s"] = timed(lambda: run("tar", "xf", str(tree), "-C", str(place)))
    row["unlink, files/s"] = FILES / timed(lambda: shutil.rmtree(place / "many"))
    for entry in os.listdir(place):
        path = place / entry
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return row


def processor_seconds(pids: list[int]) -> float:
    """Processor time that processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process, most ever and now."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def main() -> int:
    """Measures and prints a table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--big", action="store_true")
    parser.add_argument("-o", dest="options", default="")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpifs-figures-", dir=words.folder) as name:
        home = Path(name)
        source, tree = home / "source", home / "tree.tar"
        with open(source, "wb") as file:
            for _ in range(words.mib):
                file.write(os.urandom(MIB))
        library = sysconfig.get_paths()["stdlib"]
        run("tar", "cf", str(tree), "--exclude=site-packages", "--exclude=test", "-C", library, ".")
        store, mount, plain = home / "store", home / "mnt", home / "plain"
        mount.mkdir()
        plain.mkdir()
        options = ("-o", words.options) if words.options else ()
        mpifs("mount", str(store), str(mount), *options)
        try:
            report(home, words, source, tree)
        finally:
            mpifs("umount", str(mount))
    return 0


def report(home: Path, words: argparse.Namespace, source: Path, tree: Path) -> None:
    """The rounds, idle figures and the table."""
    mount, plain = home / "mnt", home / "plain"
    rounds: dict[str, list[dict[str, float]]] = {"mpifs": [], "plain": []}
    for _ in range(words.repeats):
        rounds["mpifs"].append(measure(mount, source, tree, home))
        rounds["plain"].append(measure(plain, source, tree, home))
    print(f"{'':24}{'mpifs':>12}{'plain disk':>12}{'ratio':>8}")
    for key in rounds["mpifs"][0]:
        mine, other = (statistics.median(row[key] for row in rounds[who]) for who in rounds)
        print(f"{key:24}{mine:12.1f}{other:12.1f}{mine / other:8.2f}")
    status = json.loads(mpifs("status", str(mount), "--json"))
    master = status["mount"]["pid"]
    pids = [master] + [worker["pid"] for worker in status["workers"]]
    time.sleep(3)
    before = processor_seconds(pids)
    time.sleep(30)
    print(f"idle CPU of all ranks: {(processor_seconds(pids) - before) / 30 * 100:.2f} % of a core")
    print(f"rank 0 resident: {resident_mib(master):.0f} MiB")
    if words.big:
        for number in range(4):
            shutil.copyfile(source, mount / f"copy{number}")
        print(f"rank 0 resident after 4 more copies: {resident_mib(master):.0f} MiB")
        print("workers resident:", [round(resident_mib(pid)) for pid in pids[1:]])


if __name__ == "__main__":
    sys.exit(main())
