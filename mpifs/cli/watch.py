"""`mpifs status --watch`: what a volume does, each second, until Ctrl-C."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from mpifs.cli.status import heal_line, size_text
from mpifs.core.limits import WATCH_S

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mpifs.job.folder import VolumeFolder

_KINDS_MAX = 14
"""Kinds of requests shown, the most frequent first: with the rest they fill a screen."""
_PLAIN_WIDTH = 120
"""Of a view that is written to a file."""


class _Look:
    """The last two documents of a volume."""

    def __init__(self, folder: VolumeFolder) -> None:
        self._folder = folder
        self._before: dict[str, Any] | None = None
        self.document: dict[str, Any] | None = None
        self.rates: dict[str, Any] = {}
        self.reason = ""

    def again(self) -> None:
        """Asks rank 0; `document` is None while there is none, and `reason` says why."""
        from mpifs.job import figures_between
        from mpifs.job import state as job_state

        self._before = self.document
        try:
            self.document = figures_between.look(self._folder)
        except OSError as error:
            name = str(job_state.read(self._folder).get("state") or "unmounted")
            is_asked = figures_between.is_served(self._folder)
            self.reason = str(error) if is_asked else {"stopped": "unmounted"}.get(name, name)
            self.document = None
            return
        self.rates = figures_between.between(self._before, self.document)


def watch_volume(folder: VolumeFolder, *, as_json: bool) -> None:
    """On a terminal a live view; elsewhere, and with `as_json`, one text or line after another."""
    try:
        if as_json:
            _print_lines(folder)
        elif sys.stdout.isatty():
            _show_live(folder)
        else:
            _print_views(folder)
    except KeyboardInterrupt:
        return


def _print_lines(folder: VolumeFolder) -> None:
    from mpifs.job.status import status_of

    look = _Look(folder)
    while True:
        look.again()
        document = dict(look.document["status"]) if look.document else status_of(folder)
        document.pop("details", None)
        if look.document:
            names = ("memory", "commits", "scrub", "workers")
            sums = {name: look.document[name] for name in names}
            document |= {"rates": look.rates, "sums": sums}
        print(json.dumps(document), flush=True)
        time.sleep(WATCH_S)


def _print_views(folder: VolumeFolder) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=_PLAIN_WIDTH)
    look = _Look(folder)
    while True:
        look.again()
        console.print(view(look.document, look.rates, folder.path, look.reason))
        console.print()
        time.sleep(WATCH_S)


def _show_live(folder: VolumeFolder) -> None:
    from rich.live import Live

    look = _Look(folder)
    look.again()
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(view(look.document, look.rates, folder.path, look.reason), refresh=True)
            time.sleep(WATCH_S)
            look.again()


def view(
    document: dict[str, Any] | None, rates: dict[str, Any], path: str, reason: str
) -> RenderableType:
    """What is shown of one look."""
    from rich.console import Group
    from rich.text import Text

    clock = time.strftime("%H:%M:%S")
    if document is None:
        return Text(f"{path}  {clock}\n\n{reason}; waiting for it to be mounted (Ctrl-C ends)")
    return Group(
        Text(_head(document, path, clock)),
        Text(),
        _workers(document, rates),
        Text(),
        _kinds(rates),
        Text(),
        Text("\n".join(_lines(document, rates))),
    )


def _head(document: dict[str, Any], path: str, clock: str) -> str:
    status = document["status"]
    volume, mount = status["volume"], status["mount"]
    where = f" at {mount['mountpoint']}" if mount["mountpoint"] else ""
    return (
        f"{path}  {mount['state']}{where}  {clock}\n"
        f"{status['files']} files, {size_text(status['bytes'])}; "
        f"chunks of {size_text(volume['chunk_size'])}, replicas {volume['replicas']}, "
        f"{volume['checksum']}"
    )


def _workers(document: dict[str, Any], rates: dict[str, Any]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    names = ("worker", "state", "host", "chunks", "bytes", "free")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (*names, "req/s", "in/s", "out/s", "latency"):
        left = name in ("state", "host")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    moving = {row["id"]: row for row in rates.get("workers", [])}
    for row in document["status"]["workers"]:
        rate = moving.get(row["id"], {})
        cells = [
            row["id"],
            row["state"],
            row["host"],
            row["chunks"],
            size_text(row["bytes"]),
            size_text(row["free"]),
            f"{rate.get('requests_per_s', 0):.0f}",
            size_text(rate.get("sent_bytes_per_s", 0)),
            size_text(rate.get("received_bytes_per_s", 0)),
            duration(rate.get("mean_s")),
        ]
        style = "" if row["state"] == "serving" else "red"
        table.add_row(*(Text("-" if c is None else str(c)) for c in cells), style=style)
    return table


def _kinds(rates: dict[str, Any]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("FUSE", "per s", "mean", "99 % below", "errors/s"):
        table.add_column(name, justify="left" if name == "FUSE" else "right", no_wrap=True)
    rows, seconds = rates.get("fuse", []), rates.get("seconds") or 1.0
    for row in rows[:_KINDS_MAX]:
        errors = f"{row['errors'] / seconds:.0f}" if row["errors"] else "-"
        cells = [row["kind"], f"{row['per_s']:.0f}", duration(row["mean_s"])]
        table.add_row(*(Text(cell) for cell in [*cells, duration(row["p99_s"]), errors]))
    total = sum(row["per_s"] for row in rows)
    table.add_row(Text("all"), Text(f"{total:.0f}"), style="bold")
    return table


def _lines(document: dict[str, Any], rates: dict[str, Any]) -> list[str]:
    """Memory, commits, healing and scrub."""
    memory, commits = document["memory"], rates.get("commits", {})
    asked = memory["cache_hits"] + memory["cache_misses"]
    share = 100 * memory["cache_hits"] // max(1, asked)
    lines = [
        f"memory   {size_text(memory['dirty_bytes'])} dirty, "
        f"{size_text(memory['cached_bytes'])} cached"
        + (f", {share} % of the chunks read were there" if asked else ""),
        f"commits  {commits.get('per_s', 0):.1f}/s, each {duration(commits.get('mean_s'))}",
        f"heal     {heal_line(document['status'].get('heal') or {}) or 'nothing to do'}",
        f"scrub    {_scrub_line(document['scrub'])}",
    ]
    for number, reason in document["status"].get("details", {}).get("reasons", {}).items():
        lines.append(f"worker {number} is {reason}")
    return lines


def _scrub_line(scrub: dict[str, Any]) -> str:
    words = str(scrub["state"])
    if scrub["state"] in ("running", "paused"):
        share = (
            f" ({100 * scrub['bytes'] // scrub['total_bytes']} %)" if scrub["total_bytes"] else ""
        )
        words += f", {size_text(scrub['bytes'])} checked{share} at {size_text(scrub['rate'])}/s"
    if scrub["found"]:
        words += f", {scrub['found']} findings"
    return words + (f" ({scrub['error']})" if scrub["error"] else "")


def duration(seconds: float | None) -> str:
    """A time for people."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.2f} s"
