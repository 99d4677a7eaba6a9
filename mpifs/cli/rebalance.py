"""`mpifs rebalance`: evens out the bytes between the workers' stores."""

from __future__ import annotations

from typing import Annotated

import typer


def rebalance(
    place: Annotated[str, typer.Argument(metavar="STORE|MNT", help="A volume or its mount.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> int:
    """Move chunks until all workers hold about the same; Ctrl-C ends it, what was done stands."""
    from mpifs.cli.stores_follow import finish, follow
    from mpifs.job.folder import volume_of
    from mpifs.job.stores_access import serving

    with serving(volume_of(place)) as client:
        client.call("stores.rebalance")
        try:
            answer = follow(client, "rebalance", 0, is_quiet=as_json)
        except KeyboardInterrupt:
            client.call("stores.leave_it")
            raise
    return finish("rebalance", answer, {}, as_json=as_json)
