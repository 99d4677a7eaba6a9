"""Counters of the kernel's requests."""

from __future__ import annotations

from mpifs.core.types import Caller
from mpifs.fuse.figures import Figures


class _Asked:
    caller = Caller(0, 0, 42)


def test_counters_are_added_up() -> None:
    """Of all threads: count, time, errors, and each single slow one."""
    figures = Figures()
    first, second = figures.counter(), figures.counter()
    first.count(15, 3e-6, _Asked())
    figures.refused()  # this thread's last counter.
    second.count(15, 5e-6, _Asked())
    second.count(15, 0.0, _Asked())
    second.count(20, 1000.0, _Asked())
    second.count(4096, 1e-6, _Asked())
    document = figures.document()
    rows = {row["kind"]: row for row in document["kinds"]}
    assert set(rows) == {"READ", "FSYNC", "OTHER"}
    assert rows["READ"]["count"] == 3
    assert rows["READ"]["errors"] == 1
    assert rows["READ"]["buckets"][:4] == [1, 0, 1, 1]
    assert rows["FSYNC"]["buckets"][-1] == 1
    assert [(one["kind"], one["pid"]) for one in document["slow"]] == [("FSYNC", 42)]
