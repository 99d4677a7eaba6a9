"""`mpifs broadcast`: files from the master's local disk to all workers', along a tree."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mpifs.cli import transfers as t


def broadcast(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE…", help="Files or folders in the master's DIR/rank-0."),
    ],
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
    """Send files from the master's local disk to all workers: 0 all done, 1 none, 2 a part.

    Along a tree: whoever has the files serves the next, so the time grows with the logarithm of the
    number of workers.
    """
    ranks = t.which_ranks(mount, workers, local, hostfile, host, launch_agent, mpi)
    names = [os.fsencode(name) for name in files]
    request = {"command": "broadcast", "names": names, "into": os.fsencode(into)}
    return t.carry_out(ranks, request, as_json=as_json)
