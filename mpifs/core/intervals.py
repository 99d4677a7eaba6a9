"""Sorted, disjoint, half-open intervals [start, end) of integers, as a plain list of pairs."""

from __future__ import annotations

from typing import TypeAlias

Intervals: TypeAlias = "list[tuple[int, int]]"


def add(intervals: Intervals, start: int, end: int) -> None:
    """Adds [start, end) in place, merging what touches.  Requires: start < end."""
    if intervals and intervals[-1][0] <= start <= intervals[-1][1]:  # an append: the common case
        first, last = intervals[-1]
        intervals[-1] = (first, max(last, end))
        return
    kept = []
    for first, last in intervals:
        if last < start or first > end:
            kept.append((first, last))
        else:
            start, end = min(start, first), max(end, last)
    kept.append((start, end))
    kept.sort()
    intervals[:] = kept


def clip(intervals: Intervals, limit: int) -> None:
    """Drops everything from `limit` on, in place."""
    intervals[:] = [(start, min(end, limit)) for start, end in intervals if start < limit]


def covers(intervals: Intervals, start: int, end: int) -> bool:
    """Whether [start, end) lies inside one interval; an empty range is always covered."""
    return start >= end or any(first <= start and end <= last for first, last in intervals)


def gaps(intervals: Intervals, end: int) -> Intervals:
    """The parts of [0, end) that no interval covers."""
    missing = []
    position = 0
    for first, last in intervals:
        if first >= end:
            break
        if position < first:
            missing.append((position, first))
        position = max(position, last)
    if position < end:
        missing.append((position, end))
    return missing
