"""`mpifs profile`: what a mount was asked for a while, as `strace -c` shows system calls."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

_SORTS = {"time": "seconds", "calls": "count", "errors": "errors", "slowest": "max_s"}


def profile(
    place: Annotated[str, typer.Argument(metavar="MNT", help="A mount, or its volume.")],
    seconds: Annotated[
        float, typer.Option("--seconds", "-t", min=0.1, help="How long; Ctrl-C ends it before.")
    ] = 10.0,
    sort: Annotated[
        str, typer.Option("--sort", "-S", help="By time, calls, errors or slowest.")
    ] = "time",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Count a mount's operations for a while: the most frequent and the slowest.

    Each row is a kind of request of the kernel's FUSE protocol: its share of the time, the time,
    the mean, the time below which 99 of 100 and all stayed (a power of two), calls and errors.
    Of kinds that take less than 0.1 ms all are counted and one in four is timed.
    Below stand single operations that took long, and what was asked of each worker.
    """
    from mpifs.job.figures_between import between, look
    from mpifs.job.folder import volume_of

    if sort not in _SORTS:
        raise typer.BadParameter(f"--sort {sort}: give one of {', '.join(_SORTS)}")
    folder = volume_of(place)
    before, begun_s = look(folder), time.time()
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        typer.echo("", err=True)
    after = look(folder)
    rates = between(before, after)
    rates["fuse"].sort(key=lambda row: -(row[_SORTS[sort]] or 0))
    slow = [one for one in after["fuse"]["slow"] if one["ended_s"] >= begun_s]
    slow.sort(key=lambda one: -one["seconds"])
    if as_json:
        print(json.dumps({**rates, "slow": slow}))
    else:
        _show(rates, slow[:10])


def _show(rates: dict[str, Any], slow: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mpifs.cli.status import size_text
    from mpifs.cli.watch import duration

    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("% time", "seconds", "mean", "99 % below", "all below", "calls", "errors", "kind"):
        table.add_column(name, justify="left" if name == "kind" else "right", no_wrap=True)
    total = sum(row["seconds"] for row in rates["fuse"]) or 1.0
    for row in rates["fuse"]:
        times = [duration(row[key]) for key in ("mean_s", "p99_s", "max_s")]
        numbers = [str(row["count"]), str(row["errors"] or "")]
        cells = [f"{100 * row['seconds'] / total:.2f}", f"{row['seconds']:.6f}", *times, *numbers]
        table.add_row(*(Text(cell) for cell in [*cells, row["kind"]]))
    calls, errors = (sum(row[key] for row in rates["fuse"]) for key in ("count", "errors"))
    seconds = sum(row["seconds"] for row in rates["fuse"])
    ends = ["100.00" if calls else "-", f"{seconds:.6f}", "", "", "", str(calls), str(errors or "")]
    table.add_row(
        *(Text(cell) for cell in [*ends, f"all, in {rates['seconds']:.1f} s"]), style="bold"
    )
    console.print(table)
    if slow:
        console.print("\nslowest")
    for one in slow:
        who = _who(one["pid"])
        console.print(f"  {duration(one['seconds']):>9}  {one['kind']:<12} {who}", markup=False)
    busy = [row for row in rates["workers"] if row["requests_per_s"]]
    if busy:
        console.print("\nworkers")
    for row in busy:
        console.print(
            f"  {row['id']:>3}  {row['requests_per_s']:.0f} requests/s, each "
            f"{duration(row['mean_s'])}; {size_text(row['sent_bytes_per_s'])}/s written, "
            f"{size_text(row['received_bytes_per_s'])}/s read",
            markup=False,
        )


def _who(pid: int) -> str:
    if not pid:
        return "by the kernel"
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
            return f"by process {pid} ({file.read().strip()})"
    except OSError:
        return f"by process {pid}, which has ended"
