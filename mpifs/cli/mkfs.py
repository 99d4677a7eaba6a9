"""`mpifs mkfs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mpifs.job.make import Geometry


def mkfs(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder of the new volume.")],
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", help="Chunk stores.  [default: 4]")
    ] = None,
    chunk_size: Annotated[
        str | None,
        typer.Option(help="Power of two from 4KiB to 64MiB.  [default: 1MiB]"),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Copies of each chunk, on different workers.  [default: 1]")
    ] = None,
    checksum: Annotated[
        str | None, typer.Option(help="xxh3-128 or blake3.  [default: xxh3-128]")
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option(help="What each store may take of its disk, as 500GiB.  [default: all]"),
    ] = None,
) -> None:
    """Make a volume; a folder that has one is refused."""
    from mpifs.job.make import make_volume

    geometry = geometry_of(workers, chunk_size, replicas, checksum, capacity)
    folder = make_volume(store, geometry)
    typer.echo(f"{folder.path}: made; mount it with: mpifs mount {store} MNT")


def geometry_of(
    workers: int | None,
    chunk_size: str | None,
    replicas: int | None,
    checksum: str | None,
    capacity: str | None,
) -> Geometry:
    """The options of mkfs, which mount has too.  Raises a usage error for an impossible one."""
    from mpifs.job.make import Geometry
    from mpifs.job.sizes import parse_size

    try:
        size = None if chunk_size is None else parse_size(chunk_size)
        room = None if capacity is None else parse_size(capacity)
        geometry = Geometry(workers, size, replicas, checksum, room)
        geometry.check()
    except OSError as error:
        raise typer.BadParameter(str(error)) from None
    return geometry
