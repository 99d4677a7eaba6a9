"""`mpifs drain`: everything moves off a worker's store, then it leaves the volume."""

from __future__ import annotations

from typing import Annotated

import typer


def drain(
    place: Annotated[str, typer.Argument(metavar="STORE|MNT", help="A volume or its mount.")],
    worker: Annotated[int, typer.Argument(metavar="WORKER", help="Number of the worker.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> int:
    """Move everything off a worker; it then leaves the volume.  After Ctrl-C or a crash it goes on
    with the mount, or with the same command."""
    from mpifs.cli.stores_follow import finish, follow
    from mpifs.job.folder import volume_of
    from mpifs.job.stores_access import serving

    with serving(volume_of(place)) as client:
        client.call("stores.drain", worker=worker)
        answer = follow(client, "drain", worker, is_quiet=as_json)
    return finish("drain", answer, {"worker": worker}, as_json=as_json)
