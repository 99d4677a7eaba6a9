#!/usr/bin/env python3
"""How long a volume mounted with -o restart is away when its master dies: kill to first byte read.

tools/returns.py [--count 5] [--workers 2] [--mpi openmpi]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mpifs.job import state as job_state
from mpifs.job.folder import VolumeFolder
from tests.mount.harness import Guard, Volume, poll, sweep

CONTENT = b"what was there before" * 10_000
BACK_S = 30.0


def measure(volume: Volume) -> float:
    """Seconds from the death of rank 0 to the file's bytes.  Each mount crashes once."""
    folder = VolumeFolder(os.path.realpath(volume.store))
    volume.mount("restart=1")
    rank0 = job_state.process(job_state.read(folder), "rank0")
    assert rank0 is not None
    begun = time.monotonic()
    os.kill(rank0.pid, signal.SIGKILL)

    def is_back() -> bool:
        with contextlib.suppress(OSError):
            return (volume / "file").read_bytes() == CONTENT
        return False

    poll(is_back, BACK_S, "the volume is back", 0.01)
    took_s = time.monotonic() - begun
    volume.umount()
    return took_s


def main() -> int:
    """Prints the times; 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mpi", default="openmpi")
    words = parser.parse_args()
    top = Path(tempfile.mkdtemp(prefix=f"mpifs-test-{os.getpid()}-"))
    guard = Guard(top)
    guard.arm(60 + 60 * words.count)
    try:
        volume = Volume(top / "v", top, workers=words.workers, arguments=("--mpi", words.mpi))
        volume.make().mount()
        (volume / "file").write_bytes(CONTENT)
        volume.umount()
        times = [measure(volume) for _ in range(words.count)]
    finally:
        sweep(top, own=(guard.pid,))
        guard.close()
        shutil.rmtree(top, ignore_errors=True)
    shown = " ".join(f"{value:.2f}" for value in times)
    print(f"back after {statistics.median(times):.2f} s (median of {shown})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
