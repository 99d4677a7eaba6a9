"""Threads that drive a FUSE session: receive a request, serve it, again.

Python threads, not libfuse's: a callback on a foreign thread makes and destroys a Python thread
state each time, which costs more than the callback (2,700 against 11,000 files/s), and
`threading.local` would not last from one callback to the next.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable

from mpifs.fuse.direct import DirectOperations
from mpifs.fuse.serving import Serving
from mpifs.fuse.session import Session

log = logging.getLogger(__name__)

_AGAIN = frozenset({-errno.EINTR, -errno.EAGAIN, -errno.ENOENT})


class Loop:
    """The threads of one session.  The first serves INIT alone; then the others start.

    `on_end` runs once, in the last thread to leave, after the kernel has closed the session.
    """

    def __init__(
        self,
        session: Session,
        serving: Serving,
        direct: DirectOperations,
        threads: int,
        on_end: Callable[[], None],
    ) -> None:
        self._session = session
        self._serving = serving
        self._direct = direct
        self._count = threads
        self._on_end = on_end
        self._lock = threading.Lock()  # guards _left.
        self._left = threads
        self._serves = threading.Event()
        self.ended = threading.Event()

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
            with self._lock:
                self._left -= 1
                is_last = self._left == 0
            if is_last:
                self._finish()

    def _serve(self, number: int) -> None:
        request = self._session.request()
        self._serving.request = request
        receive, serve, process = request.receive, self._direct.serve, request.process
        is_first = number == 0
        while True:
            size = receive()
            if size > 0 and is_first:
                self._session.answer_init(request)
                is_first = False
                for other in range(1, self._count):
                    self._spawn(other)
                self._serves.set()
            elif size > 0:
                if not serve(request):
                    process()
            elif size == 0 or size not in _AGAIN:
                break
        if is_first:
            self._left = 1
        if size < 0 and size not in (-errno.ENODEV, -errno.ECONNABORTED):
            log.error("reading requests failed: %s", os.strerror(-size))

    def _finish(self) -> None:
        self._serving.request = None
        try:
            self._on_end()
        except BaseException:
            log.exception("ending the FUSE session failed")
        self.ended.set()
        self._serves.set()
