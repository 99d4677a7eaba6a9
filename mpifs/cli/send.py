"""`mpifs send`: files from the master's local disk, or a worker's, to workers'."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mpifs.cli import transfers as t


def send(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE…", help="Files or folders in the sender's DIR/rank-K."),
    ],
    to: Annotated[str, typer.Option("--to", metavar="RANK,…", help="Who gets them: 1,3-5.")],
    source: Annotated[
        int, typer.Option("--from", metavar="RANK", help="Who has them; 0 is the master.")
    ] = 0,
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
    """Send files from the master's local disk to workers: 0 all done, 1 none, 2 a part.

    Names are relative to the sender's folder DIR/rank-K (the master's is DIR/rank-0).  Interrupted
    or killed, the same command goes on where it stopped: only chunks that are missing travel.
    """
    targets = t.parse_ranks(to)
    if source in targets:
        raise typer.BadParameter(f"rank {source} has them already; leave it out of --to")
    named = max([source, *targets])
    ranks = t.which_ranks(mount, workers, local, hostfile, host, launch_agent, mpi, named)
    request = {
        "command": "send", "names": [os.fsencode(name) for name in files], "source": source,
        "targets": targets, "into": os.fsencode(into),
    }  # fmt: skip
    return t.carry_out(ranks, request, as_json=as_json)
