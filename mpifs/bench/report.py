"""From measured values to the document: medians, spread, the lowest limit and the share of it.

Pure: no clock, no files.  The shape of the document is that of `--json` (doc/performance.md).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mpifs.bench.phases import DISK, FUSE, LIMIT_TITLES, RATIOS, Phase

Values = Mapping[str, Sequence[float]]
"""Values by place or limit."""
Document = dict[str, Any]


def figure(values: Sequence[float]) -> Document:
    """Median and spread of repeats."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "values": list(values),
    }


def spread_of(found: Document) -> float:
    """Half of the distance between the extremes, as a part of the median."""
    median = found["median"]
    return (found["high"] - found["low"]) / 2 / median if median else 0.0


def share_of(product: float, limit: float, *, is_less_better: bool) -> float:
    """How much of a limit the product reaches; 1.0 is all of it."""
    over, under = (limit, product) if is_less_better else (product, limit)
    return over / under if under else 0.0


def round_get(round_trips: Sequence[float], gets: Sequence[float]) -> list[float]:
    """Rates of a round trip followed by a get, from the rates of both in each repeat."""
    return [1.0 / (1.0 / one + 1.0 / other) for one, other in zip(round_trips, gets, strict=True)]


def row(phase: Phase, targets: Mapping[str, bool], places: Values, free_limits: Values) -> Document:
    """One phase of the document.  `targets` tells of each whether it is a volume of mpifs: the
    limits are those of volumes, other file systems just stand beside.  `places` has the values of
    the targets, `fuse` and `disk`; `free_limits` those of limits without a file system."""
    limits: Document = {}
    for name in phase.limits:
        if name in (FUSE, DISK):
            if places.get(name):
                limits[name] = figure(places[name])
        elif name in free_limits:
            limits[name] = figure(free_limits[name])
    neighbours = {
        name: figure(places[name])
        for name in (FUSE, DISK)
        if name not in limits and places.get(name)
    }
    found: Document = {
        "name": phase.name,
        "title": phase.title,
        "unit": phase.unit,
        "better": "less" if phase.is_less_better else "more",
        "targets": {name: figure(places[name]) for name in targets if places.get(name)},
        "limits": limits,
        "beside": neighbours,
        "lowest": None,
        "shares": {},
    }
    if limits:
        pick = max if phase.is_less_better else min
        lowest = pick(limits, key=lambda name: limits[name]["median"])
        found["lowest"] = lowest
        found["shares"] = {
            name: share_of(
                each["median"], limits[lowest]["median"], is_less_better=phase.is_less_better
            )
            for name, each in found["targets"].items()
            if targets[name]
        }
    return found


def ratio_rows(rows: Sequence[Document], free_limits: Values) -> list[Document]:
    """The quotients whose both sides were measured, for all places."""
    by_name = {each["name"]: each for each in rows}
    found = []
    for name, title, above, below in RATIOS:
        if above not in by_name or not (below in by_name or below in free_limits):
            continue
        targets, beside = by_name[above]["targets"], _others(by_name[above])
        if below in by_name:
            under_targets, under_beside = by_name[below]["targets"], _others(by_name[below])
        else:
            limit = figure(free_limits[below])
            under_targets, under_beside = (
                dict.fromkeys(targets, limit),
                dict.fromkeys(beside, limit),
            )
        found.append(
            {
                "name": name,
                "title": title,
                "targets": _quotients(targets, under_targets),
                "beside": _quotients(beside, under_beside),
            }
        )
    return found


def _others(found: Document) -> Document:
    both = {**found["limits"], **found["beside"]}
    return {name: both[name] for name in (FUSE, DISK) if name in both}


def _quotients(above: Document, below: Document) -> dict[str, float]:
    return {
        name: above[name]["median"] / below[name]["median"]
        for name in above
        if name in below and below[name]["median"]
    }


def title_of(name: str) -> str:
    """A limit or neighbour for people."""
    return LIMIT_TITLES.get(name, name)


def human(value: float) -> str:
    """A figure with three significant digits or more, thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
