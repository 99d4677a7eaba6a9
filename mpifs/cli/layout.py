"""`mpifs layout`: where each chunk of a file lies."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer


def layout(
    paths: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Files in a mount, or STORE:PATH.")
    ],
    is_json: Annotated[
        bool, typer.Option("--json", help="Print a list, one entry a file.")
    ] = False,
) -> int:
    """Show index, length, checksum and workers of each chunk of a file."""
    from mpifs.cli.progress import Progress, print_json
    from mpifs.cli.volume_path import parse, parse_mounted
    from mpifs.core.errors import PosixError
    from mpifs.job.files_access import Volumes
    from mpifs.job.files_tree import report

    progress = Progress("layout", is_quiet=True)
    documents = []
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
                if not files.stat(place.path, follow=True).is_regular:
                    raise PosixError(22, "only regular files have a layout")
                documents.append(_document(path, files.layout(place.path)))
            except OSError as error:
                report(progress, os.fsencode(path), error)
                continue
            if not is_json:
                _print_table(documents[-1])
    if is_json:
        print_json(documents)
    return progress.exit_code


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


def _print_table(document: dict[str, Any]) -> None:
    from mpifs.cli.progress import human_size, printable

    name = os.fsencode(document["path"])
    copies = "1 copy" if document["replicas"] == 1 else f"{document['replicas']} copies"
    head = (
        f": {document['size']} bytes, {len(document['chunks'])} chunks of "
        f"{human_size(document['chunk_size'])}, {copies}\n"
    )
    out = [(printable(name).encode() if sys.stdout.isatty() else name) + head.encode()]
    if document["chunks"]:
        out.append(f"{'index':>8}  {'length':>9}  {'checksum':<32}  workers\n".encode())
    for chunk in document["chunks"]:
        workers = ", ".join(map(str, chunk["workers"]))
        line = f"{chunk['index']:>8}  {chunk['length']:>9}  {chunk['checksum']:<32}  {workers}\n"
        out.append(line.encode())
    sys.stdout.buffer.write(b"".join(out))
    sys.stdout.buffer.flush()
