"""What `mpifs fsck` shows: findings as they come, a bar or plain lines meanwhile, a summary; or one
JSON document.  Findings are never held in memory: for JSON they wait in a temporary file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from mpifs.cli.progress import LINE_INTERVAL_S, SHOW_AFTER_S, human_size, make_bar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_CLEAN, _REPAIRED, _LEFT, _FAILED, _CANCELLED = 0, 1, 4, 8, 32
_SEVERITIES = {
    "lost": "lost: no copy has the bytes; reading them gives an error, never other bytes",
    "damage": "damaged or missing copies; the bytes are still there",
    "error": "contradictions in the index",
    "leftover": "leftovers that only use space",
}


class FsckReport:
    """Takes the answers of fsck.poll in turn.  Use as a context manager around the run."""

    def __init__(
        self, place: str, *, repair: bool, is_json: bool, progress_fd: int | None = None
    ) -> None:
        self.exit_code = _FAILED
        self._place = place
        self._repair = repair
        self._is_json = is_json
        self._progress_fd = progress_fd
        self._spool: IO[str] | None = None
        if is_json:  # closed by __exit__.
            self._spool = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._found: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._notes: list[str] = []
        self._figures: dict[str, Any] = {}
        self._start_s = self._line_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty() and not is_json
        self._bar: RichProgress | None = None

    def __enter__(self) -> FsckReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_bar()
        if self._spool is not None:
            self._spool.close()

    def take(self, answer: dict[str, Any]) -> None:
        """One answer of fsck.poll."""
        for finding in answer["findings"]:
            severity = finding["severity"]
            self._found[severity] += 1
            if not finding["repaired"]:
                self._left[severity] += 1
            if self._spool is not None:
                self._spool.write(json.dumps(finding) + "\n")
            else:
                self._print(line_of(finding))
        for note in answer["notes"]:
            self._notes.append(note)
            if not self._is_json:
                self._print(f"note: {_one_line(note)}")
        self._figures = answer["progress"]
        self._show()

    def finish(self, state: str, reason: str) -> None:
        """The run has ended; prints the summary or the document and sets the exit code."""
        self._stop_bar()
        if state == "done":
            left = sum(self._left.values())
            self.exit_code = _LEFT if left else _REPAIRED if self._found else _CLEAN
        else:
            self.exit_code = _CANCELLED if state == "cancelled" else _FAILED
        if self._spool is not None:
            if state != "done":
                self._notes.append(self._incomplete(state, reason))
            self._print_document()
        else:
            sys.stdout.flush()
            self._summarise(state, reason)

    def _incomplete(self, state: str, reason: str) -> str:
        word = "cancelled" if state == "cancelled" else "not finished"
        why = reason or "no reason is known"
        return f"{word}: {why}; what is told here is what was done until then"

    def _print_document(self) -> None:
        """The JSON document, its findings one by one."""
        assert self._spool is not None
        out = sys.stdout
        out.write(f'{{"clean": {json.dumps(self.exit_code == _CLEAN)}, "findings": [')
        self._spool.seek(0)
        for number, line in enumerate(self._spool):
            out.write(("," if number else "") + "\n  " + line.rstrip("\n"))
        figures = self._figures
        checked = {name: figures.get(name, 0) for name in ("inodes", "chunks", "bytes")}
        checked["seconds"] = round(figures.get("seconds", 0.0), 3)
        ending = "\n" if self._found else ""
        out.write(f'{ending}], "checked": {json.dumps(checked)}')
        out.write(f', "notes": {json.dumps(self._notes)}}}\n')
        out.flush()

    def _summarise(self, state: str, reason: str) -> None:
        figures = self._figures
        seconds = figures.get("seconds", 0.0)
        work = (
            f"{figures.get('inodes', 0)} inodes, {figures.get('chunks', 0)} chunks, "
            f"{human_size(figures.get('bytes', 0))} summed in {seconds:.1f} s"
        )
        if figures.get("bytes") and seconds > 0:
            work += f" ({human_size(figures['bytes'] / seconds)}/s)"
        if state != "done":
            self._say(f"{self._incomplete(state, reason)} ({work})")
        elif not self._found:
            self._say(f"clean; {work}")
        else:
            repaired = sum(self._found.values()) - sum(self._left.values())
            self._say(f"{sum(self._found.values())} findings, {repaired} repaired; {work}")
        for severity, meaning in _SEVERITIES.items():
            if self._found[severity]:
                left = f", {self._left[severity]} left" if self._repair else ""
                self._say(f"  {self._found[severity]} {meaning}{left}")
        if self._left and not self._repair:
            self._say(f"what can be saved is saved by: mpifs fsck --repair {self._place}")
        elif self._left["lost"]:
            self._say("bring back the missing stores if there are any, or restore those files")

    def _say(self, sentence: str) -> None:
        sys.stderr.write(f"mpifs fsck: {self._place}: {sentence}\n")

    def _print(self, line: str) -> None:
        """A line of the result; on a terminal the bar must know of it."""
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        sys.stdout.write(line.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")

    def _show(self) -> None:
        if self._progress_fd is not None:
            self._tell_fd()
        now = time.monotonic()
        if self._is_json or now - self._start_s < SHOW_AFTER_S:
            return
        if self._is_terminal:
            self._show_bar()
        elif now - self._line_s >= LINE_INTERVAL_S:
            self._line_s = now
            self._say(self._so_far())

    def _tell_fd(self) -> None:
        """A line for the program that asked by -C, as e2fsck writes it: pass, done, all, device."""
        figures = self._figures
        line = f"1 {figures['bytes']} {figures['total_bytes']} {self._place}\n"
        assert self._progress_fd is not None
        try:
            os.write(self._progress_fd, line.encode("utf-8", "surrogateescape"))
        except OSError:
            self._progress_fd = None

    def _so_far(self) -> str:
        figures = self._figures
        done, total, seconds = figures["bytes"], figures["total_bytes"], figures["seconds"]
        words = f"{figures['phase'] or 'starting'}: {figures['inodes']} inodes, {human_size(done)}"
        if total:
            words += f" of {human_size(total)}"
        rate = done / max(seconds, 1e-3)
        words += f", {human_size(rate)}/s"
        if rate and total > done:
            words += f", {(total - done) / rate:.0f} s left"
        return f"{words}, {figures['found']} findings"

    def _show_bar(self) -> None:
        if self._bar is None:
            self._bar = make_bar("starting", "{task.fields[found]} findings", found=0)
            self._bar.start()
        figures = self._figures
        self._bar.update(
            self._bar.task_ids[0],
            description=figures["phase"] or "starting",
            completed=figures["bytes"],
            total=figures["total_bytes"] or None,
            found=figures["found"],
        )

    def _stop_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with contextlib.suppress(OSError):
                bar.stop()


def line_of(finding: dict[str, Any]) -> str:
    """One finding as one line for people."""
    where = finding["path"]
    if where is None and finding["inode"] is not None:
        where = f"inode {finding['inode']}"
    if where is None and finding["worker"] is not None:
        where = f"worker {finding['worker']}"
    words = f"{finding['severity']}: {_one_line(where or 'volume')}: {_one_line(finding['detail'])}"
    return words + (" [repaired]" if finding["repaired"] else "")


def _one_line(text: str) -> str:
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
