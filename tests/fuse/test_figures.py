"""Counters of the kernel's requests."""

from __future__ import annotations

import time

from mpifs.core.types import Caller
from mpifs.fuse.figures import Figures


class _Asked:
    caller = Caller(0, 0, 42)


def test_counters_are_added_up() -> None:
    """Of all threads: count, time, errors, and each single slow one."""
    figures = Figures()
    first, second = figures.counter(), figures.counter()
    first.count(15, time.monotonic() - 1e-4, _Asked())
    figures.refused()  # this thread's last counter.
    second.count(15, time.monotonic() - 1e-4, _Asked())
    second.count(15, time.monotonic() - 1e-4, _Asked())
    second.count(20, time.monotonic() - 1000.0, _Asked())
    second.count(4096, time.monotonic(), _Asked())
    document = figures.document()
    rows = {row["kind"]: row for row in document["kinds"]}
    assert set(rows) == {"READ", "FSYNC", "OTHER"}
    assert rows["READ"]["count"] == 3
    assert rows["READ"]["errors"] == 1
    assert sum(rows["READ"]["buckets"][7:]) == sum(rows["READ"]["buckets"]) == 3
    assert rows["READ"]["seconds"] >= 3e-4
    assert rows["FSYNC"]["buckets"][-1] == 1
    assert [(one["kind"], one["pid"]) for one in document["slow"]] == [("FSYNC", 42)]
