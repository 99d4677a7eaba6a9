"""`mpifs get`: copies files and folders out of a volume."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mpifs.cli.progress import Progress
    from mpifs.cli.volume_path import VolumePath
    from mpifs.job.files_access import Volumes


def get(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE|MNT:PATH… DEST", help="What to copy, and where (- = stdout)."
        ),
    ],
    is_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> int:
    """Copy files and folders out of a volume, mounted or not, as cp -a does."""
    from mpifs.cli.progress import Progress, print_json
    from mpifs.cli.volume_path import parse
    from mpifs.job.files_access import Volumes

    if len(paths) < 2:
        raise typer.BadParameter("give what to copy and where: mpifs get STORE:PATH… DEST")
    *texts, place = paths
    if place == "-" and is_json:
        raise typer.BadParameter("--json and - (stdout) both want the standard output; leave one")
    sources = [parse(text) for text in texts]
    progress = Progress("get", is_quiet=is_json)
    with Volumes() as volumes, progress:
        if place == "-":
            stream_all(volumes, sources, progress)
        else:
            _get_files(volumes, sources, place, progress)
    if is_json:
        print_json(progress.document())
    return progress.exit_code


def stream_all(volumes: Volumes, sources: list[VolumePath], progress: Progress) -> None:
    """Writes files one after the other to stdout."""
    from mpifs.job.files_copy import stream_out
    from mpifs.job.files_tree import report

    sys.stdout.flush()
    for source in sources:
        files = volumes.files_of(source.folder)
        try:
            found = stream_out(files, source.path, sys.stdout.fileno(), progress)
        except IsADirectoryError:
            progress.complain(os.fsencode(source.said), "is a folder; name a file in it")
        except OSError as error:
            report(progress, os.fsencode(source.said), error)
        else:
            progress.on_done(source.path, found)


def _get_files(volumes: Volumes, sources: list[VolumePath], place: str, progress: Progress) -> None:
    from mpifs.job.files_copy import Copier
    from mpifs.job.files_local import LocalFiles
    from mpifs.job.files_targets import targets
    from mpifs.job.files_tree import Amount, measure

    local = LocalFiles()
    names = [os.path.basename(source.path) for source in sources]
    only = volumes.files_of(sources[0].folder)
    try:
        is_folder = len(sources) == 1 and only.stat(sources[0].path).is_folder
    except OSError as error:
        progress.on_error(os.fsencode(sources[0].said), error)
        return
    try:
        target = os.fsencode(place)
        ends = targets(local, target, names, wants_folder=place.endswith("/"), is_folder=is_folder)
    except OSError as error:
        progress.on_error(os.fsencode(place), error)
        return
    if progress.is_terminal:
        parts = [measure(volumes.files_of(s.folder), [s.path]) for s in sources]
        progress.set_total(Amount(sum(p.files for p in parts), sum(p.size for p in parts)))
    copiers: dict[str, Copier] = {}
    seen: set[bytes] = set()
    for source, end, name in zip(sources, ends, names, strict=True):
        if end in seen and name:
            progress.complain(
                os.fsencode(source.said), "left out: another source of this command has its name"
            )
            continue
        seen.add(end)
        copier = copiers.get(source.folder.path)
        if copier is None:
            files = volumes.files_of(source.folder)
            copier = Copier(files, local, progress, keeps_owner=os.geteuid() == 0)
            copiers[source.folder.path] = copier
        copier.copy(source.path, end)
