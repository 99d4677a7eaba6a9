"""`mpifs status`."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

_REFRESH_S = 1.0


def status(
    place: Annotated[str, typer.Argument(metavar="STORE|MNT", help="A volume or its mount.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again each second.")] = False,
) -> None:
    """Show volume, mount and workers."""
    from mpifs.job.folder import volume_of
    from mpifs.job.status import status_of

    folder = volume_of(place)
    while True:
        document = status_of(folder)
        details = document.pop("details", {})
        if as_json:
            print(json.dumps(document), flush=True)
        else:
            _show(document, details, folder.path, clear=watch)
        if not watch:
            return
        time.sleep(_REFRESH_S)


def _show(document: dict[str, Any], details: dict[str, Any], path: str, *, clear: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if clear and sys.stdout.isatty():
        console.clear()
    volume, mount = document["volume"], document["mount"]
    console.print(
        f"volume   {path}\n"
        f"         {volume['uuid']}  {volume['workers']} workers, "
        f"chunks of {_size(volume['chunk_size'])}, replicas {volume['replicas']}, "
        f"{volume['checksum']}",
        markup=False,
    )
    where = f" at {mount['mountpoint']}" if mount["mountpoint"] else ""
    who = f", pid {mount['pid']}" if mount["pid"] else ""
    why = f" ({details['reason']})" if details.get("reason") else ""
    console.print(f"mount    {mount['state']}{where}{who}{why}", markup=False)
    if details.get("restarts"):
        text = f"restarts {details['restarts']}, the last one because {details['crash']}"
        console.print(text, markup=False)
    if document["files"] is not None:
        content = f"{document['files']} files, {_size(document['bytes'])}"
        console.print(f"content  {content}", markup=False)
    if "dirty_bytes" in details:
        asked = details["cache_hits"] + details["cache_misses"]
        share = f"{100 * details['cache_hits'] // asked} %" if asked else "-"
        console.print(
            f"memory   {_size(details['dirty_bytes'])} dirty, chunk cache hits {share}",
            markup=False,
        )
    heal = _heal_line(document.get("heal") or {})
    if heal:
        console.print(f"heal     {heal}", markup=False)
    console.print(_table(document["workers"]))
    for number, reason in details.get("reasons", {}).items():
        console.print(f"worker {number} is {reason}", markup=False)


def _heal_line(heal: dict[str, Any]) -> str:
    """What is left to heal or to move; "" if nothing is."""
    if heal.get("state", "idle") == "idle" and not heal.get("detail"):
        return ""
    words = str(heal["state"])
    if heal["bytes_left"]:
        what = "to move" if words in ("draining", "rebalancing") else "below wanted redundancy"
        words += f", {_size(heal['bytes_left'])} {what}"
    if heal["rate"]:
        words += f", {_size(heal['rate'])}/s, {heal['seconds_left']:.0f} s left"
    return words + (f" ({heal['detail']})" if heal["detail"] else "")


def _table(workers: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("worker", "state", "pid", "host", "chunks", "bytes", "free"):
        left = name in ("state", "host")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in workers:
        cells = [row["id"], row["state"], row["pid"], row["host"], row["chunks"]]
        sizes = [_size(row["bytes"]), _size(row["free"])]
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in cells + sizes))
    return table


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
