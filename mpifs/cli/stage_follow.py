"""What stage-in and stage-out share: manifests, following a run, its report and exit code."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from mpifs.cli.progress import Progress, human_size, print_json

if TYPE_CHECKING:
    from mpifs.job.stage_access import Staging

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAILURES_SHOWN = 20  # sentences on stderr; --json has up to a thousand, the report counts all.


def manifest_lines(path: str) -> Iterator[tuple[int, bytes, bytes]]:
    """(line number, source, destination) of a manifest (`-`: stdin).

    Words are separated by blanks and quoted as in a shell; `#` begins a comment; a destination
    that ends with / takes the source's own name.  Raises typer.BadParameter, OSError.
    """
    name = "stdin" if path == "-" else path
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
        for number, line in enumerate(file, 1):
            text = os.fsdecode(line)
            plain = text.split()
            try:
                is_plain = len(plain) == 2 and not any(c in text for c in "'\"\\#")
                words = plain if is_plain else shlex.split(text, comments=True)
            except ValueError as error:
                raise typer.BadParameter(f"{name}, line {number}: {error}") from None
            if not words:
                continue
            if len(words) != 2:
                raise typer.BadParameter(
                    f"{name}, line {number}: {len(words)} words; a line is a source and a "
                    "destination, names with blanks in quotes"
                )
            source, target = words
            if target.endswith("/"):
                target += os.path.basename(source.rstrip("/"))
            yield number, os.fsencode(source), os.fsencode(target)


class StageProgress(Progress):
    """Shows a run as it is polled, and tells what became of it at its end."""

    def __init__(self, command: str, *, is_quiet: bool, is_dry: bool) -> None:
        super().__init__(command, is_quiet=is_quiet)
        self._is_dry = is_dry
        self._news: dict[str, Any] = {}

    def take(self, news: dict[str, Any]) -> None:
        """One poll's answer."""
        self._news = news
        self.files, self.folders = news["files"], news["folders"]
        for path, sentence in news["failures"]:
            if len(self.errors) < FAILURES_SHOWN:
                self.complain(path, sentence)
            else:
                text = path.decode("utf-8", "surrogateescape")
                self.errors.append({"path": text, "error": sentence})
        self.bytes = news["bytes"]
        self.on_bytes(0)

    def _so_far(self, seconds: float) -> str:
        rate = f"{human_size(self.bytes / max(seconds, 1e-3))}/s"
        skipped = self._news.get("skipped", 0)
        return f"{self.files} files, {skipped} there already, {human_size(self.bytes)}, {rate}"

    def say(self, sentence: str) -> None:
        """A line on stderr."""
        self._line(f"mpifs {self.command}: {sentence}")

    @property
    def failed(self) -> int:
        """Files and folders that could not be staged."""
        return max(int(self._news.get("failed", 0)), len(self.errors))

    @property
    def exit_code(self) -> int:
        """0 all, 1 none, 2 part."""
        is_whole = not self.failed and self._news.get("state") == "done"
        if is_whole:
            return 0
        return 2 if self._news.get("files") or self._news.get("skipped") else 1

    def report(self) -> str:
        """One line that says what was done."""
        news = self._news
        seconds = max(float(news.get("seconds", 0.0)), 1e-3)
        done = "would be staged" if self._is_dry else "staged"
        words = f"{news.get('files', 0)} files, {human_size(self.bytes)} {done}"
        if not self._is_dry:
            words += f" in {seconds:.1f} s ({news.get('files', 0) / seconds:.0f} files/s, "
            words += f"{human_size(self.bytes / seconds)}/s)"
        words += f", {news.get('skipped', 0)} there already, {self.failed} failed"
        if news.get("helped"):
            words += f"; rank 0 did {news['helped']} parts for workers that do not see the place"
        return words

    def document(self) -> dict[str, Any]:
        """What --json prints."""
        news = self._news
        seconds = max(float(news.get("seconds", 0.0)), 1e-3)
        return {
            "files": self.files,
            "folders": self.folders,
            "bytes": self.bytes,
            "skipped": news.get("skipped", 0),
            "skipped_bytes": news.get("skipped_bytes", 0),
            "failed": self.failed,
            "seconds": round(seconds, 3),
            "files_per_second": round(self.files / seconds, 1),
            "bytes_per_second": round(self.bytes / seconds),
            "helped": news.get("helped", 0),
            "dry_run": self._is_dry,
            "errors": self.errors,
        }


def run(
    progress: StageProgress,
    staging: Staging,
    pairs: Iterable[tuple[bytes, bytes]],
    *,
    is_in: bool,
    is_dry: bool,
) -> None:
    """Starts a run and follows it; Ctrl-C ends it at its next step."""
    staging.start(pairs, is_in=is_in, is_dry=is_dry)
    with _signals_noted() as noted:

        def is_interrupted() -> bool:
            if noted:
                progress.say("interrupted: what is under way is ended; run it again to go on")
            return bool(noted)

        news = staging.follow(progress.take, is_interrupted)
    if news["state"] == "failed":
        progress.complain(b"the run", news["sentence"])


@contextlib.contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Signals that end a command only leave their numbers here: an answer under way is read to its
    end.  The second one interrupts."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        if len(noted) > 1:
            raise KeyboardInterrupt

    before = [(number, signal.signal(number, note)) for number in _SIGNALS]
    try:
        yield noted
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def finish(progress: StageProgress, *, is_json: bool) -> int:
    """The report, and the exit code."""
    if is_json:
        print_json(progress.document())
    else:
        left_out = len(progress.errors) - FAILURES_SHOWN
        more = progress.failed - min(len(progress.errors), FAILURES_SHOWN)
        if left_out > 0 and more:
            progress.say(f"and {more} more failures (--json has them)")
        sys.stdout.write(f"{progress.report()}\n")
    return progress.exit_code
