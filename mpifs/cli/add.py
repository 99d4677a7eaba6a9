"""`mpifs add`: new workers for a volume."""

from __future__ import annotations

from typing import Annotated

import typer


def add(
    place: Annotated[str, typer.Argument(metavar="STORE|MNT", help="A volume or its mount.")],
    count: Annotated[int, typer.Argument(metavar="N", help="How many workers.")] = 1,
    host: Annotated[
        str | None, typer.Option(help="Their hosts: a,b:2; this one unless said.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> int:
    """Add workers, mounted or not; new files use them at once, mpifs rebalance moves old ones."""
    from mpifs.cli.progress import print_json
    from mpifs.core.limits import STORES_ADDED_MAX
    from mpifs.job.folder import volume_of
    from mpifs.job.fsck_access import is_mounted
    from mpifs.job.hosts import parse_host_list, spread
    from mpifs.job.stores_access import add_at_rest, serving

    if not 1 <= count <= STORES_ADDED_MAX:
        raise typer.BadParameter(f"1 to {STORES_ADDED_MAX} workers can be added at once")
    folder = volume_of(place)
    hosts = spread(parse_host_list(host), count) if host else []
    if is_mounted(folder):
        with serving(folder) as client:
            added = client.call("stores.add", count=count, hosts=hosts)["added"]
    else:
        added = add_at_rest(folder, count, hosts)
    if as_json:
        print_json({"added": added})
    else:
        numbers = ", ".join(map(str, added))
        typer.echo(f"added {'worker' if len(added) == 1 else 'workers'} {numbers}")
    return 0
