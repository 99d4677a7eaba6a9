"""`mpifs layout`: where each chunk of a file lies, and how a folder lies over the workers."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mpifs.cli.volume_path import VolumePath
    from mpifs.job.files_protocol import Files

_TABLE_MAX = 32
"""Chunks of a file whose table a terminal shows without being asked."""


def layout(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="FILE…", help="Files and folders in a mount, or STORE:PATH."),
    ],
    is_json: Annotated[
        bool, typer.Option("--json", help="Print a list, one entry a file or folder.")
    ] = False,
    is_picture: Annotated[
        bool | None,
        typer.Option(
            "--picture/--table",
            help="Draw how it lies over the workers, or list a file's chunks; a terminal gets the "
            "picture, and the table of a file that is not large.",
        ),
    ] = None,
) -> int:
    """Show where the chunks of a file or folder lie: index, length, checksum, workers."""
    from mpifs.cli.progress import Progress, print_json
    from mpifs.cli.volume_path import parse, parse_mounted
    from mpifs.job.files_access import Volumes
    from mpifs.job.files_tree import report

    progress = Progress("layout", is_quiet=True)
    documents: list[dict[str, Any]] = []
    with Volumes() as volumes:
        for path in paths:
            place = parse_mounted(path)
            if place is None and os.path.lexists(path):
                sentence = "lies in no mount of mpifs; name a file in a mount, or STORE:PATH"
                progress.complain(os.fsencode(path), sentence)
                continue
            try:
                place = place or parse(path)
                files = volumes.files_of(place.folder)
                document, lines = _look(files, path, place, is_picture, is_json=is_json)
            except OSError as error:
                report(progress, os.fsencode(path), error)
                continue
            documents.append(document)
            if not is_json:
                sys.stdout.buffer.write(b"".join(lines))
                sys.stdout.buffer.flush()
    if is_json:
        print_json(documents)
    return progress.exit_code


def _look(
    files: Files, path: str, place: VolumePath, is_picture: bool | None, *, is_json: bool
) -> tuple[dict[str, Any], list[bytes]]:
    """The document of one argument, and what is printed of it."""
    from mpifs.cli.layout_picture import entries_of, file_picture, folder_picture
    from mpifs.cli.progress import human_size
    from mpifs.core.errors import PosixError

    found = files.stat(place.path, follow=True)
    if found.is_folder:
        entries = entries_of(files, place.path)
        document: dict[str, Any] = {"path": path}
        document["entries"] = [entry.document() for entry in entries]
        if is_json:
            return document, []
        count, size = sum(e.files for e in entries), sum(e.bytes for e in entries)
        head = f": {count} files, {size} bytes"
        return document, _lines(path, head, folder_picture(entries, _workers_of(place)))
    if not found.is_regular:
        raise PosixError(22, "only files and folders have a layout")
    document = _document(path, files.layout(place.path))
    if is_json:
        return document, []
    copies = "1 copy" if document["replicas"] == 1 else f"{document['replicas']} copies"
    count = len(document["chunks"])
    head = (
        f": {document['size']} bytes, {count} chunks of "
        f"{human_size(document['chunk_size'])}, {copies}"
    )
    lines: list[str] = []
    if is_picture or (is_picture is None and sys.stdout.isatty()):
        lines = [*file_picture(document, _workers_of(place)), ""]
    if is_picture is False or (is_picture is None and (not lines or count <= _TABLE_MAX)):
        lines += _table(document)
    elif is_picture is None:
        lines.append(f"--table lists all {count} chunks")
    return document, _lines(path, head, lines)


def _workers_of(place: VolumePath) -> list[int]:
    """All workers, those that have nothing of it included; [] when they cannot be told."""
    from mpifs.job.status import status_of

    try:
        return [row["id"] for row in status_of(place.folder)["workers"]]
    except OSError:
        return []


def _document(path: str, found: dict[str, Any]) -> dict[str, Any]:
    """The shape of DESIGN section 7."""
    return {
        "path": path,
        "size": found["size"],
        "chunk_size": found["chunk_size"],
        "replicas": found["replicas"],
        "chunks": [
            {key: chunk[key] for key in ("index", "length", "checksum", "workers")}
            for chunk in found["chunks"]
        ],
    }


def _table(document: dict[str, Any]) -> list[str]:
    if not document["chunks"]:
        return []
    lines = [f"{'index':>8}  {'length':>9}  {'checksum':<32}  workers"]
    for chunk in document["chunks"]:
        workers = ", ".join(map(str, chunk["workers"]))
        lines.append(
            f"{chunk['index']:>8}  {chunk['length']:>9}  {chunk['checksum']:<32}  {workers}"
        )
    return lines


def _lines(path: str, head: str, lines: list[str]) -> list[bytes]:
    """As they are written: a name as it is, but for a terminal."""
    from mpifs.cli.progress import printable

    name = os.fsencode(path)
    shown = printable(name).encode() if sys.stdout.isatty() else name
    encoding = sys.stdout.encoding or "utf-8"
    return [
        shown,
        head.encode(),
        b"\n",
        *(f"{line}\n".encode(encoding, "replace") for line in lines),
    ]
