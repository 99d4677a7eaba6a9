"""`mpifs request`: files from a worker's local disk to the master's, or to another worker's."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mpifs.cli import transfers as t


def request(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE…", help="Files or folders in the worker's DIR/rank-K."),
    ],
    source: Annotated[int, typer.Option("--from", metavar="RANK", help="Who has them.")],
    to: Annotated[
        str, typer.Option("--to", metavar="RANK,…", help="Who gets them; 0 is the master.")
    ] = "0",
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
    """Fetch files from a worker's local disk to the master's: 0 all done, 1 none, 2 a part.

    With --to they go to that worker instead, directly, never through the master.
    """
    targets = t.parse_ranks(to)
    if source in targets:
        raise typer.BadParameter(f"rank {source} has them already; leave it out of --to")
    named = max([source, *targets])
    ranks = t.which_ranks(mount, workers, local, hostfile, host, launch_agent, mpi, named)
    asked = {
        "command": "send", "names": [os.fsencode(name) for name in files], "source": source,
        "targets": targets, "into": os.fsencode(into),
    }  # fmt: skip
    return t.carry_out(ranks, asked, as_json=as_json, title="request")
