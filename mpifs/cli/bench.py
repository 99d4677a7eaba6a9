"""`mpifs bench`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

    from mpifs.bench.plan import Plan

_QUICK = "64MiB"
_USUAL = "2GiB"
_NAME_MAX = 18
_WIDTH_MIN = 134  # columns of the table where nobody looks at a terminal.


def bench(
    places: Annotated[
        list[str],
        typer.Argument(metavar="STORE|MNT|DIR…", help="Volumes, mounts or any folders."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="A page with plots.")] = None,
    size: Annotated[str | None, typer.Option(help="Bytes of the large file. (2GiB)")] = None,
    files: Annotated[int | None, typer.Option(help="Small files. (5000)")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds. (3)")] = None,
    idle: Annotated[float | None, typer.Option(help="Seconds of rest. (30)")] = None,
    only: Annotated[
        str, typer.Option(metavar="PHASE,…", help="Only these phases, or their beginnings: read.")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="64MiB, 400 files, one round: shows that all works.")
    ] = False,
    options: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="OPT,…", help="As of mount, for a STORE that is not mounted."),
    ] = None,
    scratch: Annotated[
        str, typer.Option(metavar="DIR", help="Where limits are measured. (at the STORE)")
    ] = "",
) -> None:
    """Measure a volume or any folder beside the limits of FUSE, MPI, LMDB, disk and checksum."""
    from mpifs.bench.phases import chosen
    from mpifs.bench.run import measure
    from mpifs.core.errors import MpifsError
    from mpifs.job.options import split_words

    try:
        plan = _plan(size, files, repeats, idle, quick=quick)
        phases = chosen(only)
    except MpifsError as error:
        raise typer.BadParameter(str(error)) from None
    if len(set(places)) < len(places):
        raise typer.BadParameter("a place is named twice")
    if html:
        _check_writable(html)
    with _Progress() as progress:
        document = measure(places, plan, phases, split_words(options or []), scratch, progress.tell)
    if html:
        from mpifs.bench.page import page_of

        with open(html, "w", encoding="utf-8") as file:
            file.write(page_of(document))
    if as_json:
        print(json.dumps(document))
    else:
        show(document)


def _check_writable(path: str) -> None:
    """Raises OSError now rather than after the run; a file that was there stays as it is."""
    is_new = not os.path.exists(path)
    with open(path, "a", encoding="utf-8"):
        pass
    if is_new:
        os.unlink(path)


def _plan(
    size: str | None,
    files: int | None,
    repeats: int | None,
    idle: float | None,
    *,
    quick: bool,
) -> Plan:
    from mpifs.bench.plan import Plan
    from mpifs.job.sizes import parse_size

    plan = Plan(
        size=parse_size(size or (_QUICK if quick else _USUAL)),
        files=files if files is not None else 400 if quick else 5000,
        repeats=repeats if repeats is not None else 1 if quick else 3,
        idle_s=idle if idle is not None else 2.0 if quick else 30.0,
        random_reads=400 if quick else 8000,
        random_writes=100 if quick else 500,
        round_trips=1000 if quick else 5000,
        is_quick=quick,
    )
    plan.check()
    return plan


class _Progress:
    """What comes next, on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._said_s = time.monotonic()

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from mpifs.cli.progress import make_bar

            self._bar = make_bar("bench", "{task.fields[what]}", shows_bytes=False, what="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tell(self, what: str, number: int, count: int) -> None:
        """See run.Tell."""
        from rich.markup import escape

        from mpifs.cli.progress import LINE_INTERVAL_S

        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=number, total=count or None, what=escape(what))
        elif time.monotonic() - self._said_s >= LINE_INTERVAL_S:
            self._said_s = time.monotonic()
            text = f"{number + 1}/{count} {what}" if count else what
            sys.stderr.write(f"mpifs bench: {text}\n")


def show(document: dict[str, Any]) -> None:
    """Prints the document's tables."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.width < _WIDTH_MIN and not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_MIN)
    settings, machine = document["settings"], document["machine"]
    console.print(
        f"{settings['size'] >> 20} MiB, {settings['files']} files, {settings['repeats']} rounds; "
        f"{settings['workers']} workers, chunks of {settings['chunk_size'] >> 10} KiB, "
        f"{settings['checksum']}; {machine['processors']} processors, "
        f"load {machine['load_before']} before; {document['seconds']:.0f} s",
        markup=False,
        soft_wrap=True,
    )
    console.print(_table(document))
    ratios = document["ratios"]
    if ratios:
        console.print(_ratio_table(document))


def _short(name: str) -> str:
    """A place's name as a heading: its end, where names differ."""
    return name if len(name) <= _NAME_MAX else "…" + name[1 - _NAME_MAX :]


def _table(document: dict[str, Any]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from mpifs.bench.report import human, spread_of, title_of

    targets = {target["name"]: bool(target["volume"]) for target in document["targets"]}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name, is_volume in targets.items():
        table.add_column(Text(_short(name)), justify="right", no_wrap=True)
        table.add_column("±", justify="right")
        if is_volume:
            table.add_column("share", justify="right")
    for title in ("lowest limit", "", "null FUSE", "plain disk"):
        table.add_column(title, justify="left" if title == "" else "right")
    for phase in document["phases"]:
        cells = [phase["title"], phase["unit"]]
        for name, is_volume in targets.items():
            found = phase["targets"].get(name)
            share = phase["shares"].get(name)
            cells += [human(found["median"]), f"{spread_of(found):.0%}"] if found else ["-", ""]
            if is_volume:
                cells.append(f"{share:.0%}" if share is not None else "")
        lowest = phase["lowest"]
        limit = phase["limits"][lowest] if lowest else None
        cells += [human(limit["median"]), title_of(lowest)] if limit else ["", ""]
        for name in ("fuse", "disk"):
            found = phase["limits"].get(name) or phase["beside"].get(name)
            cells.append(human(found["median"]) if found else "")
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _ratio_table(document: dict[str, Any]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from mpifs.bench.report import title_of

    names = [target["name"] for target in document["targets"]]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("quotient")
    for name in (*names, "fuse", "disk"):
        table.add_column(Text(_short(title_of(name))), justify="right", no_wrap=True)
    for each in document["ratios"]:
        values = {**each["targets"], **each["beside"]}
        cells = [f"{values[n]:.2f}" if n in values else "-" for n in (*names, "fuse", "disk")]
        table.add_row(*(Text(cell) for cell in (each["title"], *cells)))
    return table
