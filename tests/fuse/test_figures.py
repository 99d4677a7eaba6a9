"""Counters of the kernel's requests."""

from __future__ import annotations

import time

from mpifs.core.limits import FIGURES_PERIOD
from mpifs.core.types import Caller
from mpifs.fuse.figures import Counter, Figures


class _Asked:
    caller = Caller(0, 0, 42)


def _count(counter: Counter, opcode: int, since_s: float) -> None:
    """As the loop does."""
    if counter.left[opcode]:
        counter.left[opcode] -= 1
    else:
        counter.timed(opcode, since_s, _Asked())


def test_counters_are_added_up() -> None:
    """Of all threads: count, time, errors, and each single slow one."""
    figures = Figures()
    first, second = figures.counter(), figures.counter()
    for counter in (first, second, second):
        _count(counter, 15, time.monotonic() - 1e-3)
    figures.refused(15)
    _count(second, 20, time.monotonic() - 1000.0)
    _count(second, 4096, time.monotonic())
    document = figures.document()
    rows = {row["kind"]: row for row in document["kinds"]}
    assert set(rows) == {"READ", "FSYNC", "OTHER"}
    assert rows["READ"]["count"] == 3
    assert rows["READ"]["errors"] == 1
    assert sum(rows["READ"]["buckets"][10:]) == sum(rows["READ"]["buckets"]) == 3
    assert rows["READ"]["seconds"] >= 3e-3
    assert rows["FSYNC"]["buckets"][-1] == 1
    assert [(one["kind"], one["pid"]) for one in document["slow"]] == [("FSYNC", 42)]


def test_quick_ones_are_all_counted() -> None:
    """Though not each is timed; a slow one in between has the next ones timed again."""
    figures = Figures()
    counter = figures.counter()
    later = time.monotonic() + 1000  # of the future: its time is less than any.
    for number in range(1, 30):
        _count(counter, 3, later)
        (row,) = figures.document()["kinds"]
        assert row["count"] == number
        assert 0 <= number - sum(row["buckets"]) < FIGURES_PERIOD
    before = sum(row["buckets"])
    for _ in range(2 * FIGURES_PERIOD):
        _count(counter, 3, time.monotonic() - 1.0)
    (row,) = figures.document()["kinds"]
    assert row["count"] == 29 + 2 * FIGURES_PERIOD == sum(row["buckets"])
    assert sum(row["buckets"][20:]) >= row["count"] - before - FIGURES_PERIOD
