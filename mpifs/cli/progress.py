"""What long work shows: a bar on a terminal, a line now and then elsewhere, all on stderr.

Also counts what was done and prints errors, one line each.  Used by one thread.
"""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mpifs.core.errors import MpifsError
from mpifs.job.files_protocol import Attributes
from mpifs.job.files_tree import Amount

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LINE_INTERVAL_S = 5.0  # plain lines: often enough to see life, few enough for a log.
SHOW_AFTER_S = 0.5  # work that is done by then shows nothing.
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human_size(count: float) -> str:
    """Bytes for people: 4096 → 4.0 KiB."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {_UNITS[0]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def printable(name: bytes) -> str:
    """A name for a terminal or a message: what is no printable UTF-8 stands as an escape."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def sentence_of(error: OSError) -> str:
    """What an error says, without its errno and file name."""
    return str(error) if isinstance(error, MpifsError) else str(error.strerror or error)


class Progress:
    """A files_tree.Listener that shows and counts.  Use as a context manager around the work."""

    def __init__(self, command: str, *, shows_bytes: bool = True, is_quiet: bool = False) -> None:
        self.command = command
        self.files = self.folders = self.bytes = 0
        self.errors: list[dict[str, str]] = []
        self._shows_bytes = shows_bytes
        self._is_quiet = is_quiet
        self._total: Amount | None = None
        self._start_s = self._line_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        self._start_s = self._line_s = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def is_terminal(self) -> bool:
        """Whether a bar may be shown, so that knowing the total is worth a walk."""
        return self._is_terminal and not self._is_quiet

    @property
    def exit_code(self) -> int:
        """0, or 1 after an error."""
        return 1 if self.errors else 0

    def set_total(self, total: Amount) -> None:
        """What there is to do."""
        self._total = total

    def on_bytes(self, count: int) -> None:
        """See Listener."""
        self.bytes += count
        self._show()

    def on_done(self, path: bytes, found: Attributes) -> None:
        """See Listener."""
        if found.is_folder:
            self.folders += 1
        else:
            self.files += 1
        self._show()

    def on_error(self, path: bytes, error: OSError) -> None:
        """See Listener."""
        self.complain(path, sentence_of(error))

    def on_warning(self, path: bytes, sentence: str) -> None:
        """See Listener."""
        self._line(f"mpifs {self.command}: {printable(path)}: {sentence}")

    def complain(self, path: bytes, sentence: str) -> None:
        """One thing failed: a line on stderr, an entry in --json, exit code 1."""
        sentence = " ".join(sentence.split())
        self.errors.append({"path": path.decode("utf-8", "surrogateescape"), "error": sentence})
        self._line(f"mpifs {self.command}: {printable(path)}: {sentence}")

    def document(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "files": self.files,
            "folders": self.folders,
            "bytes": self.bytes,
            "seconds": round(time.monotonic() - self._start_s, 3),
            "errors": self.errors,
        }

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        sys.stderr.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")

    def _show(self) -> None:
        now = time.monotonic()
        if self._is_quiet or now - self._start_s < SHOW_AFTER_S:
            return
        if self._is_terminal:
            self._show_bar()
        elif now - self._line_s >= LINE_INTERVAL_S:
            self._line_s = now
            self._line(f"mpifs {self.command}: {self._so_far(now - self._start_s)}")

    def _so_far(self, seconds: float) -> str:
        words = f"{self.files + self.folders} files"
        if self._shows_bytes:
            words += f", {human_size(self.bytes)}"
            if self._total is not None:
                words += f" of {human_size(self._total.size)}"
            words += f", {human_size(self.bytes / max(seconds, 1e-3))}/s"
        return words

    def _show_bar(self) -> None:
        if self._bar is None:
            self._bar = make_bar(
                self.command,
                "{task.fields[files]} files",
                shows_bytes=self._shows_bytes,
                files=0,
            )
            self._bar.start()
        done = self.bytes if self._shows_bytes else self.files
        total = None
        if self._total is not None:
            total = self._total.size if self._shows_bytes else self._total.files
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=done, total=total, files=self.files)


def make_bar(title: str, count: str, *, shows_bytes: bool = True, **fields: Any) -> RichProgress:
    """A bar on stderr that goes when it is stopped, with one task; `count` is a text for what is
    counted beside bytes, in terms of `fields`, which an update may change."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = [TextColumn("{task.description}"), BarColumn()]
    if shows_bytes:
        columns += [DownloadColumn(binary_units=True), TransferSpeedColumn()]
    columns += [TextColumn(count), TimeRemainingColumn()]
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(title, total=None, **fields)
    return bar


def print_json(document: object) -> None:
    """One JSON document on stdout.  Bytes of names that are no UTF-8 stand as lone surrogates in
    escapes (\\udcXX), which os.fsencode turns back."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()
