"""The command of `mpifs run`: started with the terminal passed through, waited for, ended whole.

It is in the process group of `mpifs run`, so the terminal is its own: Ctrl-C, Ctrl-\\ and Ctrl-Z
reach it from the kernel, and mpifs leaves the answer to it.  A signal that somebody sends to
mpifs is passed on; after SIGTERM and SIGHUP the command has RUN_GRACE_S.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpifs.core.limits import RUN_GRACE_S, RUN_LOOK_S
from mpifs.job import processes, run_guard
from mpifs.job.mpi_launcher import without_rank
from mpifs.job.processes import Process

PASSED_ON = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_TAKEN = (*PASSED_ON, signal.SIGCHLD)
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_SI_KERNEL = 0x80  # si_code of what the terminal sends: to the whole group, so not passed on.
_PR_SET_CHILD_SUBREAPER = 36
NOT_FOUND = 127  # as a shell says it,
NOT_EXECUTABLE = 126  # and this too.


def is_missing(word: str) -> bool:
    """Whether a command without a slash is nowhere in PATH.  One with a slash may lie in the
    volume that is not mounted yet."""
    return "/" not in word and shutil.which(word) is None


class RunCommand:
    """One command, from its start to the end of its last process.  The main thread's.

    `job` marks its processes, `more` is for its environment; `is_in_world`: this process is beside
    a launcher's rank 0.  Between start() and close() the signals are blocked in this process,
    and processes that the command leaves behind become its children.
    """

    def __init__(
        self, words: Sequence[str], job: str, more: dict[str, str], *, is_in_world: bool = False
    ) -> None:
        self._words = list(words)
        self._job = job
        # A command of rank 0's that uses MPI, as `mpifs mount` does, would take itself for rank 0.
        self._environment = without_rank(os.environ) if is_in_world else dict(os.environ)
        self._environment |= {processes.RUN_VARIABLE: job, **more}
        self._environment.pop(processes.JOB_VARIABLE, None)
        self._pid = 0
        self._status: int | None = None
        self._kill_at = 0.0
        self._terminal = _terminal_settings()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(self) -> int:
        """Starts it; 0, or the exit code with which a shell would say that it cannot be started."""
        try:
            self._pid = os.posix_spawnp(
                self._words[0],
                self._words,
                self._environment,
                setsigmask=self._mask,
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores these.
            )
        except OSError as error:
            is_missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            code = NOT_FOUND if is_missing else NOT_EXECUTABLE
            print(f"mpifs: {self._words[0]}: {error.strerror}", file=sys.stderr)
            return code
        return 0

    def wait(self, must_end: Callable[[], bool]) -> int:
        """Waits for its end; the exit code as a shell gives it.

        `must_end` is asked after each signal, the death of a child too; when it says so, the
        command is ended.
        """
        while True:
            info = signal.sigtimedwait(_TAKEN, RUN_LOOK_S)
            self._reap()
            if self._status is not None:
                return self._code()
            if info is not None and info.si_signo != signal.SIGCHLD:
                self._pass_on(info)
            if not self._kill_at and must_end():
                self._end_soon(signal.SIGTERM)
            if self._kill_at and time.monotonic() > self._kill_at:
                self._send(signal.SIGKILL)

    def close(self) -> list[str]:
        """Ends what the command has left running, and names it; the terminal is as it was."""
        left = run_guard.end_command(self._job, lambda: _descendants(os.getpid()))
        self._reap()
        if self._status is not None and os.WIFSIGNALED(self._status):
            self._restore_terminal()
        return left

    def _pass_on(self, info: signal.struct_siginfo) -> None:
        if info.si_signo in _ENDING:
            self._end_soon(info.si_signo)
        elif info.si_code != _SI_KERNEL:
            self._send(info.si_signo)

    def _end_soon(self, number: int) -> None:
        self._kill_at = self._kill_at or time.monotonic() + RUN_GRACE_S
        self._send(number)
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self._pid, number)  # not reaped yet, so the pid is still its own.

    def _reap(self) -> None:
        """Takes the ends of all children; what the command has left behind are such, too."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self._pid:
                    self._status = status

    def _code(self) -> int:
        assert self._status is not None
        if os.WIFSIGNALED(self._status):
            return 128 + os.WTERMSIG(self._status)
        return os.WEXITSTATUS(self._status)

    def _restore_terminal(self) -> None:
        """A full-screen program that was killed leaves the terminal raw."""
        if self._terminal is None:
            return
        with contextlib.suppress(termios.error, OSError), _without(signal.SIGTTOU):
            termios.tcsetattr(0, termios.TCSADRAIN, self._terminal)


def _terminal_settings() -> list[Any] | None:
    try:
        return termios.tcgetattr(0)
    except (termios.error, OSError):
        return None


@contextlib.contextmanager
def _without(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _descendants(root: int) -> list[Process]:
    """Children of `root` and theirs."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                parents[int(entry)] = int(file.read().rpartition(b") ")[2].split()[1])
    found: set[int] = set()
    fresh = {root}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh} - found
        found |= fresh
    pairs = [Process(pid, processes.start_of(pid)) for pid in sorted(found)]
    return [process for process in pairs if process.start]
