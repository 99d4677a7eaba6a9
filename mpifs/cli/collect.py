"""`mpifs collect`: what matches a pattern on any worker's local disk, to the master's."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mpifs.cli import transfers as t


def collect(
    pattern: Annotated[
        str,
        typer.Argument(metavar="PATTERN", help="In quotes: *, ?, […], and ** for any folders."),
    ],
    source: Annotated[
        str, typer.Option("--from", metavar="RANK,…", help="Only from these workers: 1,3-5.")
    ] = "",
    into: t.Into = "",
    mount: t.Mount = None,
    workers: t.Workers = None,
    local: t.Local = None,
    hostfile: t.HostFile = None,
    host: t.Host = None,
    launch_agent: t.Agent = "",
    mpi: t.Mpi = "auto",
    as_json: t.Json = False,
) -> int:
    """Fetch what matches from all workers' local disks: 0 all done, 1 none, 2 a part.

    What worker K has comes to rank-K/NAME in the master's DIR/rank-0.
    """
    chosen = t.parse_ranks(source, "--from") if source else []
    named = max(chosen, default=0)
    ranks = t.which_ranks(mount, workers, local, hostfile, host, launch_agent, mpi, named)
    request = {
        "command": "collect", "names": [os.fsencode(pattern)], "targets": chosen,
        "into": os.fsencode(into),
    }  # fmt: skip
    return t.carry_out(ranks, request, as_json=as_json)
