"""What happened between two looks at rank 0's counters (figures.py), and how to look.

No clock of its own: the time between two documents is rank 0's.
"""

from __future__ import annotations

from typing import Any

from mpifs.core.errors import PosixError
from mpifs.core.limits import STATUS_TIMEOUT_S
from mpifs.job import state as job_state
from mpifs.job.control import ControlClient
from mpifs.job.folder import VolumeFolder

Document = dict[str, Any]
_PER_S = ("requests", "sent_bytes", "received_bytes")


def is_served(folder: VolumeFolder) -> bool:
    """Whether rank 0 is there to be asked."""
    state = job_state.read(folder)
    has_rank0 = job_state.process(state, "rank0") is not None
    return has_rank0 and state.get("state") == job_state.READY


def look(folder: VolumeFolder) -> Document:
    """The counters now.  Raises OSError when the volume is not served."""
    if not is_served(folder):
        raise PosixError(107, f"{folder.path} is not mounted; mount it with: mpifs mount")
    with ControlClient(folder.socket, STATUS_TIMEOUT_S) as client:
        return client.call("figures")


def between(before: Document | None, after: Document) -> Document:
    """Rates between two documents of one mount, all zero for the first.

    `fuse` has a row for each kind of request that was served: count, per_s, errors, seconds,
    mean_s, p99_s and max_s (upper bounds by powers of two; None when none of a few was timed).
    `workers` has requests_per_s, sent_bytes_per_s, received_bytes_per_s and mean_s of each.
    `commits`: per_s and mean_s.
    """
    if before is not None and before["clock_s"] >= after["clock_s"]:
        before = None  # another mount.
    seconds = after["clock_s"] - before["clock_s"] if before else 0.0
    return {
        "seconds": seconds,
        "fuse": _kinds(before, after, seconds),
        "workers": _workers(before, after, seconds),
        "commits": _commits(before, after, seconds),
    }


def _kinds(before: Document | None, after: Document, seconds: float) -> list[Document]:
    old = {row["kind"]: row for row in before["fuse"]["kinds"]} if before else {}
    rows = []
    for row in after["fuse"]["kinds"] if before else []:
        was = old.get(row["kind"], {"count": 0, "seconds": 0.0, "errors": 0, "buckets": []})
        count = row["count"] - was["count"]
        if count <= 0:
            continue
        spent = max(0.0, row["seconds"] - was["seconds"])
        earlier = was["buckets"] or [0] * len(row["buckets"])
        buckets = [now - then for now, then in zip(row["buckets"], earlier, strict=True)]
        timed = sum(buckets)
        rows.append(
            {
                "kind": row["kind"],
                "count": count,
                "per_s": count / seconds,
                "errors": row["errors"] - was["errors"],
                "seconds": spent,
                "mean_s": spent / timed if timed else None,
                "p99_s": below(buckets, 0.99) if timed else None,
                "max_s": below(buckets, 1.0) if timed else None,
            }
        )
    return sorted(rows, key=lambda one: -one["count"])


def below(buckets: list[int], share: float) -> float:
    """Seconds below which that share of the requests stayed: a power of two of a microsecond."""
    wanted, seen = share * sum(buckets), 0
    for place, count in enumerate(buckets):
        seen += count
        if seen and seen >= wanted:
            return float(2**place) / 1e6
    return 0.0


def _workers(before: Document | None, after: Document, seconds: float) -> list[Document]:
    old = {row["id"]: row for row in before["workers"]} if before else {}
    rows = []
    for row in after["workers"]:
        was = old.get(row["id"]) or row
        fields: Document = {"id": row["id"]}
        for name in _PER_S:
            change = max(0, row[name] - was[name])
            fields[f"{name}_per_s"] = change / seconds if seconds else 0.0
        count = row["requests"] - was["requests"]
        fields["mean_s"] = (row["seconds"] - was["seconds"]) / count if count > 0 else None
        rows.append(fields)
    return rows


def _commits(before: Document | None, after: Document, seconds: float) -> Document:
    was = before["commits"] if before else after["commits"]
    count = after["commits"]["count"] - was["count"]
    spent = after["commits"]["seconds"] - was["seconds"]
    return {
        "per_s": count / seconds if seconds else 0.0,
        "mean_s": spent / count if count > 0 else None,
    }
