"""`mpifs rm`: removes files and folders of a volume."""

from __future__ import annotations

import os
from typing import Annotated

import typer


def rm(
    paths: Annotated[
        list[str], typer.Argument(metavar="STORE|MNT:PATH…", help="Files and folders of a volume.")
    ],
    is_recursive: Annotated[
        bool, typer.Option("--recursive", "-r", "-R", help="Folders with all that is in them.")
    ] = False,
    is_forced: Annotated[
        bool, typer.Option("--force", "-f", help="Say nothing of what is not there.")
    ] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> int:
    """Remove files and folders of a volume; nothing is asked back."""
    from mpifs.cli.progress import Progress, print_json
    from mpifs.cli.volume_path import parse
    from mpifs.job.files_access import Volumes
    from mpifs.job.files_tree import check_removable, remove_tree, report

    sources = [parse(path) for path in paths]
    progress = Progress("rm", shows_bytes=False, is_quiet=is_json)
    with Volumes() as volumes, progress:
        for source in sources:
            files = volumes.files_of(source.folder)
            try:
                found = files.stat(source.path)
                check_removable(source.path, found, is_recursive=is_recursive)
            except FileNotFoundError as error:
                if not is_forced:
                    progress.on_error(os.fsencode(source.said), error)
            except OSError as error:
                report(progress, os.fsencode(source.said), error)
            else:
                remove_tree(files, source.path, progress)
        for folder in {source.folder for source in sources}:
            volumes.files_of(folder).sync()
    if is_json:
        print_json({k: v for k, v in progress.document().items() if k != "bytes"})
    return progress.exit_code
