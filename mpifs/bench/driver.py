"""A driver: a process that carries out workloads, so that no two share an interpreter's lock.

Run as `python -m mpifs.bench.driver`; a line of JSON each way.  Ends at the end of its input, so
it never outlives the command that started it.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

from mpifs.bench.workloads import WORKLOADS


def _run(request: dict[str, Any]) -> dict[str, Any]:
    name = request.pop("work")
    loads = WORKLOADS
    if name not in loads:
        from mpifs.bench.limit_loads import LIMIT_LOADS as loads  # LMDB only where it is wanted.
    try:
        return loads[name](**request)._asdict()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return {"error": f"{name}: {where}{error.strerror or error}"}
    except AssertionError as error:
        return {"error": f"{name}: {error or 'a record is missing'}"}


def main() -> int:
    """Answers requests until there are no more."""
    gc.disable()  # nothing here makes cycles, and a pause would be measured.
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run(json.loads(line))) + "\n")
        sys.stdout.flush()
        gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
