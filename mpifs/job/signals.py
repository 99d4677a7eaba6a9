"""What TERM, INT and HUP do to a rank: a clean stop, also when the launcher means to kill it;
and to a command: what Ctrl-C does.

Open MPI's mpiexec (and its prted on other hosts) answers SIGTERM and SIGINT by SIGTERM to every
rank and SIGKILL 0.25 s later, hard-coded: no time for a flush.  So a rank that serves answers its
launcher's SIGTERM by stopping the launcher itself (SIGSTOP), ends cleanly, and lets it go on
(SIGCONT).  The signals are blocked in every thread and taken by one thread, because the main
thread may be in C code for long and a Python handler would wait for it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def term_as_interrupt(
    numbers: tuple[signal.Signals, ...] = SIGNALS,
) -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does.  Requires: this is the main thread."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, interrupt)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def without_interrupts() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Signals that would end the command wait until the block ends, or for a block within it that
    begins with what this one gives.

    A process that is started meanwhile has them blocked, too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    @contextlib.contextmanager
    def with_interrupts() -> Iterator[None]:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    try:
        yield with_interrupts
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class SignalGate:
    """Takes the signals of this process from its making on.

    Until arm() they end the process at once, as by default.  `_stop` and `_held` are guarded by
    `_lock`.  Requires: made in the main thread before any other thread is.
    """

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._held = 0
        self._launcher = os.getppid() if "OMPI_COMM_WORLD_SIZE" in os.environ else 0
        threading.Thread(target=self._run, name="signals", daemon=True).start()

    def arm(self, stop: Callable[[], None]) -> None:
        """From now on a signal calls `stop` (quick, may be called again) in the gate's thread."""
        with self._lock:
            self._stop = stop

    def release(self) -> None:
        """Lets the launcher go on if it was stopped.  May be repeated."""
        with self._lock:
            held, self._held = self._held, 0
        if held and os.getppid() == held:
            with contextlib.suppress(OSError):
                os.kill(held, signal.SIGCONT)

    def _run(self) -> None:
        while True:
            info = signal.sigwaitinfo(SIGNALS)
            with self._lock:
                stop = self._stop
                if stop is None:
                    os._exit(128 + info.si_signo)
                if info.si_pid == self._launcher == os.getppid() and self._launcher > 1:
                    with contextlib.suppress(OSError):
                        os.kill(self._launcher, signal.SIGSTOP)
                        self._held = self._launcher
            stop()
