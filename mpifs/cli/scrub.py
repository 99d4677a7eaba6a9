"""`mpifs scrub`: checks a mounted volume's chunks in the background, at a bounded rate."""

from __future__ import annotations

import json
import time
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mpifs.job.folder import VolumeFolder


class Action(str, Enum):
    """What to do."""

    start = "start"
    pause = "pause"
    status = "status"
    stop = "stop"


def scrub(
    action: Annotated[Action, typer.Argument(help="stop forgets where it was, pause does not.")],
    mountpoint: Annotated[str, typer.Argument(metavar="MNT", help="A mounted volume.")],
    rate: Annotated[
        str | None,
        typer.Option(help="Bytes a second over all workers, for start.  [default: 32MiB]"),
    ] = None,
    repair: Annotated[
        bool | None,
        typer.Option("--repair/--no-repair", help="Whether start also repairs what it finds."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> int:
    """Check all chunks in the background; goes on where it was after the next mount."""
    from mpifs.job.fsck_access import volume_to_check
    from mpifs.job.sizes import parse_size

    if action is not Action.start and (rate is not None or repair is not None):
        raise typer.BadParameter("--rate and --repair are for start")
    arguments: dict[str, Any] = {}
    if rate is not None:
        try:
            arguments["rate"] = parse_size(rate.removesuffix("/s"))
        except OSError as error:
            raise typer.BadParameter(str(error)) from None
        if arguments["rate"] < 1024:
            raise typer.BadParameter(f"--rate {rate}: give at least 1KiB")
    if repair is not None:
        arguments["repair"] = repair
    folder = volume_to_check(mountpoint)
    document = _ask(folder, f"scrub.{action.value}", arguments)
    if as_json:
        print(json.dumps(document), flush=True)
    elif action is Action.status:
        _show(document)
    return 0


def _ask(folder: VolumeFolder, call: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Rank 0's answer; of a volume at rest the status alone can be told."""
    from mpifs.core.errors import FormatError
    from mpifs.job.control import ControlClient
    from mpifs.job.fsck_access import is_mounted
    from mpifs.job.scrub_service import status_at_rest

    if is_mounted(folder):
        with ControlClient(folder.socket) as client:
            return client.call(call, **arguments)
    if call != "scrub.status":
        raise FormatError(
            f"{folder.path} is not mounted: a scrub runs in the background of a mount; "
            f"check a volume at rest with: mpifs fsck {folder.path}"
        )
    return status_at_rest(folder)


def _show(document: dict[str, Any]) -> None:
    from mpifs.cli.fsck_report import line_of
    from mpifs.cli.progress import human_size

    typer.echo(f"scrub     {document['state']}, {human_size(document['rate'])}/s", nl=False)
    typer.echo(", repairs" if document["repair"] else "")
    if document["started"]:
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(document["started"]))
        typer.echo(f"began     {begun}")
    if document["ended"]:
        ended = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(document["ended"]))
        typer.echo(f"complete  {ended}")
    words = f"{document['chunks']} chunks, {human_size(document['bytes'])}"
    if document["total_bytes"]:
        words += f" of {human_size(document['total_bytes'])}"
    typer.echo(f"checked   {words}")
    typer.echo(f"findings  {document['found']}, {document['repaired']} repaired")
    for finding in document["findings"]:
        typer.echo(line_of(finding))
    if document["error"]:
        typer.echo(f"error     {document['error']}")
