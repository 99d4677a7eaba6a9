"""`mpifs run`, on its own and as a rank of the user's own MPI launcher."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mpifs.cli.exit_code import ProgramExitCode
from mpifs.cli.mkfs import geometry_of
from mpifs.cli.mount import hosts_of


def run(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The volume's folder.")],
    mountpoint: Annotated[str, typer.Argument(metavar="MNT", help="An empty directory.")],
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND…", help="What to run, with its arguments.")
    ],
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", help="Chunk stores of a new volume.")
    ] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Make the volume, and remove it at the end.")
    ] = False,
    options: Annotated[
        list[str] | None, typer.Option("-o", metavar="OPT,…", help="As in mount.")
    ] = None,
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
    chunk_size: Annotated[str | None, typer.Option(help="For a new volume, as in mkfs.")] = None,
    replicas: Annotated[int | None, typer.Option(help="For a new volume, as in mkfs.")] = None,
    checksum: Annotated[str | None, typer.Option(help="For a new volume, as in mkfs.")] = None,
    capacity: Annotated[str | None, typer.Option(help="For a new volume, as in mkfs.")] = None,
) -> int:
    """Mount, run a command, unmount; the exit code is the command's.

    The command has the terminal, and finds the mount point in MPIFS_MOUNT too.  Whatever ends it
    or any process of the volume, nothing of the job stays: what the command left running is ended,
    the volume unmounted, and with --scratch removed on all hosts.  A command that a signal ended
    gives 128 and the signal's number; 126 and 127 say that it cannot be run or is not there; 1 that
    the volume could not be mounted or was lost.

    In a world that a launcher gives (srun, mpiexec) every rank runs this line: rank 0 mounts and
    runs the command once, the others are the workers.
    """
    from mpifs.job import assemble_mount, run_mount
    from mpifs.transport.mpi import is_launched

    hosts = hosts_of(hostfile, host)
    if workers is None and hosts:
        # What a forgotten scratch volume had does not count.
        slots = len(hosts)
        workers = slots if scratch else assemble_mount.default_workers(store, slots)
    geometry = geometry_of(workers, chunk_size, replicas, checksum, capacity)
    request = assemble_mount.MountRequest(
        store, mountpoint, options or [], hosts, os.path.expanduser(launch_agent), mpi, geometry
    )
    if is_launched():
        from mpifs.job import run_world

        run_world.run(request, command, scratch=scratch)
    return ProgramExitCode(run_mount.run(request, command, scratch=scratch))
