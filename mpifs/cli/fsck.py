"""`mpifs fsck`: is every byte of the volume what was written, and if not, what can be saved?

Exit codes as fsck(8): 0 clean; 1 everything found was repaired; 4 damage is left; 8 could not run;
16 usage; 32 cancelled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mpifs.cli.fsck_report import FsckReport
    from mpifs.job.control import ControlClient

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED_EXIT = 32


def fsck(
    place: Annotated[str, typer.Argument(metavar="STORE|MNT", help="A volume or its mount.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what can be repaired; safe to interrupt.")
    ] = False,
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Do not read the chunks' bytes, only what lists them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    hostfile: Annotated[
        str | None, typer.Option(help="Hosts of an unmounted volume's workers, as in mount.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="The same as a list: a,b:2,c.")] = None,
    launch_agent: Annotated[str, typer.Option(help="As in mount.")] = "",
    mpi: Annotated[str, typer.Option(help="As in mount.")] = "auto",
    progress_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> int:
    """Verify everything, mounted or not: 0 clean, 1 repaired, 4 damage left, 8 could not run."""
    from mpifs.cli.fsck_report import FsckReport
    from mpifs.cli.mount import hosts_of
    from mpifs.job import fsck_access
    from mpifs.job.launch import InterruptedStartError

    where = fsck_access.WhereRanksRun(
        hosts_of(hostfile, host), os.path.expanduser(launch_agent), "" if mpi == "auto" else mpi
    )
    folder = fsck_access.volume_to_check(place)
    report = FsckReport(place, repair=repair, is_json=as_json, progress_fd=progress_fd)
    try:
        with report, fsck_access.serving(folder, where) as client:
            _follow(client, report, repair=repair, data=not no_data)
    except InterruptedStartError as error:
        typer.echo(f"mpifs: {error}", err=True)
        return _INTERRUPTED_EXIT
    return report.exit_code


def _follow(client: ControlClient, report: FsckReport, *, repair: bool, data: bool) -> None:
    """Starts the run and shows it to its end, or to Ctrl-C and what that takes."""
    from mpifs.core.limits import FSCK_CANCEL_S

    with _signals_noted() as noted:
        client.call("fsck.start", repair=repair, data=data)
        deadline_s = float("inf")
        while time.monotonic() < deadline_s:
            answer = client.call("fsck.poll")
            report.take(answer)
            if answer["state"] != "running":
                report.finish(answer["state"], answer["reason"])
                return
            if noted and deadline_s == float("inf"):
                client.call("fsck.cancel")
                deadline_s = time.monotonic() + 2 * FSCK_CANCEL_S
            elif len(noted) > 1:
                break
        report.finish("cancelled", "interrupted; the checks did not end in time")


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Signals that would end the command are appended to the list instead."""
    noted: list[int] = []
    before = [
        (number, signal.signal(number, lambda number, frame: noted.append(number)))
        for number in _SIGNALS
    ]
    try:
        yield noted
    finally:
        for number, handler in before:
            signal.signal(number, handler)
