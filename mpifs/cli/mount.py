"""`mpifs mount`, on its own and as a rank of the user's own MPI launcher."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mpifs.cli.mkfs import geometry_of

Local = Annotated[
    str,
    typer.Option(
        metavar="DIR",
        help="A folder of each host's disk for the ranks' own files, DIR/rank-K: for send, "
        "request, broadcast, collect, scatter, gather and shell.",
    ),
]


def mount(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The volume's folder.")],
    mountpoint: Annotated[str, typer.Argument(metavar="MNT", help="An empty directory.")],
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", help="Chunk stores of a new volume.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            metavar="OPT,…",
            help="ro, allow_other, noatime, fuse=2|3, threads=N, commit=SECONDS, dirty=SIZE, "
            "cache=SIZE, reads=local|mpi, sync=relaxed, restart=N, writeback, lowlatency, "
            "attr_timeout=S, entry_timeout=S.",
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay until the volume is unmounted.")
    ] = False,
    hostfile: Annotated[
        str | None, typer.Option(help="File with the workers' hosts, one a line.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="The workers' hosts: a,b:2,c.")] = None,
    launch_agent: Annotated[
        str, typer.Option(help="Program that runs a command on a host, instead of ssh.")
    ] = "",
    mpi: Annotated[
        str, typer.Option(help="openmpi, mpich or the path of an mpiexec; also MPIFS_MPI.")
    ] = "auto",
    local: Local = "",
    chunk_size: Annotated[str | None, typer.Option(help="For a new volume, as in mkfs.")] = None,
    replicas: Annotated[int | None, typer.Option(help="For a new volume, as in mkfs.")] = None,
    checksum: Annotated[str | None, typer.Option(help="For a new volume, as in mkfs.")] = None,
    capacity: Annotated[str | None, typer.Option(help="For a new volume, as in mkfs.")] = None,
) -> int:
    """Start the ranks and mount; the volume is made on first use."""
    from mpifs.job import assemble_mount
    from mpifs.transport.mpi import is_launched

    hosts = hosts_of(hostfile, host)
    if workers is None and hosts:
        workers = assemble_mount.default_workers(store, len(hosts))
    geometry = geometry_of(workers, chunk_size, replicas, checksum, capacity)
    request = assemble_mount.MountRequest(
        store,
        mountpoint,
        options or [],
        hosts,
        os.path.expanduser(launch_agent),
        mpi,
        geometry,
        os.path.expanduser(local),
    )
    if is_launched():
        from mpifs.job.signals import SignalGate

        assemble_mount.in_given_world(request, SignalGate())
    return assemble_mount.mount(request, foreground=foreground)


def hosts_of(hostfile: str | None, host: str | None) -> list[str]:
    """One host per worker, from the two options; [] if neither is given."""
    from mpifs.job.hosts import parse_host_list, parse_hosts

    if hostfile and host:
        raise typer.BadParameter("give --hostfile or --host, not both")
    if host:
        return parse_host_list(host)
    if hostfile:
        with open(hostfile, encoding="utf-8") as file:
            return parse_hosts(file.read(), hostfile)
    return []
