"""Rank 0's side of `mpifs stage-in` and `stage-out`: runs in threads of their own, polled.

Calls of the control socket, of one client in this order:
  stage.begin   is_in, is_dry: bool, device: int → {}   EBUSY: too many runs
  stage.pairs   pairs: [[source, target]] (bytes) → {}                may be repeated
  stage.start   → {}
  stage.poll    → see StageRun.poll                                   in STAGE_POLL_S at most
  stage.cancel  → {}                                                  the run ends at its next step
A run belongs to the client that began it and is cancelled when that goes away.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from typing import Any

from mpifs.core.checksum import Buffer
from mpifs.core.errors import PosixError, ProtocolError
from mpifs.core.limits import (
    PATH_BYTES_MAX,
    STAGE_PAIRS_MAX,
    STAGE_POLL_S,
    STAGE_RUNS_MAX,
    STAGE_SOURCES_MAX,
    STOP_TIMEOUT_S,
)
from mpifs.core.types import Caller
from mpifs.data.stores import Stores
from mpifs.job.control import Answer, ControlServer, Session
from mpifs.job.control_frames import sentence_of
from mpifs.job.stage_in import StageIn
from mpifs.job.stage_names import Busy
from mpifs.job.stage_out import StageOut
from mpifs.job.stage_run import (
    CANCELLED,
    DONE,
    FAILED,
    CancelledError,
    Pair,
    StageRun,
)
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs

log = logging.getLogger(__name__)


class _Held:
    """A client's run."""

    def __init__(self, run: StageRun, caller: Caller, *, is_in: bool) -> None:
        self.run = run
        self.caller = caller
        self.is_in = is_in
        self.thread: threading.Thread | None = None
        self.is_left = False


class StageService:
    """`settle` waits until the kernel has heard of the names that it was told of.

    `_lock` guards `_held` and `_is_closed`; a client's run is begun and started by its thread.
    """

    def __init__(
        self,
        vfs: Vfs,
        client: Client,
        stores: Stores,
        *,
        settle: Callable[[], object],
        is_read_only: bool,
    ) -> None:
        self._vfs = vfs
        self._client = client
        self._stores = stores
        self._settle = settle
        self._is_read_only = is_read_only
        self._busy: Busy = set()
        self._lock = threading.Lock()
        self._held: dict[Session, _Held] = {}
        self._is_closed = False

    def register(self, control: ControlServer) -> None:
        """Takes the calls `stage.*`."""
        control.register_data("stage.begin", self._begin)
        control.register_data("stage.pairs", self._pairs)
        control.register_data("stage.start", self._start)
        control.register_data("stage.poll", self._poll)
        control.register_data("stage.cancel", self._cancel)

    def close(self) -> None:
        """Ends the runs under way; waits STOP_TIMEOUT_S for their threads."""
        with self._lock:
            self._is_closed = True
            held = list(self._held.values())
        for each in held:
            each.run.cancel("the volume is being stopped")
        for each in held:
            if each.thread is not None:
                each.thread.join(STOP_TIMEOUT_S)
                if each.thread.is_alive():
                    log.warning("staging did not end within %.0f s", STOP_TIMEOUT_S)

    def _begin(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        flags = [args.get(name) for name in ("is_in", "is_dry")]
        device = args.get("device")
        if not all(isinstance(flag, bool) for flag in flags) or not isinstance(device, int):
            raise ProtocolError("stage.begin without its arguments")
        is_in, is_dry = map(bool, flags)
        if is_in and self._is_read_only and not is_dry:
            raise PosixError(errno.EROFS, "the volume is mounted read-only (-o ro)")
        run = StageRun(is_dry=is_dry, device=device)
        with self._lock:
            if self._is_closed:
                raise PosixError(errno.EBUSY, "the volume is being stopped")
            if session in self._held:
                raise PosixError(errno.EINVAL, "this client has begun to stage already")
            if len(self._held) >= STAGE_RUNS_MAX:
                sentence = f"{STAGE_RUNS_MAX} commands stage files of this volume; try again later"
                raise PosixError(errno.EBUSY, sentence)
            self._held[session] = _Held(run, session.caller, is_in=is_in)
        session.on_end(lambda: self._forget(session))
        return Answer({})

    def _forget(self, session: Session) -> None:
        """Its client has gone away.  The run ends by itself; its place is free when it has."""
        with self._lock:
            held = self._held[session]
            held.run.cancel("its client went away")
            held.is_left = True
            if held.thread is None or held.run.is_over:
                del self._held[session]

    def _own(self, session: Session) -> _Held:
        with self._lock:
            held = self._held.get(session)
        if held is None:
            raise PosixError(errno.EINVAL, "this client has not begun to stage")
        return held

    def _pairs(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        held, pairs = self._own(session), args.get("pairs")
        if held.thread is not None or not isinstance(pairs, list) or len(pairs) > STAGE_PAIRS_MAX:
            raise ProtocolError("stage.pairs without a list of pairs, or too late")
        if len(held.run.pairs) + len(pairs) > STAGE_SOURCES_MAX:
            sentence = f"a manifest has at most {STAGE_SOURCES_MAX} lines; cut it into several"
            raise PosixError(errno.E2BIG, sentence)
        held.run.pairs += [Pair(*map(_path, pair)) for pair in pairs if _is_pair(pair)]
        return Answer({})

    def _start(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        held = self._own(session)
        if held.thread is not None:
            raise PosixError(errno.EINVAL, "this client's staging is under way already")
        thread = threading.Thread(
            target=self._work, args=(session, held), name="stage", daemon=True
        )
        held.thread = thread
        thread.start()
        return Answer({})

    def _poll(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        return Answer(self._own(session).run.poll(STAGE_POLL_S))

    def _cancel(self, session: Session, args: dict[str, Any], body: Buffer) -> Answer:
        self._own(session).run.cancel("interrupted")
        return Answer({})

    def _work(self, session: Session, held: _Held) -> None:
        """The thread of a run."""
        run = held.run
        try:
            if held.is_in:
                self._stage_in(held)
            else:
                StageOut(self._vfs, self._client, self._stores, run, held.caller).run_all()
            run.end(DONE)
        except CancelledError as error:
            run.end(CANCELLED, str(error))
        except OSError as error:
            log.warning("staging ended: %s", error)
            run.end(FAILED, sentence_of(error))
        except Exception:
            log.exception("staging failed")
            run.end(FAILED, "an error inside mpifs; its log (STORE/run/mpifs.log) says more")
        with self._lock:
            if held.is_left:
                self._held.pop(session, None)

    def _stage_in(self, held: _Held) -> None:
        work = StageIn(
            self._vfs,
            self._client,
            self._stores,
            held.run,
            held.caller,
            self._busy,
            settle=self._settle,
        )
        committer = self._vfs.committer
        with self._lock:
            committer.settlers = [*committer.settlers, work.settle]
        try:
            work.run_all()
        finally:
            with self._lock:
                committer.settlers = [s for s in committer.settlers if s != work.settle]


def _is_pair(pair: Any) -> bool:
    if not isinstance(pair, list) or [type(part) for part in pair] != [bytes, bytes]:
        raise ProtocolError("stage.pairs with something that is no pair of paths")
    return True


def _path(path: bytes) -> bytes:
    if not path.startswith(b"/") or b"\0" in path:
        raise PosixError(errno.EINVAL, "a path to stage begins with / and holds no NUL")
    if len(path) >= PATH_BYTES_MAX:
        raise PosixError(errno.ENAMETOOLONG)
    return path
