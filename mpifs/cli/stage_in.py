"""`mpifs stage-in`: trees into a volume, read by the workers themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mpifs.cli.stage_follow import StageProgress
    from mpifs.cli.volume_path import VolumePath
    from mpifs.job.files_protocol import Files


def stage_in(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="[SRC…] STORE|MNT:DIR", help="What to stage, and where to."),
    ],
    manifest: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Lines of `source destination`, the destinations below DIR; - is stdin.",
        ),
    ] = "",
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> int:
    """Copy trees into a volume, mounted or not, as put does, but all workers read their part of
    the sources themselves and many small files go by batches.

    A folder goes into DIR, which is made if it is not there.  What is there with the same size and
    mtime is left alone: run it again after an interruption and it goes on.

    Exit code 0: all done; 1: nothing; 2: a part (and for a wrong command line).
    """
    from mpifs.cli.stage_follow import StageProgress, finish, run
    from mpifs.cli.volume_path import parse
    from mpifs.job.control import ControlClient
    from mpifs.job.files_access import Volumes
    from mpifs.job.stage_access import Staging, mount_of

    *sources, last = paths
    if bool(sources) == bool(manifest):
        raise typer.BadParameter("give sources or --manifest: mpifs stage-in SRC… STORE:DIR")
    place = parse(last)
    progress = StageProgress("stage-in", is_quiet=is_json, is_dry=is_dry)
    with Volumes() as volumes, progress:
        files = volumes.files_of(place.folder)
        named = _named(files, place, sources, progress) if sources else ()
        pairs = _listed(manifest, place) if manifest else named
        mount = mount_of(place.folder)
        with ControlClient(place.folder.socket) as client:
            run(progress, Staging(client, mount), pairs, is_in=True, is_dry=is_dry)
    return finish(progress, is_json=is_json)


def _listed(manifest: str, place: VolumePath) -> Iterator[tuple[bytes, bytes]]:
    from mpifs.cli.stage_follow import manifest_lines

    for _, source, target in manifest_lines(manifest):
        inside = os.path.normpath(b"/" + target.lstrip(b"/"))
        yield os.path.abspath(source), place.path.rstrip(b"/") + inside


def _named(
    files: Files, place: VolumePath, sources: list[str], progress: StageProgress
) -> Iterator[tuple[bytes, bytes]]:
    """Into the folder that is named, made if it is not there.  Raises OSError."""
    from mpifs.cli.volume_path import split_basename
    from mpifs.core.errors import PosixError
    from mpifs.job.files_targets import repeatable_targets

    names = [os.fsencode(split_basename(source)) for source in sources]
    # A / behind a symlink means the folder it leads to, as everywhere.
    starts = [
        os.fsencode(os.path.realpath(s) if s.endswith("/") else os.path.abspath(s)) for s in sources
    ]
    is_folder = len(starts) == 1 and os.path.isdir(starts[0]) and not os.path.islink(starts[0])
    try:
        ends = repeatable_targets(
            files, place.path, names, wants_folder=place.wants_folder, is_folder=is_folder
        )
    except OSError as error:
        sentence = str(error) if isinstance(error, PosixError) else str(error.strerror)
        raise PosixError(error.errno or 5, f"{place.said}: {sentence}") from None
    seen: set[bytes] = set()
    for start, end, name in zip(starts, ends, names, strict=True):
        if end in seen and name:
            progress.complain(start, "left out: another source of this command has its name")
            continue
        seen.add(end)
        yield start, end
