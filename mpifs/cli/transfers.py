"""What the transfer commands have in common: the options that say which ranks, one request to
rank 0 followed to its end, lines, bars, and the exit code.

Exit codes: 0 all done, 1 none (or it could not run), 2 a part; a usage error is 2 as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from mpifs.job.control import ControlClient
    from mpifs.job.transfer_access import WhichRanks

Mount = Annotated[
    str | None,
    typer.Option("--mount", metavar="MNT", help="A mount made with --local: its ranks do it."),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", "-w", help="Start so many workers for this command."),
]
Local = Annotated[
    str | None,
    typer.Option("--local", metavar="DIR", help="With -w: rank K's files are in DIR/rank-K."),
]
HostFile = Annotated[str | None, typer.Option(help="The workers' hosts, as in mount.")]
Host = Annotated[str | None, typer.Option(help="The same as a list: a,b:2,c.")]
Agent = Annotated[str, typer.Option(help="As in mount.")]
Mpi = Annotated[str, typer.Option(help="As in mount.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was done as one JSON document.")]
Into = Annotated[
    str, typer.Option("--into", metavar="FOLDER", help="Below which folder of the receiver.")
]
_RANKS_MAX = 65_536


def parse_ranks(text: str, what: str = "--to") -> list[int]:
    """`1,3-5` → 1, 3, 4, 5."""
    ranks: list[int] = []
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise typer.BadParameter(f"{what} {text}: write ranks as numbers, for example 1,3-5")
        low, high = int(first), int(last or first)
        if not low <= high <= _RANKS_MAX:
            raise typer.BadParameter(f"{what} {text}: there are no such ranks")
        ranks += range(low, high + 1)
    return list(dict.fromkeys(ranks))


def which_ranks(
    mount: str | None,
    workers: int | None,
    local: str | None,
    hostfile: str | None,
    host: str | None,
    launch_agent: str,
    mpi: str,
    named: int = 0,
) -> WhichRanks:
    """From the options; `named` is the highest rank that the command names."""
    from mpifs.cli.mount import hosts_of
    from mpifs.job.transfer_access import WhichRanks
    from mpifs.transport.mpi import is_launched

    if mount is not None:
        if workers is not None or local is not None or hostfile or host:
            raise typer.BadParameter(
                "--mount uses the ranks of a mount and their --local; leave -w, --local and the "
                "hosts out"
            )
        return WhichRanks(mount=mount)
    if local is None:
        raise typer.BadParameter("say which ranks: --mount MNT, or -w N --local DIR")
    hosts = hosts_of(hostfile, host)
    count = workers if workers is not None else max(len(hosts), 0 if hosts else named)
    if count < 1:
        raise typer.BadParameter("say how many workers to start: -w N, --hostfile or --host")
    if named > count:
        raise typer.BadParameter(
            f"rank {named} is named, but there are {count} workers: -w {named}"
        )
    if is_launched():
        raise typer.BadParameter(
            "this command starts its ranks itself; run it once, without mpiexec or srun"
        )
    return WhichRanks(
        "", count, os.path.expanduser(local), hosts, os.path.expanduser(launch_agent),
        "" if mpi == "auto" else mpi,
    )  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What became of one request."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0
    signal: int = 0
    """What ended it before its time."""

    @property
    def exit_code(self) -> int:
        """0 all done, 1 none, 2 a part."""
        states = [row["state"] for row in self.rows if row["state"] != "nothing"]
        if states and not self.reason and all(state == "done" for state in states):
            return 0
        return 2 if any(state in ("done", "part") for state in states) else 1

    def errors(self) -> list[tuple[str, bytes, str]]:
        """(which worker's transfer, name, sentence) of all that failed."""
        found = [
            (_worker_of(row), path, sentence)
            for row in self.rows
            for path, sentence in row.get("errors", [])
        ]
        return [*found, *([("", b"", self.reason)] if self.reason else [])]

    def document(self, command: str) -> dict[str, Any]:
        """What --json prints."""
        sums = ("files", "folders", "bytes", "chunks", "sent", "sent_bytes")
        totals = {name: sum(row[name] for row in self.rows) for name in sums}
        rows = [
            {
                "name": _text(row["name"]), "from": row["from"], "to": row["to"],
                "state": row["state"], **{name: row[name] for name in sums},
                "seconds": row["seconds"], "error_count": row["error_count"],
            }
            for row in self.rows
        ]  # fmt: skip
        errors = [
            {"worker": who, "path": _text(path), "error": sentence}
            for who, path, sentence in self.errors()
        ]
        seconds = round(self.seconds, 3)
        return {"command": command, **totals, "seconds": seconds, "transfers": rows,
                "errors": errors}  # fmt: skip


def _worker_of(row: dict[str, Any]) -> str:
    rank = row["to"] or row["from"]
    return f"worker {rank}" if rank > 0 else ""


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def carry_out(ranks: WhichRanks, request: dict[str, Any], *, as_json: bool, title: str = "") -> int:
    """Reaches the ranks, has it done, tells as the command `title`; the exit code."""
    from mpifs.cli.progress import print_json
    from mpifs.job.signals import term_as_interrupt
    from mpifs.job.transfer_access import reaching

    with term_as_interrupt(), reaching(ranks) as client, signals_noted() as noted:
        outcome = follow(client, request, noted, is_quiet=as_json, title=title)
    if as_json:
        print_json(outcome.document(title or request["command"]))
    tell_errors(title or request["command"], outcome)
    return outcome.exit_code


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Signals that would end the command are appended to the list instead: a call to rank 0 must
    not be left half-way."""
    noted: list[int] = []
    before = [
        (number, signal.signal(number, lambda number, frame: noted.append(number)))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ]
    try:
        yield noted
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def tell_errors(command: str, outcome: Outcome) -> None:
    """One line on stderr for each failure."""
    from mpifs.cli.progress import printable

    for who, path, sentence in outcome.errors():
        is_named = not path or printable(path) in sentence
        name = "" if is_named else f"{printable(path)}: "
        where = f"{who}: " if who and f"{who}:" not in sentence else ""
        text = f"mpifs {command}: {where}{name}{sentence}"
        sys.stderr.write(text.encode("utf-8", "backslashreplace").decode() + "\n")


def follow(
    client: ControlClient,
    request: dict[str, Any],
    noted: list[int],
    *,
    is_quiet: bool,
    title: str = "",
) -> Outcome:
    """Starts a request and shows it to its end, or to a signal in `noted` and what that takes."""
    from mpifs.core.errors import MpifsError

    outcome, begun = Outcome(), time.monotonic()
    number = client.call("transfer.start", **request)["number"]
    shown = _Shown(title or request["command"], is_quiet=is_quiet)
    try:
        while len(noted) < 2:  # who presses Ctrl-C twice does not wait for the end
            answer = client.call("transfer.poll", number=number)
            outcome.rows += answer["ended"]
            shown.show(answer)
            if answer["state"] == "over":
                outcome.reason = answer["reason"]
                break
            if noted and not outcome.signal:
                outcome.signal = noted[0]
                client.call("transfer.cancel", number=number)
    except MpifsError:
        outcome.reason = "rank 0 ended meanwhile; run the command again, it goes on"
    finally:
        shown.end()
    outcome.seconds = time.monotonic() - begun
    return outcome


class _Shown:
    """Lines on stdout; on stderr a bar per transfer on a terminal, elsewhere a line at times."""

    def __init__(self, command: str, *, is_quiet: bool) -> None:
        self._command = command
        self._is_quiet = is_quiet
        self._start_s = self._line_s = time.monotonic()
        self._bar: Bar | None = None
        self._tasks: dict[tuple[int, int, bytes], Any] = {}

    def show(self, answer: dict[str, Any]) -> None:
        """News of one poll."""
        from mpifs.cli.progress import LINE_INTERVAL_S, SHOW_AFTER_S

        if self._is_quiet:
            return
        for line in answer["lines"]:
            self._print(line)
        now = time.monotonic()
        if now - self._start_s < SHOW_AFTER_S or not answer["rows"]:
            return
        if sys.stderr.isatty():
            self._show_bars(answer)
        elif now - self._line_s >= LINE_INTERVAL_S:
            self._line_s = now
            for row in answer["rows"]:
                typer.echo(f"mpifs {self._command}: {_so_far(row)}", err=True)

    def _print(self, line: str) -> None:
        text = line.encode("utf-8", "backslashreplace").decode()
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def _show_bars(self, answer: dict[str, Any]) -> None:
        from mpifs.cli.progress import make_bar

        if self._bar is None:
            self._bar = make_bar(self._command, "")
            self._bar.start()
            self._bar.remove_task(self._bar.task_ids[0])
        keys = set()
        for row in answer["rows"]:
            key = (row["from"], row["to"], row["name"])
            keys.add(key)
            if key not in self._tasks:
                self._tasks[key] = self._bar.add_task(_title(row), total=None)
            total = row["total"] or None
            self._bar.update(self._tasks[key], completed=row["bytes"], total=total)
        for key in [key for key in self._tasks if key not in keys]:
            self._bar.remove_task(self._tasks.pop(key))

    def end(self) -> None:
        """Takes the bars away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _title(row: dict[str, Any]) -> str:
    from mpifs.cli.progress import printable

    source = "workers" if row["from"] < 0 else row["from"]
    return f"{printable(row['name'])[:40]} {source}→{row['to']}"


def _so_far(row: dict[str, Any]) -> str:
    from mpifs.cli.progress import human_size

    words = f"{_title(row)}: {human_size(row['bytes'])}"
    if row["total"]:
        words += f" of {human_size(row['total'])}"
    return f"{words}, {row['files']} files"
