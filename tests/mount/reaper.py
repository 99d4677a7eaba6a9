"""The guard's process (see harness.Guard): lines on stdin arm a deadline, EOF means clean up."""

from __future__ import annotations

import os
import select
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import harness


def main(root: str, owner: int) -> None:
    """Ends when pytest closes the pipe or is gone."""
    deadline = None
    while True:
        wait = 5.0 if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([0], [], [], min(wait, 5.0))
        if ready:
            data = os.read(0, 65536)
            if not data:
                break
            seconds = float(data.splitlines()[-1])
            deadline = time.monotonic() + seconds if seconds else None
        elif not Path(f"/proc/{owner}").exists():
            break
        elif deadline is not None and time.monotonic() >= deadline:
            for point in harness.abort_mounts(root):
                print(f"\nguard: a test hangs, aborted {point}", file=sys.stderr, flush=True)
            deadline = None
    for line in harness.sweep(root):
        print(f"guard: removed {line}", file=sys.stderr, flush=True)
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
