"""A volume of a measurement's own: made, mounted and removed by the command line."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mpifs.bench.places import Place, know_processes
from mpifs.bench.processes import Drivers, Mark
from mpifs.job.folder import VolumeFolder

COMMAND_S = 300.0


class BenchVolume:
    """STORE and MNT in one folder; `place` is filled in while it is mounted."""

    def __init__(self, home: Path, workers: int, env: dict[str, str] | None = None) -> None:
        self.home = home
        self.store = home / "store"
        self.mnt = home / "mnt"
        self._workers = workers
        self._env = {**os.environ, **(env or {})}
        self.place = Place(home.name, os.fspath(self.mnt))
        self.mnt.mkdir(parents=True, exist_ok=True)

    def run(self, *words: str | Path) -> float:
        """An mpifs command; its seconds."""
        command = [sys.executable, "-m", "mpifs", *map(str, words)]
        start = time.perf_counter()
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self._env,
            timeout=COMMAND_S,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} gave {done.returncode}: {done.stderr}")
        return time.perf_counter() - start

    def mount(self, *options: str) -> float:
        """Mounts it, makes it if it is not there; seconds until the command returned."""
        more = ["-o", ",".join(options)] if options else []
        took = self.run("mount", self.store, self.mnt, "-w", str(self._workers), *more)
        self.place.volume = VolumeFolder(os.path.realpath(self.store))
        know_processes(self.place)
        return took

    def umount(self) -> float:
        """Unmounts it; seconds until all ranks were gone."""
        return self.run("umount", self.mnt)


@contextlib.contextmanager
def drivers(home: Path) -> Iterator[Drivers]:
    """Processes that carry out workloads (mpifs/bench/workloads.py)."""
    with Mark() as mark, open(home / "drivers.log", "wb") as log:
        crew = Drivers(mark, log)
        try:
            yield crew
        finally:
            crew.close()


def remove(volume: BenchVolume) -> None:
    """Takes a volume away, whatever state it is in."""
    if os.path.ismount(volume.mnt):
        volume.umount()
    shutil.rmtree(volume.home, ignore_errors=True)
