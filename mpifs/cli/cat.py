"""`mpifs cat`: writes files of a volume to stdout."""

from __future__ import annotations

from typing import Annotated

import typer


def cat(
    paths: Annotated[
        list[str], typer.Argument(metavar="STORE|MNT:PATH…", help="Files of a volume.")
    ],
) -> int:
    """Write files of a volume to standard output."""
    from mpifs.cli.get import stream_all
    from mpifs.cli.progress import Progress
    from mpifs.cli.volume_path import parse
    from mpifs.job.files_access import Volumes

    sources = [parse(path) for path in paths]
    progress = Progress("cat", is_quiet=True)
    with Volumes() as volumes, progress:
        stream_all(volumes, sources, progress)
    return progress.exit_code
