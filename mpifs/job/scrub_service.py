"""Rank 0's side of `mpifs scrub`: the background check of a mounted volume.

Calls of the control socket, each answers the status document (see status_of):
  scrub.start  rate: int, repair: bool (both may be left out: as last time)
  scrub.pause, scrub.stop, scrub.status
Writes down where it is every SCRUB_WRITE_S and when it is interrupted.  Stands aside for `mpifs
fsck`.  Goes on by itself at the next mount if it was running.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from mpifs.core.errors import PosixError, ProtocolError
from mpifs.core.limits import (
    IDLE_LOOK_S,
    SCRUB_AFTER_ERROR_S,
    SCRUB_JOIN_S,
    SCRUB_STAND_ASIDE_S,
    SCRUB_WRITE_S,
)
from mpifs.job.control import ControlServer
from mpifs.job.control_frames import sentence_of
from mpifs.job.folder import VolumeFolder
from mpifs.job.fsck_service import ChecksTurn
from mpifs.repair.findings import CancelledError, Finding, Progress
from mpifs.repair.scrub import (
    PAUSED,
    RUNNING,
    STOPPED,
    Pace,
    ScrubMemory,
    read_memory,
    write_memory,
)

log = logging.getLogger(__name__)
_COUNTED = ("inodes", "chunks", "bytes")


class ScrubWork(Protocol):
    """The checks as a scrub needs them; used by its thread alone."""

    @property
    def folder(self) -> VolumeFolder:
        """The volume."""
        ...

    def scrub(
        self,
        start: bytes,
        *,
        repair: bool,
        pace: Pace,
        progress: Progress,
        report: Callable[[Finding], None],
        reached: Callable[[bytes], None],
    ) -> None:
        """Checks everything behind the position `start` (b"" = all).  `reached` hears of positions
        before which all has been reported; it may raise to end the work there.

        Raises CancelledError, MpifsError.
        """
        ...


class ScrubService:
    """`_memory` and `_error` are guarded by `_changed`, which is notified when they change."""

    def __init__(self, work: ScrubWork, turn: ChecksTurn) -> None:
        self._work = work
        self._turn = turn
        self._changed = threading.Condition()
        self._memory = read_memory(work.folder.index)
        self._error = ""
        self._quit = False
        self._pass = 0  # which pass work belongs to: `stop` begins another one.
        self._progress = Progress()
        self._base = (0, 0, 0)  # inodes, chunks and bytes of the pass before this thread's work.
        self._pace = Pace(self._memory.rate, self._rest)
        self._thread = threading.Thread(target=self._loop, name="scrub", daemon=True)

    def register(self, control: ControlServer) -> None:
        """Takes the calls `scrub.*`."""
        control.register("scrub.start", self._on_start)
        control.register("scrub.pause", lambda args: self._leave(PAUSED))
        control.register("scrub.stop", lambda args: self._leave(STOPPED))
        control.register("scrub.status", lambda args: self._status())

    def document(self) -> dict[str, Any]:
        """What `scrub.status` answers."""
        return self._status()

    def start(self) -> None:
        """The volume is mounted: goes on where the last mount was."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; what was found until now is written down.  May be repeated."""
        with self._changed:
            self._quit = True
            self._progress.is_cancelled = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(SCRUB_JOIN_S)

    def _on_start(self, args: dict[str, Any]) -> dict[str, Any]:
        rate, repair = args.get("rate"), args.get("repair")
        if not isinstance(rate, int | None) or not isinstance(repair, bool | None):
            raise ProtocolError("scrub.start with impossible arguments")
        if rate is not None and rate < 1:
            raise PosixError(errno.EINVAL, f"a scrub cannot read {rate} bytes a second")
        if not self._thread.is_alive():
            raise PosixError(errno.EINVAL, "a scrub runs in the background of a mount")
        with self._changed:
            memory = self._memory
            if memory.state not in (RUNNING, PAUSED):
                memory.begin_pass()
                self._pass += 1
            if memory.state != RUNNING:
                self._base = memory.inodes, memory.chunks, memory.bytes
                self._progress = Progress(total_bytes=self._progress.total_bytes)
            memory.state = RUNNING
            memory.rate = self._pace.rate = rate or memory.rate
            memory.repair = memory.repair if repair is None else repair
            self._write()
            self._changed.notify_all()
        return self._status()

    def _leave(self, state: str) -> dict[str, Any]:
        """Pause or stop, at the next step."""
        with self._changed:
            memory = self._memory
            if state == STOPPED:
                memory.begin_pass()
                memory.started = 0
                self._pass += 1
                memory.state = state
            elif memory.state == RUNNING:
                memory.state = state
            self._progress.is_cancelled = True
            self._error = ""
            self._write()
            self._changed.notify_all()
        return self._status()

    def _status(self) -> dict[str, Any]:
        with self._changed:
            document = status_of(self._memory, self._progress.total_bytes, self._error)
            if self._memory.state == RUNNING:
                for name, before in zip(_COUNTED, self._base, strict=True):
                    document[name] = before + getattr(self._progress, name)
            return document

    def _write(self) -> None:
        try:
            write_memory(self._work.folder.index, self._memory)
        except OSError as error:  # it goes on from an older place at the next mount
            log.warning("how far the scrub has come cannot be noted: %s", error)

    def _sleep(self, seconds: float) -> None:
        """Ended by pause, stop and the end of the mount."""
        with self._changed:
            self._changed.wait_for(lambda: self._progress.is_cancelled, seconds)

    def _rest(self, seconds: float) -> None:
        """The pace's sleep.  Raises CancelledError as soon as the work is to end."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._sleep(min(left_s, SCRUB_STAND_ASIDE_S))
            self._check()

    def _check(self) -> None:
        """Raises CancelledError when the work is to end: by its user, or for fsck."""
        self._progress.check()
        if self._turn.is_wanted:
            raise CancelledError

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._quit or self._memory.state == RUNNING, IDLE_LOOK_S
                )
                if self._quit:
                    return
                if self._memory.state != RUNNING:
                    continue
                self._progress = Progress(total_bytes=self._progress.total_bytes)
                start, repair = bytes.fromhex(self._memory.position), self._memory.repair
                progress, number = self._progress, self._pass
            with self._turn.take_if_free() as mine:
                if mine:
                    self._go_on(start, progress, number, repair=repair)
            if not mine:
                self._sleep(SCRUB_STAND_ASIDE_S)

    def _go_on(self, start: bytes, progress: Progress, number: int, *, repair: bool) -> None:
        """Works on pass `number` to its end or to an interruption."""
        memory = self._memory
        base = self._base = memory.inodes, memory.chunks, memory.bytes
        written_s = time.monotonic()

        def report(finding: Finding) -> None:
            with self._changed:
                if number == self._pass and memory.add(finding.document()):
                    log.warning("scrub: %s: %s", finding.check, finding.detail)

        def reached(position: bytes) -> None:
            nonlocal written_s
            with self._changed:
                if number != self._pass:
                    raise CancelledError
                memory.position = position.hex()
                for name, before in zip(_COUNTED, base, strict=True):
                    setattr(memory, name, before + getattr(progress, name))
                if time.monotonic() - written_s > SCRUB_WRITE_S:
                    written_s = time.monotonic()
                    self._write()
            self._check()

        try:
            self._work.scrub(
                start,
                repair=repair,
                pace=self._pace,
                progress=progress,
                report=report,
                reached=reached,
            )
        except CancelledError:
            pass
        except OSError as error:
            self._note_error(sentence_of(error))
        except Exception:
            log.exception("the scrub failed")
            self._note_error("an error inside mpifs; its log (STORE/run/mpifs.log) says more")
        else:
            reached(b"")
            self._end_pass(number)
        with self._changed:
            self._write()

    def _end_pass(self, number: int) -> None:
        with self._changed:
            if number == self._pass:
                self._memory.end_pass()
                self._error = ""
                log.info("scrub: a pass is complete: %d findings", self._memory.found)

    def _note_error(self, sentence: str) -> None:
        with self._changed:
            if self._error != sentence:
                log.warning("scrub: will be tried again: %s", sentence)
            self._error = sentence
        self._sleep(SCRUB_AFTER_ERROR_S)


def status_of(memory: ScrubMemory, total_bytes: int, error: str) -> dict[str, Any]:
    """The status document: what `mpifs scrub status --json` prints."""
    return {
        "state": memory.state,
        "rate": memory.rate,
        "repair": memory.repair,
        "started": memory.started,
        "ended": memory.ended,
        "inodes": memory.inodes,
        "chunks": memory.chunks,
        "bytes": memory.bytes,
        "total_bytes": total_bytes,
        "found": memory.found,
        "repaired": memory.repaired,
        "findings": list(memory.findings),
        "error": error,
    }


def status_at_rest(folder: VolumeFolder) -> dict[str, Any]:
    """What a volume that is not mounted remembers."""
    return status_of(read_memory(folder.index), 0, "")
