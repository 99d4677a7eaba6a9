"""`mpifs status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType


def status(
    place: Annotated[str, typer.Argument(metavar="STORE|MNT", help="A volume or its mount.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="A live view, each second: rates, too.")
    ] = False,
) -> None:
    """Show volume, mount and workers."""
    from mpifs.job.folder import volume_of
    from mpifs.job.status import status_of

    folder = volume_of(place)
    if watch:
        from mpifs.cli.watch import watch_volume

        watch_volume(folder, as_json=as_json)
        return
    document = status_of(folder)
    details = document.pop("details", {})
    if as_json:
        print(json.dumps(document), flush=True)
    else:
        _show(document, details, folder.path)


def _show(document: dict[str, Any], details: dict[str, Any], path: str) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    volume, mount = document["volume"], document["mount"]
    console.print(
        f"volume   {path}\n"
        f"         {volume['uuid']}  {volume['workers']} workers, "
        f"chunks of {size_text(volume['chunk_size'])}, replicas {volume['replicas']}, "
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
        content = f"{document['files']} files, {size_text(document['bytes'])}"
        console.print(f"content  {content}", markup=False)
    if "dirty_bytes" in details:
        asked = details["cache_hits"] + details["cache_misses"]
        share = f"{100 * details['cache_hits'] // asked} %" if asked else "-"
        console.print(
            f"memory   {size_text(details['dirty_bytes'])} dirty, chunk cache hits {share}",
            markup=False,
        )
    heal = heal_line(document.get("heal") or {})
    if heal:
        console.print(f"heal     {heal}", markup=False)
    console.print(_table(document["workers"]))
    for number, reason in details.get("reasons", {}).items():
        console.print(f"worker {number} is {reason}", markup=False)


def heal_line(heal: dict[str, Any]) -> str:
    """What is left to heal or to move; "" if nothing is."""
    if heal.get("state", "idle") == "idle" and not heal.get("detail"):
        return ""
    words = str(heal["state"])
    if heal["bytes_left"]:
        what = "to move" if words in ("draining", "rebalancing") else "below wanted redundancy"
        words += f", {size_text(heal['bytes_left'])} {what}"
    if heal["rate"]:
        words += f", {size_text(heal['rate'])}/s, {heal['seconds_left']:.0f} s left"
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
        sizes = [size_text(row["bytes"]), size_text(row["free"])]
        table.add_row(*(Text("-" if cell is None else str(cell)) for cell in cells + sizes))
    return table


def size_text(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
