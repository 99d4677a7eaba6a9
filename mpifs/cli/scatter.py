"""`mpifs scatter`: deals the chunks of one file out to the workers' local disks."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mpifs.cli import transfers as t


def scatter(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file in the master's DIR/rank-0.")],
    chunk_size: Annotated[str, typer.Option(help="A power of two from 4KiB to 64MiB.")] = "1MiB",
    mount: t.Mount = None,
    workers: t.Workers = None,
    local: t.Local = None,
    hostfile: t.HostFile = None,
    host: t.Host = None,
    launch_agent: t.Agent = "",
    mpi: t.Mpi = "auto",
    as_json: t.Json = False,
) -> int:
    """Deal the chunks of a file out to the workers: 0 all done, 1 none, 2 a part.

    Each worker keeps its chunks in FILE.mpifs-chunks; `mpifs gather FILE` puts it together again.
    """
    from mpifs.job.sizes import parse_size

    ranks = t.which_ranks(mount, workers, local, hostfile, host, launch_agent, mpi)
    size = parse_size(chunk_size)
    request = {"command": "scatter", "names": [os.fsencode(file)], "chunk_bytes": size}
    return t.carry_out(ranks, request, as_json=as_json)
