"""`mpifs replace`: an empty store takes the place of a lost one and is filled from the others."""

from __future__ import annotations

from typing import Annotated

import typer


def replace(
    place: Annotated[str, typer.Argument(metavar="STORE|MNT", help="A volume or its mount.")],
    worker: Annotated[int, typer.Argument(metavar="WORKER", help="Number of the lost worker.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> int:
    """Bring in an empty store for a lost one and fill it; may be repeated after Ctrl-C."""
    from mpifs.cli.stores_follow import finish, follow
    from mpifs.job.folder import volume_of
    from mpifs.job.stores_access import serving

    with serving(volume_of(place)) as client:
        client.call("stores.replace", worker=worker)
        answer = follow(client, "replace", worker, is_quiet=as_json)
    return finish("replace", answer, {"worker": worker}, as_json=as_json)
