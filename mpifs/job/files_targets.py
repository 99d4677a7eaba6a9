"""Where copies go: the rules of cp for its last argument."""

from __future__ import annotations

import errno
import posixpath

from mpifs.core.errors import PosixError
from mpifs.job.files_protocol import Files, join


def targets(
    files: Files, place: bytes, names: list[bytes], *, wants_folder: bool, is_folder: bool
) -> list[bytes]:
    """The target path of each source.

    Into `place` when it is a folder, as `place` itself when there is one source.  `names` are the
    sources' own names, b"" for one that has none (/, ., ..): its content goes into `place`.
    `wants_folder`: the user wrote a / at the end.  `is_folder`: the only source is a folder.
    Raises an OSError that says what to do.
    """
    try:
        found = files.stat(place, follow=True)
    except FileNotFoundError:
        found = None
    if found is not None and found.is_folder:
        return [join(place, name) if name else place for name in names]
    if len(names) > 1:
        raise PosixError(errno.ENOTDIR, "several sources need a folder to go into; make it first")
    if found is not None and (wants_folder or is_folder):
        raise PosixError(errno.ENOTDIR, "is no folder; remove it first or choose another name")
    if found is None and wants_folder and not is_folder:
        raise PosixError(errno.ENOENT, "is no folder; make it first, or leave the / at its end out")
    parent = posixpath.dirname(place.rstrip(b"/"))
    try:
        has_parent = files.stat(parent or b".", follow=True).is_folder if parent else True
    except FileNotFoundError:
        has_parent = False
    if not has_parent:
        raise PosixError(errno.ENOENT, "the folder it is to go into does not exist; make it first")
    return [place]


def repeatable_targets(
    files: Files, place: bytes, names: list[bytes], *, wants_folder: bool, is_folder: bool
) -> list[bytes]:
    """As `targets`, but the same for a command that is run again: a folder, or one of several
    sources, always goes into `place`, which is a folder then and need not be there yet."""
    if is_folder or wants_folder or len(names) > 1:
        try:
            files.stat(place, follow=True)
        except FileNotFoundError:
            return [join(place, name) if name else place for name in names]
    return targets(files, place, names, wants_folder=wants_folder, is_folder=is_folder)
