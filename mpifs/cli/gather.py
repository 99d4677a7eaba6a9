"""`mpifs gather`: puts a file together again that `mpifs scatter` dealt out."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mpifs.cli import transfers as t


def gather(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The name that was scattered.")],
    to: Annotated[
        str, typer.Option("--as", metavar="NAME", help="Under another name than FILE.")
    ] = "",
    mount: t.Mount = None,
    workers: t.Workers = None,
    local: t.Local = None,
    hostfile: t.HostFile = None,
    host: t.Host = None,
    launch_agent: t.Agent = "",
    mpi: t.Mpi = "auto",
    as_json: t.Json = False,
) -> int:
    """Put a scattered file together again on the master's local disk: 0 done, 1 failed."""
    ranks = t.which_ranks(mount, workers, local, hostfile, host, launch_agent, mpi)
    request = {"command": "gather", "names": [os.fsencode(file)], "into": os.fsencode(to)}
    return t.carry_out(ranks, request, as_json=as_json)
