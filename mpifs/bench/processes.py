"""The processes that a run starts, and how they end: drivers, the null mount, the MPI world.

All carry the run's mark in their environment and lead sessions of their own: Ctrl-C reaches the
command alone, which then ends them in order, and finds whatever did not end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
import uuid
from types import TracebackType
from typing import IO, Any

from mpifs.bench.workloads import Spell
from mpifs.core.errors import MpifsError, StartError
from mpifs.core.limits import BENCH_END_S, BENCH_START_S, BENCH_WORK_S
from mpifs.job import mpi_launcher, processes, sessions
from mpifs.job.mounts import clear_dead

START_AHEAD_S = 0.01
"""Drivers that work together are told a moment so far ahead: each has heard of it by then."""


class BenchError(MpifsError):
    """A workload failed: the run ends with its sentence."""


class Mark:
    """The name of a run, in the environment of everything it starts."""

    def __init__(self) -> None:
        self.name = "bench-" + uuid.uuid4().hex

    def __enter__(self) -> Mark:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        processes.kill(processes.marked_with(self.name))

    def start(self, words: list[str], log: IO[bytes] | int, **more: Any) -> subprocess.Popen[bytes]:
        """A command with the mark, in a session of its own; its input is a pipe."""
        environment = {**more.pop("env", os.environ), processes.JOB_VARIABLE: self.name}
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=environment,
            **more,
        )


def python(*words: str) -> list[str]:
    """The command that runs a module of mpifs."""
    return [sys.executable, "-m", *words]


class Driver:
    """One driver process.  Used by one thread."""

    def __init__(self, mark: Mark, log: IO[bytes]) -> None:
        self._process = mark.start(
            python("mpifs.bench.driver"), log, stdout=subprocess.PIPE, bufsize=0
        )

    def ask(self, work: str, **words: Any) -> None:
        """Gives it a workload.  Raises BenchError."""
        self._write(json.dumps({"work": work, **words}))

    def hear(self) -> Spell | None:
        """Its answer; None when it is prepared and waits for `begin`.  Raises BenchError."""
        assert self._process.stdout is not None
        line = _line_of(self._process.stdout, BENCH_WORK_S)
        if not line:
            raise BenchError("a process of the benchmark does not answer or has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(answer["error"])
        return None if "ready" in answer else Spell(**answer)

    def begin(self, at_s: float) -> None:
        """Tells it when to begin."""
        self._write(repr(at_s))

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError:
            raise BenchError("a process of the benchmark has ended; is the memory full?") from None

    def end(self) -> None:
        """Ends it, whatever it does."""
        _end(self._process)


class Drivers:
    """As many drivers as are wanted at once; made when they are."""

    def __init__(self, mark: Mark, log: IO[bytes]) -> None:
        self._mark = mark
        self._log = log
        self._drivers: list[Driver] = []

    def run(self, works: list[tuple[str, dict[str, Any]]]) -> list[Spell]:
        """Carries out several workloads at once, one per driver; timed ones begin when all are
        prepared.  Raises BenchError, after which only `close` may be called."""
        while len(self._drivers) < len(works):
            self._drivers.append(Driver(self._mark, self._log))
        chosen = self._drivers[: len(works)]
        for driver, (work, words) in zip(chosen, works, strict=True):
            driver.ask(work, **words)
        found = [driver.hear() for driver in chosen]
        at_s = time.monotonic() + START_AHEAD_S
        for driver, spell in zip(chosen, found, strict=True):
            if spell is None:
                driver.begin(at_s)
        spells = [spell or driver.hear() for driver, spell in zip(chosen, found, strict=True)]
        return [spell for spell in spells if spell is not None]

    def close(self) -> None:
        """Ends them all."""
        for driver in self._drivers:
            driver.end()


class NullMount:
    """The null file system, mounted on `mountpoint` by a process of its own."""

    def __init__(self, mark: Mark, log: IO[bytes], mountpoint: str, options: list[str]) -> None:
        self._mountpoint = mountpoint
        words = python("mpifs.bench.null_mount", mountpoint, *options)
        self._process = mark.start(words, log, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdout is not None
        said = _line_of(self._process.stdout, BENCH_START_S).decode("utf-8", "replace").strip()
        if said != "ready":
            self.close()
            why = said.removeprefix("error ") or "it did not start"
            raise StartError(f"the null file system cannot be mounted: {why}")

    @property
    def pid(self) -> int:
        """Of the process that serves it."""
        return self._process.pid

    def close(self) -> None:
        """Unmounts it."""
        _end(self._process)
        clear_dead(self._mountpoint)


class MpiWorld:
    """As many ranks as the volume has, in a world of their own.  Used by one thread."""

    def __init__(self, mark: Mark, log: IO[bytes], workers: int, wanted: str) -> None:
        self._mark = mark
        self.launcher = mpi_launcher.find(wanted)
        self._scratch = sessions.make_scratch()
        path = os.path.join(self._scratch, "bench.sock")
        environment = self.launcher.environment(dict(os.environ)) | {"TMPDIR": self._scratch}
        words = self.launcher.command(python("mpifs.bench.mpi_rank", path), workers + 1, "", "", [])
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with listener:
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(BENCH_START_S)
            self._process = mark.start(words, log, stdout=log, env=environment)
            try:
                self._connection, _ = listener.accept()
            except OSError:
                self._finish()
                why = _last_line(log)
                raise StartError(f"the ranks that measure MPI did not start{why}") from None
        self._connection.settimeout(BENCH_WORK_S)
        self._lines = self._connection.makefile("rw", encoding="ascii")

    def run(self, work: str, size: int, count: int) -> Spell:
        """`put`, `get` or `echo`; see mpi_rank.  Raises BenchError."""
        try:
            self._lines.write(json.dumps({"work": work, "size": size, "count": count}) + "\n")
            self._lines.flush()
            return Spell(**json.loads(self._lines.readline()))
        except (OSError, ValueError):
            raise BenchError("the ranks that measure MPI have ended") from None

    def close(self) -> None:
        """Sends the ranks home and waits until they have gone."""
        with contextlib.suppress(OSError):  # what they did not take any more is still buffered.
            self._lines.close()
        self._connection.close()
        self._finish()

    def _finish(self) -> None:
        """Open MPI leaves its files in /dev/shm when ranks are killed."""
        shared = processes.shared_memory_of(processes.marked_with(self._mark.name))
        _end(self._process)
        for path, number in shared:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == number:
                    os.unlink(path)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _line_of(pipe: IO[bytes], timeout_s: float) -> bytes:
    """A whole line of an unbuffered pipe; b"" at its end or after the time."""
    line, deadline = b"", time.monotonic() + timeout_s
    while not line.endswith(b"\n"):
        ready, _, _ = select.select((pipe,), (), (), max(0.0, deadline - time.monotonic()))
        piece = os.read(pipe.fileno(), 65536) if ready else b""
        if not piece:
            return b""
        line += piece
    return line


def _last_line(log: IO[bytes]) -> str:
    """What was said last, behind a colon; "" if nothing was."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    said = [line for line in lines if set(line) - set("-=* ")]
    return f": {said[-1]}" if said else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Closes its input, which ends it; kills it if it does not."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(BENCH_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(BENCH_END_S)
