"""Threads that drive a FUSE session: receive a request, serve it, again.

Python threads, not libfuse's: a callback on a foreign thread makes and destroys a Python thread
state each time, which costs more than the callback (2,700 against 11,000 files/s).

Usually one thread alone receives, and the others are parked: the kernel hands requests to waiting
threads in turn, so that with eight of them a program that asks one thing after the other finds each
time another thread, with cold caches, and two that want Python's lock.  Whoever returns from a
request while another one waits, parks.  A request that takes longer than LEADER_LOOK_S therefore
gets a follower: the scout looks after that.  All threads receive while there is bulk data, whose
copies go on beside each other, or while several requests wait for something.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable

from mpifs.core.gaps import Gaps
from mpifs.core.limits import (
    BULK_BYTES,
    FUSE_SPIN_S,
    IDLE_LOOK_S,
    LEADER_LOOK_S,
    LEADER_STALL_S,
    LEADER_WIDE_S,
)
from mpifs.fuse.dispatch import Dispatch
from mpifs.fuse.figures import FIGURES
from mpifs.fuse.latency import CpuLatency
from mpifs.fuse.protocol import Opcode
from mpifs.fuse.request import Request
from mpifs.fuse.session import Session

log = logging.getLogger(__name__)

_AGAIN = frozenset({-errno.EINTR, -errno.EAGAIN, -errno.ENOENT})
_CALM_LOOKS = 50
"""Looks without a request after which the scout sleeps until the next one."""


class Loop:
    """The threads of one session.  The first serves INIT alone; then the others start.

    `on_end` runs once, in the last thread to leave, after the kernel has closed the session.
    `_waiting` (who is in `receive`) and the plain fields are changed by single atomic steps; a
    moment's error in them costs a look of the scout.
    """

    def __init__(
        self,
        session: Session,
        dispatch: Dispatch,
        threads: int,
        on_end: Callable[[], None],
        *,
        writeback: bool,
        latency: CpuLatency | None = None,
    ) -> None:
        self._session = session
        self._dispatch = dispatch
        self._writeback = writeback
        self._latency = latency
        self._count = threads
        self._on_end = on_end
        self._lock = threading.Lock()  # guards _left.
        self._left = threads
        self._serves = threading.Event()
        self.ended = threading.Event()
        self._waiting: set[int] = set()
        self._parked: set[int] = set()
        self._unpark = threading.Semaphore(0)
        self._since = [0.0] * threads  # when the thread got its request; 0: it has none.
        self._wide_until = 0.0
        self._received = 0
        self._is_calm = False
        self._stir = threading.Event()
        self._is_over = False
        self._gaps = Gaps(FUSE_SPIN_S)
        self._can_spin = len(os.sched_getaffinity(0)) > 1

    def start(self, timeout_s: float) -> bool:
        """Returns True once INIT was answered, False if the session ended or after the timeout."""
        self._spawn(0)
        return self._serves.wait(timeout_s) and not self.ended.is_set()

    def _spawn(self, number: int) -> None:
        threading.Thread(
            target=self._run, args=(number,), name=f"fuse-{number}", daemon=True
        ).start()

    def _run(self, number: int) -> None:
        try:
            self._serve(number)
        except BaseException:
            log.exception("a FUSE loop thread failed")
        finally:
            self._is_over = True
            self._unpark.release(self._count)
            self._stir.set()
            with self._lock:
                self._left -= 1
                is_last = self._left == 0
            if is_last:
                self._finish()

    def _serve(self, number: int) -> None:
        request = self._session.request()
        serve = self._dispatch.serve
        counter = FIGURES.counter()
        left, read = counter.left, int(Opcode.READ)
        is_first = number == 0
        device = select.poll()  # of this thread alone: a second thread in its poll would raise.
        device.register(self._session.device, select.POLLIN)
        while True:
            size = self._receive(request, number, device)
            if size > 0 and is_first:
                if not self._session.answer_init(request, writeback=self._writeback):
                    break
                is_first = False
                for other in range(1, self._count):
                    self._spawn(other)
                if self._count > 1 or self._latency is not None:
                    threading.Thread(target=self._scout, name="fuse-scout", daemon=True).start()
                self._serves.set()
            elif size > 0:
                opcode = request.opcode
                if size > BULK_BYTES or (opcode == read and request.read_size >= BULK_BYTES):
                    self._widen()
                serve(request)
                if left[opcode]:  # see figures.Counter.
                    left[opcode] -= 1
                else:
                    counter.timed(opcode, self._since[number], request)
            elif size == 0 or size not in _AGAIN:
                break
        if is_first:
            self._left = 1
        if size < 0 and size not in (-errno.ENODEV, -errno.ECONNABORTED):
            log.error("reading requests failed: %s", os.strerror(-size))

    def _receive(self, request: Request, number: int, device: select.poll) -> int:
        """The next request, once it is this thread's turn; see Request.receive."""
        self._since[number] = 0.0
        while self._waiting and time.monotonic() > self._wide_until and not self._is_over:
            self._parked.add(number)
            self._unpark.acquire(timeout=IDLE_LOOK_S)
            self._parked.discard(number)
        self._waiting.add(number)
        asked_s = time.monotonic()
        if self._can_spin and self._gaps.is_dense and asked_s > self._wide_until:
            self._await_spinning(device, asked_s + FUSE_SPIN_S)
        size = request.receive()
        self._waiting.discard(number)
        self._since[number] = came_s = time.monotonic()
        self._gaps.note(came_s - asked_s)
        self._received += 1
        if self._is_calm:
            self._is_calm = False
            self._stir.set()
        return size

    def _await_spinning(self, device: select.poll, until_s: float) -> None:
        """Looks whether a request has come, again and again, until one has or the time is over."""
        look = device.poll
        while not (look(0) or self._is_over) and time.monotonic() < until_s:
            pass

    def _widen(self) -> None:
        """All threads receive for a while."""
        now = time.monotonic()
        is_narrow = now > self._wide_until
        self._wide_until = now + LEADER_WIDE_S
        if is_narrow:
            self._unpark.release(max(1, len(self._parked)))

    def _scout(self) -> None:
        try:
            self._look_after()
        finally:
            if self._latency is not None:
                self._latency.close()

    def _look_after(self) -> None:
        """Sees to it that somebody receives; sleeps while nothing is asked."""
        looks = 0
        seen = -1
        latency = self._latency
        while not self._is_over:
            if latency is not None:
                latency.note(self._received, time.monotonic())
            if self._waiting:
                looks = looks + 1 if self._received == seen else 0
                seen = self._received
                if looks > _CALM_LOOKS:
                    looks = 0
                    if latency is not None:
                        latency.relax()
                    self._stir.clear()
                    self._is_calm = True
                    self._stir.wait(IDLE_LOOK_S)
            elif self._parked and (now := time.monotonic()) - max(self._since) > LEADER_LOOK_S:
                late = now - LEADER_STALL_S
                if sum(0.0 < since < late for since in self._since) < 2:
                    self._unpark.release()
                else:
                    self._widen()
            time.sleep(LEADER_LOOK_S)

    def _finish(self) -> None:
        try:
            self._on_end()
        except BaseException:
            log.exception("ending the FUSE session failed")
        self.ended.set()
        self._serves.set()
