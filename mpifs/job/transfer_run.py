"""One command of transfers under way in rank 0: its rows (files from a rank to a rank), a few at
once in threads of their own, and the lines that tell what each rank did.

    waiting → running → done | part | failed | nothing (collect: the rank has no such file)
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpifs.core.errors import MpifsError, PosixError
from mpifs.core.limits import (
    TRANSFER_AT_ONCE,
    TRANSFER_ERRORS_MAX,
    TRANSFER_JOIN_S,
    TRANSFER_LINES_MAX,
    TRANSFER_NEWS_MAX,
    TRANSFER_ROWS_TOLD,
)
from mpifs.transfer.carrier import MASTER, Carrier
from mpifs.transfer.folder import shown
from mpifs.transfer.tally import Tally

log = logging.getLogger(__name__)
WAITING, RUNNING, DONE, PART, FAILED, NOTHING = (
    "waiting", "running", "done", "part", "failed", "nothing",
)  # fmt: skip


_ROWS_TOLD = 200  # ended transfers in one answer: far below a frame of the control socket.


def rank_name(rank: int) -> str:
    """A rank in a line."""
    return "master" if rank == MASTER else f"worker {rank}"


@dataclass(slots=True, eq=False)
class Row:
    """Files from a rank to a rank; `label` is what the user named."""

    label: bytes
    source: int
    target: int
    tally: Tally = field(default_factory=Tally)
    state: str = WAITING
    begun_s: float = 0.0
    seconds: float = 0.0
    note: str = ""
    """More for the line that tells the end."""

    def document(self) -> dict[str, Any]:
        """For the command, and for --json."""
        tally = self.tally
        return {
            "name": self.label,
            "from": self.source,
            "to": self.target,
            "state": self.state,
            "files": tally.files,
            "folders": tally.folders,
            "bytes": tally.bytes,
            "total": tally.total,
            "chunks": tally.chunks,
            "sent": tally.sent,
            "sent_bytes": tally.sent_bytes,
            "current": tally.current,
            "seconds": round(self.seconds, 3),
            "error_count": tally.error_count,
        }


Work = Callable[["TransferRun"], None]


class TransferRun:
    """`work` fills and runs the rows, in a thread of its own.  `_lock` guards `_news` and
    `_ended`; rows are added before they are run."""

    def __init__(self, carrier: Carrier, work: Work) -> None:
        self.carrier = carrier
        self.rows: list[Row] = []
        self._work = work
        self._lock = threading.Condition()
        self._news: deque[str] = deque(maxlen=TRANSFER_NEWS_MAX)
        self._ended: deque[Row] = deque()
        self._is_cancelled = False
        self._is_over = False
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name="transfer", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def cancel(self) -> None:
        """Ends all rows at their next step; what has come stays as partial files."""
        self._is_cancelled = True
        for row in list(self.rows):
            row.tally.cancel()

    def join(self) -> bool:
        """Waits TRANSFER_JOIN_S for the end; whether it has come."""
        self._thread.join(TRANSFER_JOIN_S)
        return not self._thread.is_alive()

    @property
    def is_cancelled(self) -> bool:
        """Whether its user wants it no more."""
        return self._is_cancelled

    def check(self) -> None:
        """Raises CancelledTransferError."""
        if self._is_cancelled:
            tally = Tally()
            tally.cancel()
            tally.check()

    def say(self, line: str) -> None:
        """A line for the user, and for the log."""
        log.info("%s", line)
        with self._lock:
            self._news.append(line)
            self._lock.notify_all()

    def poll(self, timeout_s: float) -> dict[str, Any]:
        """News since the last poll: waits for lines or the end at most so long."""
        with self._lock:
            if not self._news and not self._ended and not self._is_over:
                self._lock.wait(timeout_s)
            is_over = self._is_over
            lines = [self._news.popleft() for _ in range(min(len(self._news), 1000))]
            ended = self._take_ended()
            has_more = bool(self._news or self._ended)
        running = [row for row in self.rows if row.state == RUNNING]
        return {
            "state": "over" if is_over and not has_more else "running",
            "reason": self._reason,
            "lines": lines,
            "rows": [row.document() for row in running[:TRANSFER_ROWS_TOLD]],
            "ended": [_with_errors(row) for row in ended],
            "waiting": sum(row.state == WAITING for row in self.rows),
        }

    def _take_ended(self) -> list[Row]:
        """As many as one answer holds.  Requires: _lock is held."""
        taken: list[Row] = []
        errors = 0
        while self._ended and len(taken) < _ROWS_TOLD and errors < TRANSFER_ERRORS_MAX:
            taken.append(self._ended.popleft())
            errors += len(taken[-1].tally.errors)
        return taken

    def _run(self) -> None:
        try:
            self._work(self)
        except OSError as error:
            self._reason = " ".join(str(error).split())
        except Exception as error:
            log.exception("a transfer failed")
            self._reason = f"internal error ({error!r}), see the log"
        for row in self.rows:
            if row.state in (WAITING, RUNNING):
                self.end(row, FAILED, PosixError(errno.ECANCELED, self._reason or "not begun"))
        with self._lock:
            self._is_over = True
            self._lock.notify_all()

    # For the work.

    def ready(self, ranks: Sequence[int]) -> dict[int, MpifsError]:
        """Tells the workers among these ranks where their files are; why others do not answer."""
        workers = sorted({rank for rank in ranks if rank != MASTER})
        answers = self.carrier.prepare(workers)
        return {rank: each for rank, each in answers.items() if isinstance(each, MpifsError)}

    def add(self, label: bytes, source: int, target: int) -> Row:
        """A row that is going to be run."""
        row = Row(label, source, target)
        self.rows.append(row)
        return row

    def begin(self, row: Row) -> None:
        """The row is under way."""
        row.state, row.begun_s = RUNNING, time.monotonic()
        if self._is_cancelled:
            row.tally.cancel()

    def end(self, row: Row, state: str = "", error: OSError | None = None) -> None:
        """The row is over: as its tally says, unless `state` says more."""
        tally = row.tally
        if error is not None:
            tally.fail(row.label, error)
        tally.is_over = True
        row.seconds = time.monotonic() - row.begun_s if row.begun_s else 0.0
        if not state:
            has_done = tally.files > 0 or (tally.folders > 0 and not tally.error_count)
            state = DONE if not tally.error_count else PART if has_done else FAILED
        row.state = state
        if state in (DONE, PART):
            self.say(_line_of(row))
        with self._lock:
            self._ended.append(row)
            self._lock.notify_all()

    def carry(self, row: Row, names: Sequence[bytes], into: bytes) -> None:
        """Runs a row that moves files, to its end."""
        self.begin(row)
        self.carrier.carry(row.source, row.target, names, into, row.tally)
        self.end(row)

    def all(self, works: Sequence[Callable[[], None]]) -> None:
        """Does all of them, TRANSFER_AT_ONCE at a time; returns when they are done."""
        queue = deque(works)

        def run() -> None:
            while True:
                try:
                    work = queue.popleft()
                except IndexError:
                    return
                work()

        count = min(TRANSFER_AT_ONCE, len(works))
        threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _with_errors(row: Row) -> dict[str, Any]:
    return {**row.document(), "errors": row.tally.errors}


def human(count: float) -> str:
    """Bytes in a line."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def plural(count: int, word: str) -> str:
    """`1 chunk`, `2 chunks`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def list_of(numbers: Sequence[int]) -> str:
    """Numbers in a line, long rows cut."""
    if len(numbers) <= TRANSFER_LINES_MAX:
        return ", ".join(map(str, numbers))
    return f"{', '.join(map(str, numbers[:3]))} … {numbers[-1]}"


def _line_of(row: Row) -> str:
    """`worker 1: stored a.bin from master: 3.0 MiB, 3 chunks, 3 sent, 1.1 GiB/s`."""
    tally = row.tally
    if not tally.chunks and tally.files == 1 and not tally.total:
        return f"{rank_name(row.target)}: no chunk of {shown(row.label)} falls to it"
    words = [human(tally.bytes)]
    if tally.files != 1 or tally.folders:
        words.append(plural(tally.files, "file"))
    if tally.sent == tally.chunks:
        words.append(f"{plural(tally.chunks, 'chunk')} sent")
    elif not tally.sent:
        words.append("there already, nothing sent")
    else:
        words.append(f"{tally.sent} of {plural(tally.chunks, 'chunk')} sent")
        words.append("the others were there or are zeros")
    if row.seconds > 0 and tally.sent_bytes:
        words.append(f"{human(tally.sent_bytes / row.seconds)}/s")
    if tally.error_count:
        words.append(f"{tally.error_count} failed")
    if row.note:
        words.append(row.note)
    verb = "stored" if row.state == DONE else "stored a part of"
    source = "" if row.source < 0 else f" from {rank_name(row.source)}"
    return f"{rank_name(row.target)}: {verb} {shown(row.label)}{source}: {', '.join(words)}"
