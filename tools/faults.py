"""Plants damage in a volume at rest, for tests of verify and repair.

    .venv/bin/python tools/faults.py STORE KIND… [--seed N] [--force]
    .venv/bin/python tools/faults.py STORE --mixture 5 --seed N
    .venv/bin/python tools/faults.py --list

Prints one JSON line for each fault: kind, path, inode, chunk, worker.  The same seed on the same
volume plants the same.  It destroys data: a volume with more than LIMIT_BYTES asks for --force.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from planting.kinds import KINDS, plant
from planting.mixtures import mixture
from planting.volume import NothingLeftError, RestingVolume

LIMIT_BYTES = 1 << 30


def main() -> int:
    """Plants and prints; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", nargs="?", help="the volume's folder")
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixture", type=int, default=0, metavar="COUNT")
    parser.add_argument("--list", action="store_true", help="names all kinds")
    parser.add_argument("--force", action="store_true")
    words = parser.parse_args()
    if words.list or not words.store:
        for kind in sorted(KINDS.values(), key=lambda kind: (kind.family, kind.name)):
            print(f"{kind.family:8} {kind.name:28} {kind.summary}")
        return 0
    unknown = [name for name in words.kinds if name not in KINDS]
    if unknown:
        parser.error(f"no such kind: {', '.join(unknown)} (see --list)")
    volume = RestingVolume(words.store, words.seed)
    if volume.counters.payload_bytes > LIMIT_BYTES and not words.force:
        parser.error("the volume holds more than 1 GiB; --force if its data may be destroyed")
    names = words.kinds or mixture(volume, words.mixture, words.seed)
    try:
        for planted in plant(volume, names, skips=not words.kinds):
            print(json.dumps(planted.document()))
    except NothingLeftError:
        print("faults: the volume has no place left for all of these", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
