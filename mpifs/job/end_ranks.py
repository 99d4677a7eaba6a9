"""Ends what a job's former start has left on this host.  Standard library only.

The supervisor has it run on every host before a restart, by ssh or the launch agent: ranks that
have not noticed yet that their launcher is gone still hold their stores.  That it runs shows that
the host is there.

Run as: python -m mpifs.job.end_ranks JOB
"""

from __future__ import annotations

import sys

from mpifs.job.processes import kill, marked_with


def main() -> int:
    """0 when nothing is left."""
    return 1 if kill(marked_with(sys.argv[1]), 3.0) else 0


if __name__ == "__main__":
    sys.exit(main())
