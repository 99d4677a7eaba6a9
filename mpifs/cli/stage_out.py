"""`mpifs stage-out`: trees out of a volume, written and proved by the workers themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mpifs.cli.stage_follow import StageProgress
    from mpifs.cli.volume_path import VolumePath
    from mpifs.job.files_protocol import Files


def stage_out(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="STORE|MNT:PATH… DEST", help="What to stage, and where to."),
    ],
    manifest: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Lines of `source destination`, below PATH and below DEST; - is stdin.",
        ),
    ] = "",
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> int:
    """Copy trees out of a volume, mounted or not, as get does, but all workers write their part
    themselves, read back what lies there and compare it with the volume's checksums.

    A folder goes into DEST, which is made if it is not there.  What is there already, byte for
    byte, is left alone: run it again after an interruption and it goes on.

    Exit code 0: all done; 1: nothing; 2: a part (and for a wrong command line).
    """
    from mpifs.cli.stage_follow import StageProgress, finish, run
    from mpifs.cli.volume_path import parse
    from mpifs.job.control import ControlClient
    from mpifs.job.files_access import Volumes
    from mpifs.job.stage_access import Staging, mount_of, write_back

    if len(paths) < 2:
        raise typer.BadParameter("give what to stage and where: mpifs stage-out STORE:PATH DEST")
    *texts, dest = paths
    sources = [parse(text) for text in texts]
    folder = sources[0].folder
    if any(source.folder.path != folder.path for source in sources):
        raise typer.BadParameter("all sources must be of one volume")
    if manifest and len(sources) > 1:
        raise typer.BadParameter("a manifest wants one STORE:PATH that its sources are below")
    progress = StageProgress("stage-out", is_quiet=is_json, is_dry=is_dry)
    with Volumes() as volumes, progress:
        files = volumes.files_of(folder)
        named = () if manifest else _named(files, sources, dest, progress)
        pairs = _listed(manifest, sources[0], dest) if manifest else named
        mount = mount_of(folder)
        write_back(mount)
        with ControlClient(folder.socket) as client:
            run(progress, Staging(client, mount), pairs, is_in=False, is_dry=is_dry)
    return finish(progress, is_json=is_json)


def _listed(manifest: str, place: VolumePath, dest: str) -> Iterator[tuple[bytes, bytes]]:
    from mpifs.cli.stage_follow import manifest_lines

    top = os.fsencode(os.path.abspath(dest))
    for _, source, target in manifest_lines(manifest):
        inside = os.path.normpath(b"/" + source.lstrip(b"/"))
        below = os.path.normpath(b"/" + target.lstrip(b"/"))
        yield (place.path.rstrip(b"/") + inside, top.rstrip(b"/") + below)


def _named(
    files: Files, sources: list[VolumePath], dest: str, progress: StageProgress
) -> Iterator[tuple[bytes, bytes]]:
    """Into the folder that is named, made if it is not there.  Raises OSError."""
    from mpifs.core.errors import PosixError
    from mpifs.job.files_local import LocalFiles
    from mpifs.job.files_targets import repeatable_targets

    names = [os.path.basename(source.path) for source in sources]
    is_folder = len(sources) == 1 and files.stat(sources[0].path).is_folder
    try:
        ends = repeatable_targets(
            LocalFiles(),
            os.fsencode(os.path.abspath(dest)),
            names,
            wants_folder=dest.endswith("/"),
            is_folder=is_folder,
        )
    except OSError as error:
        sentence = str(error) if isinstance(error, PosixError) else str(error.strerror)
        raise PosixError(error.errno or 5, f"{dest}: {sentence}") from None
    seen: set[bytes] = set()
    for source, end, name in zip(sources, ends, names, strict=True):
        if end in seen and name:
            progress.complain(
                os.fsencode(source.said), "left out: another source of this command has its name"
            )
            continue
        seen.add(end)
        yield source.path, end
