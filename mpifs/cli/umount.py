"""`mpifs umount`."""

from __future__ import annotations

from typing import Annotated

import typer


def umount(
    mountpoint: Annotated[str, typer.Argument(metavar="MNT", help="The mount point.")],
) -> None:
    """Flush, unmount and end all ranks; returns when all are gone."""
    from mpifs.job import stop

    sentence = stop.unmount(mountpoint)
    if "dead" in sentence:
        typer.echo(f"mpifs: {sentence}", err=True)
