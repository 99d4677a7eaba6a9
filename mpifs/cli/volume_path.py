"""`STORE|MNT:PATH`: which volume a user means and which path in it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from typing import NamedTuple

import typer

from mpifs.core.errors import FormatError
from mpifs.fuse.kernel_mounts import mounts
from mpifs.job.folder import VolumeFolder, is_volume, volume_of
from mpifs.job.mounts import mount_at


class VolumePath(NamedTuple):
    """A path in a volume.  `said` is what the user wrote, for messages."""

    said: str
    folder: VolumeFolder
    path: bytes
    """Absolute inside the volume, without . and .. and without a / at its end."""
    wants_folder: bool
    """The user wrote a / at the end: only a folder will do."""


def names_volume(place: str) -> bool:
    """Whether `place` is a volume's folder or a mount point of mpifs (also a dead one)."""
    mount = mount_at(os.path.abspath(place))
    return (mount is not None and mount.is_ours) or is_volume(place)


def split(text: str, is_place: Callable[[str], bool]) -> tuple[str, str] | None:
    """(place, path) of the longest place that is one; None if there is none.

    A place alone means its root.  Colons may stand in the place and in the path.
    """
    if text and is_place(text):
        return text, ""
    end = text.rfind(":")
    while end > 0:
        if is_place(text[:end]):
            return text[:end], text[end + 1 :]
        end = text.rfind(":", 0, end)
    return None


def parse(text: str) -> VolumePath:
    """Reads `STORE|MNT:PATH`.

    Raises typer.BadParameter (usage) when there is no colon and no volume, FormatError when what
    stands before the colon is no volume.
    """
    found = split(text, names_volume)
    if found is None:
        place, colon, _ = text.partition(":")
        if not colon or not place:
            raise typer.BadParameter(
                f"{text!r} names no volume; write STORE:PATH or MNT:PATH, for example /data/vol:/a"
            )
        volume_of(place)  # says why it is none.
        raise FormatError(f"{place} is no volume; make one with: mpifs mkfs {place}")
    place, path = found
    return _volume_path(text, volume_of(place), os.fsencode(path))


def _volume_path(said: str, folder: VolumeFolder, path: bytes) -> VolumePath:
    clean = posixpath.normpath(b"/" + path.lstrip(b"/"))
    wants_folder = path.endswith((b"/", b"/.")) or path in (b"", b".")
    return VolumePath(said, folder, clean, wants_folder)


def parse_mounted(file: str) -> VolumePath | None:
    """A path of this machine that lies in a mount of mpifs, or None when it lies in none."""
    real = os.path.realpath(file)
    best = None
    for mount in mounts():
        inside = mount.mountpoint.rstrip("/") + "/"
        if real == mount.mountpoint or real.startswith(inside):
            best = mount  # the longest, and among equals the topmost: later mounts hide earlier.
            if mount.is_ours:
                path = os.fsencode(real[len(inside) - 1 :] or "/")
                found = _volume_path(file, VolumeFolder(mount.source), path)
    return found if best is not None and best.is_ours else None


def split_basename(path: str) -> str:
    """The last name of a path as cp sees it; "" for what has none (/, ., ..)."""
    name = os.path.basename(path.rstrip("/"))
    return "" if name in (".", "..") else name
