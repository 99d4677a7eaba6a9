"""Rank 0's side of `mpifs fsck`: one run at a time, in a thread of its own, polled by its client.

Calls of the control socket:
  fsck.start  repair, data: bool → {}             EBUSY while another run is under way
  fsck.poll   → see FsckRun.poll                  after FSCK_POLL_S at the latest
  fsck.cancel → {}                                the run ends at its next step
A run belongs to the client that started it and is cancelled when that goes away.  The background
scrub stands aside meanwhile (ChecksTurn).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mpifs.core.checksum import Buffer
from mpifs.core.errors import PosixError, ProtocolError
from mpifs.core.limits import (
    FSCK_CANCEL_S,
    FSCK_FAREWELL_S,
    FSCK_LOOK_S,
    FSCK_POLL_S,
)
from mpifs.job.control import Answer, ControlServer, Session
from mpifs.job.control_frames import sentence_of
from mpifs.job.fsck_run import CANCELLED, DONE, FAILED, FsckRun
from mpifs.repair.findings import CancelledError

log = logging.getLogger(__name__)


class ChecksTurn:
    """Whose turn it is to check: one at a time, and the user who waits goes before the scrub."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._waiting = 0  # guarded by the interpreter: changed by single steps of few threads.

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a turn: the scrub had better stop at its next step."""
        return self._waiting > 0

    @contextlib.contextmanager
    def take(self, timeout_s: float, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Waits for the turn and keeps it for the block.  `check` may end the wait by raising.

        Raises PosixError(EBUSY).
        """
        deadline_s = time.monotonic() + timeout_s
        self._waiting += 1
        try:
            while not self._busy.acquire(timeout=FSCK_LOOK_S):
                check()
                if time.monotonic() > deadline_s:
                    raise PosixError(
                        errno.EBUSY, "another check of this volume is under way; try again"
                    )
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._busy.release()

    @contextlib.contextmanager
    def take_if_free(self) -> Iterator[bool]:
        """The turn for the block if nobody has it or waits for it; whether that is so."""
        has_it = not self._waiting and self._busy.acquire(blocking=False)
        try:
            yield has_it
        finally:
            if has_it:
                self._busy.release()


class FsckService:
    """`check` does the work of a run: it reports to it and raises CancelledError or OSError."""

    def __init__(self, check: Callable[[FsckRun], None], turn: ChecksTurn) -> None:
        self._check = check
        self._turn = turn
        self._lock = threading.Lock()
        self._run: FsckRun | None = None  # guarded by _lock, as are the next two.
        self._owner: Session | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def register(self, control: ControlServer) -> None:
        """Takes the calls `fsck.*`."""
        control.register_data("fsck.start", self._start)
        control.register_data("fsck.poll", self._poll)
        control.register_data("fsck.cancel", self._cancel)

    def close(self) -> None:
        """Ends a run under way: its client hears so, its thread is awaited for FSCK_CANCEL_S."""
        with self._lock:
            self._is_closed = True
            run, thread = self._run, self._thread
        if run is None or thread is None:
            return
        run.cancel("the volume is being stopped")
        thread.join(FSCK_CANCEL_S)
        if run.await_end(0.0):
            run.await_end(FSCK_FAREWELL_S, is_read=True)
        else:
            log.warning("the check under way did not end within %.0f s", FSCK_CANCEL_S)

    def _start(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        repair, data = args.get("repair"), args.get("data")
        if not isinstance(repair, bool) or not isinstance(data, bool):
            raise ProtocolError("fsck.start without its arguments")
        with self._lock:
            if self._is_closed:
                raise PosixError(errno.EBUSY, "the volume is being stopped")
            if self._thread is not None and self._thread.is_alive():
                raise PosixError(
                    errno.EBUSY, "another check of this volume is under way; let it end first"
                )
            run = FsckRun(repair=repair, data=data)
            thread = threading.Thread(target=self._work, args=(run,), name="fsck", daemon=True)
            thread.start()
            self._run, self._owner, self._thread = run, session, thread
        session.on_end(lambda: run.cancel("its client went away"))
        return Answer({})

    def _own_run(self, session: Session) -> FsckRun:
        with self._lock:
            if self._run is None or self._owner is not session:
                raise PosixError(errno.EINVAL, "this client has started no check")
            return self._run

    def _poll(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        return Answer(self._own_run(session).poll(FSCK_POLL_S))

    def _cancel(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        self._own_run(session).cancel("interrupted")
        return Answer({})

    def _work(self, run: FsckRun) -> None:
        """The thread of a run."""
        try:
            with self._turn.take(FSCK_CANCEL_S * 2, run.progress.check):
                self._check(run)
            run.end(DONE)
        except CancelledError:
            run.end(CANCELLED)
        except OSError as error:
            log.warning("the check ended: %s", error)
            run.end(FAILED, sentence_of(error))
        except Exception:
            log.exception("the check failed")
            run.end(FAILED, "an error inside mpifs; its log (STORE/run/mpifs.log) says more")
