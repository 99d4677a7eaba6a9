"""`mpifs ls`: lists files of a volume."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mpifs.cli.progress import Progress
    from mpifs.cli.volume_path import VolumePath
    from mpifs.job.files_protocol import Attributes, Files

Row = tuple[bytes, "Attributes"]
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def ls(
    paths: Annotated[
        list[str], typer.Argument(metavar="STORE|MNT:PATH…", help="Files and folders of a volume.")
    ],
    is_long: Annotated[bool, typer.Option("-l", help="With mode, owner, size and time.")] = False,
    is_recursive: Annotated[
        bool, typer.Option("--recursive", "-R", help="Folders in folders too.")
    ] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print a list of entries.")] = False,
) -> int:
    """List files of a volume, mounted or not; all names, also those that begin with a dot."""
    from mpifs.cli.progress import Progress, print_json
    from mpifs.cli.volume_path import parse
    from mpifs.job.files_access import Volumes
    from mpifs.job.files_tree import report

    sources = [parse(path) for path in paths]
    progress = Progress("ls", is_quiet=True)
    listing = _JsonListing() if is_json else _TextListing(is_long, is_recursive or len(paths) > 1)
    with Volumes() as volumes:
        for source in sources:
            files = volumes.files_of(source.folder)
            try:
                found = _look(files, source, follow=not is_long or source.wants_folder)
            except OSError as error:
                report(progress, os.fsencode(source.said), error)
                continue
            if found.is_folder:
                _list_folder(files, source.path, listing, progress, is_recursive)
            else:
                listing.rows(files, b"", [(source.path, found)])
    if isinstance(listing, _JsonListing):
        print_json(listing.entries)
    return progress.exit_code


def _look(files: Files, source: VolumePath, *, follow: bool) -> Attributes:
    """What the user named: a symlink to a folder as that folder, another as itself."""
    found = files.stat(source.path)
    if found.is_symlink and follow:
        try:
            behind = files.stat(source.path, follow=True)
        except FileNotFoundError:
            return found
        return behind if behind.is_folder or source.wants_folder else found
    return found


def _list_folder(
    files: Files,
    path: bytes,
    listing: _TextListing | _JsonListing,
    progress: Progress,
    is_recursive: bool,
) -> None:
    from mpifs.job.files_protocol import join
    from mpifs.job.files_tree import report

    todo = [path]
    while todo:
        folder = todo.pop()
        try:
            rows = sorted(files.scan(folder))
        except OSError as error:
            report(progress, folder, error)
            continue
        listing.rows(files, folder, rows)
        if is_recursive:
            inner = [join(folder, name) for name, found in rows if found.is_folder]
            todo += reversed(inner)


class _JsonListing:
    """Collects the entries of --json."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def rows(self, files: Files, folder: bytes, rows: list[Row]) -> None:
        """Adds the rows of one folder; folder b"": the names are whole paths."""
        from mpifs.job.files_protocol import join

        for name, found in rows:
            path = join(folder, name) if folder else name
            entry = {
                "path": os.fsdecode(path),
                "name": os.fsdecode(os.path.basename(path)),
                "type": _TYPES.get(stat.S_IFMT(found.mode), "unknown"),
                "mode": f"{stat.S_IMODE(found.mode):04o}",
                "links": found.nlink,
                "uid": found.uid,
                "gid": found.gid,
                "size": found.size,
                "mtime_ns": found.mtime_ns,
                "inode": found.ino,
            }
            if found.is_symlink:
                entry["target"] = os.fsdecode(files.readlink(path))
            self.entries.append(entry)


class _TextListing:
    """Prints entries, names raw, or with escapes on a terminal."""

    def __init__(self, is_long: bool, has_headings: bool) -> None:
        self._is_long = is_long
        self._has_headings = has_headings
        self._is_first = True
        self._is_terminal = sys.stdout.isatty()
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def rows(self, files: Files, folder: bytes, rows: list[Row]) -> None:
        """Prints the rows of one folder; folder b"": the names are whole paths."""
        from mpifs.job.files_protocol import join

        out = []
        if self._has_headings and folder:
            out.append((b"" if self._is_first else b"\n") + self._name(folder) + b":\n")
        self._is_first = False
        if not self._is_long:
            out += [self._name(name) + b"\n" for name, _ in rows]
        else:
            cells = [self._cells(found) for _, found in rows]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            for (name, found), line in zip(rows, cells, strict=True):
                left = " ".join(
                    cell.ljust(width) if place in (0, 2, 3) else cell.rjust(width)
                    for place, (cell, width) in enumerate(zip(line, widths, strict=True))
                )
                text = left.encode() + b" " + self._name(name)
                if found.is_symlink:
                    path = join(folder, name) if folder else name
                    text += b" -> " + self._name(files.readlink(path))
                out.append(text + b"\n")
        sys.stdout.buffer.write(b"".join(out))
        sys.stdout.buffer.flush()

    def _name(self, name: bytes) -> bytes:
        from mpifs.cli.progress import printable

        return printable(name).encode() if self._is_terminal else name

    def _cells(self, found: Attributes) -> list[str]:
        size = str(found.size)
        if stat.S_ISCHR(found.mode) or stat.S_ISBLK(found.mode):
            size = f"{os.major(found.rdev)}, {os.minor(found.rdev)}"
        return [
            stat.filemode(found.mode),
            str(found.nlink),
            _word(self._users, found.uid, lambda uid: pwd.getpwuid(uid).pw_name),
            _word(self._groups, found.gid, lambda gid: grp.getgrgid(gid).gr_name),
            size,
            _time_text(found.mtime_ns),
        ]


def _time_text(time_ns: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ns // 10**9))
    except (OverflowError, ValueError, OSError):
        return str(time_ns // 10**9)


def _word(known: dict[int, str], number: int, find: Callable[[int], str]) -> str:
    """The name of a user or group, or its number where there is none."""
    if number not in known:
        try:
            known[number] = find(number)
        except KeyError:
            known[number] = str(number)
    return known[number]
