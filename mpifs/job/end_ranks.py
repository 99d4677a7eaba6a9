"""Ends what a job's former start has left on this host.

The supervisor has it run on every host before a restart, by ssh or the launch agent: ranks that
have not noticed yet that their launcher is gone still hold their stores.  That it runs shows that
the host is there.

With the folder of a volume that goes with its job (`mpifs run --scratch`), the volume's stores on
this host are removed afterwards.

Run as: python -m mpifs.job.end_ranks JOB [VOLUME UUID]
"""

from __future__ import annotations

import sys

from mpifs.job.processes import kill, marked_with


def main() -> int:
    """0 when nothing is left."""
    left = kill(marked_with(sys.argv[1]), 3.0)
    if len(sys.argv) > 3 and not left:
        from mpifs.job.run_scratch import remove_stores

        remove_stores(sys.argv[2], bytes.fromhex(sys.argv[3]))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
