"""A driver: a process that carries out workloads, so that no two share an interpreter's lock.

Run as `python -m mpifs.bench.driver`.  A request is a line of JSON; so is its answer.  A timed
workload says {"ready": true} when it is prepared, and hears the moment at which it is to begin.
Ends at the end of its input, so it never outlives the command that started it.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

from mpifs.bench.workloads import WORKLOADS


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _start() -> float:
    """See workloads.Start."""
    _say({"ready": True})
    line = sys.stdin.readline()
    if not line:
        sys.exit(1)
    left_s = float(line) - time.monotonic()
    if left_s > 0:
        time.sleep(left_s)
    return time.monotonic()


def _run(request: dict[str, Any]) -> dict[str, Any]:
    name = request.pop("work")
    loads = WORKLOADS
    if name not in loads:
        from mpifs.bench.limit_loads import LIMIT_LOADS as loads  # LMDB only where it is wanted.
    try:
        return loads[name](start=_start, **request)._asdict()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return {"error": f"{name}: {where}{error.strerror or error}"}
    except AssertionError as error:
        return {"error": f"{name}: {error or 'a record is missing'}"}


def main() -> int:
    """Answers requests until there are no more."""
    gc.disable()  # nothing here makes cycles, and a pause would be measured.
    while line := sys.stdin.readline():
        _say(_run(json.loads(line)))
        gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
