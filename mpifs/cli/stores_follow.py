"""Waits for work on a volume's stores to end, and shows how far it is.

Ctrl-C ends the waiting.  In a mount the work goes on; started by the command itself it ends with
it, and the same command, or the next mount, goes on where it was.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from mpifs.job.control import ControlClient


def follow(client: ControlClient, goal: str, worker: int, *, is_quiet: bool) -> dict[str, Any]:
    """The last answer of `stores.poll`: done, or failed with a reason."""
    from mpifs.core.limits import STORES_POLL_S

    shown = _Shown(goal, is_quiet=is_quiet)
    try:
        while True:
            answer = client.call("stores.poll", goal=goal, worker=worker)
            if answer["state"] != "running":
                return answer
            shown.show(answer["heal"])
            time.sleep(STORES_POLL_S)
    finally:
        shown.end()


def finish(command: str, answer: dict[str, Any], document: dict[str, Any], *, as_json: bool) -> int:
    """Says how it ended; the exit code."""
    from mpifs.cli.progress import print_json

    if as_json:
        print_json({**document, "state": answer["state"], "reason": answer["reason"]})
    if answer["state"] == "failed":
        typer.echo(f"mpifs: {command}: {answer['reason']}", err=True)
        return 1
    return 0


class _Shown:
    """A bar on a terminal, a line now and then elsewhere; on stderr."""

    def __init__(self, goal: str, *, is_quiet: bool) -> None:
        self._goal = goal
        self._is_quiet = is_quiet
        self._start_s = self._line_s = time.monotonic()
        self._bar: Bar | None = None
        self._done = 0
        self._total = 0
        self._left = 0

    def show(self, heal: dict[str, Any]) -> None:
        """`heal` is the document of rank 0; its total is counted anew by each pass."""
        from mpifs.cli.progress import LINE_INTERVAL_S, SHOW_AFTER_S

        left = int(heal["bytes_left"])
        self._done += max(0, self._left - left)
        self._left = left
        self._total = max(self._total, self._done + left)
        now = time.monotonic()
        if self._is_quiet or now - self._start_s < SHOW_AFTER_S:
            return
        if sys.stderr.isatty():
            self._show_bar()
        elif now - self._line_s >= LINE_INTERVAL_S:
            self._line_s = now
            self._line(heal)

    def _line(self, heal: dict[str, Any]) -> None:
        from mpifs.cli.progress import human_size

        words = f"{human_size(self._done)} of {human_size(self._total)}"
        if heal["rate"]:
            words += f", {human_size(heal['rate'])}/s, {heal['seconds_left']:.0f} s left"
        typer.echo(f"mpifs {self._goal}: {heal['state']}, {words}", err=True)

    def _show_bar(self) -> None:
        if self._bar is None:
            from mpifs.cli.progress import make_bar

            self._bar = make_bar(self._goal, "")
            self._bar.start()
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=self._done, total=self._total or None)

    def end(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
