"""`mpifs put`: copies files and folders into a volume."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mpifs.cli.progress import Progress
    from mpifs.cli.volume_path import VolumePath
    from mpifs.job.files_protocol import Files


def put(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="SRC… STORE|MNT:PATH", help="What to copy (- = stdin), and where."),
    ],
    is_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> int:
    """Copy files and folders into a volume, mounted or not, as cp -a does."""
    from mpifs.cli.progress import Progress, print_json
    from mpifs.cli.volume_path import parse
    from mpifs.job.files_access import Volumes

    if len(paths) < 2:
        raise typer.BadParameter("give what to copy and where: mpifs put SRC… STORE:PATH")
    *sources, last = paths
    if "-" in sources and len(sources) > 1:
        raise typer.BadParameter("- (stdin) cannot be copied together with other files")
    place = parse(last)
    progress = Progress("put", is_quiet=is_json)
    with Volumes() as volumes, progress:
        files = volumes.files_of(place.folder)
        if sources == ["-"]:
            _put_stream(files, place, progress)
        else:
            _put_files(files, place, sources, progress)
        files.sync()
    if is_json:
        print_json(progress.document())
    return progress.exit_code


def _put_stream(files: Files, place: VolumePath, progress: Progress) -> None:
    from mpifs.core.errors import PosixError
    from mpifs.job.files_copy import Copier
    from mpifs.job.files_local import LocalFiles
    from mpifs.job.files_targets import targets

    try:
        (target,) = targets(
            files, place.path, [b""], wants_folder=place.wants_folder, is_folder=False
        )
        if target == place.path and _is_folder(files, target):
            raise PosixError(errno.EISDIR, "is a folder; say the new file's name behind it")
        umask = os.umask(0o077)
        os.umask(umask)
        copier = Copier(LocalFiles(), files, progress, keeps_owner=False)
        copier.write_stream(sys.stdin.fileno(), target, 0o666 & ~umask)
        progress.on_done(target, files.stat(target))
    except OSError as error:
        progress.on_error(os.fsencode(place.said), error)


def _is_folder(files: Files, path: bytes) -> bool:
    try:
        return files.stat(path, follow=True).is_folder
    except FileNotFoundError:
        return False


def _put_files(files: Files, place: VolumePath, sources: list[str], progress: Progress) -> None:
    from mpifs.cli.volume_path import split_basename
    from mpifs.job.files_copy import Copier
    from mpifs.job.files_local import LocalFiles
    from mpifs.job.files_targets import targets
    from mpifs.job.files_tree import measure

    local = LocalFiles()
    names = [os.fsencode(split_basename(source)) for source in sources]
    # A / behind a symlink means the folder it leads to, as everywhere.
    starts = [
        os.fsencode(os.path.realpath(s) if s.endswith("/") else s.rstrip("/") or "/")
        for s in sources
    ]
    is_folder = len(starts) == 1 and os.path.isdir(starts[0]) and not os.path.islink(starts[0])
    try:
        ends = targets(
            files, place.path, names, wants_folder=place.wants_folder, is_folder=is_folder
        )
    except OSError as error:
        progress.on_error(os.fsencode(place.said), error)
        return
    if progress.is_terminal:
        progress.set_total(measure(local, starts))
    copier = Copier(local, files, progress, keeps_owner=os.geteuid() == 0)
    seen: set[bytes] = set()
    for start, end, name in zip(starts, ends, names, strict=True):
        if end in seen and name:
            progress.complain(start, "left out: another source of this command has its name")
            continue
        seen.add(end)
        copier.copy(start, end)
