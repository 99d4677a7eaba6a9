"""Starts a volume's job and waits until it serves; the other half of supervise.py.

Whatever goes wrong before the volume is served - a reason of the ranks, the deadline, Ctrl-C or
SIGTERM - nothing of the job is left: no process, no mount, no session file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from mpifs.core.errors import InUseError, StartError
from mpifs.core.limits import START_TIMEOUT_S
from mpifs.job import config as job_config
from mpifs.job import leftovers, processes, sessions, stop, supervise
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder
from mpifs.job.mounts import mount_at
from mpifs.job.signals import term_as_interrupt, without_interrupts

SUPERVISOR_PROGRAM = ["-m", "mpifs.job.supervise"]
FATAL_PREFIX = "mpifs: "  # how a rank that gives up begins its last line.
POLL_S = 0.02
END_TIMEOUT_S = supervise.EXIT_GRACE_S + 10.0  # an interrupted start: to the supervisor's end.
_STAT_TIMEOUT_S = 5.0
_LOOK_S = 0.5  # how often the log is searched for a rank's last words while starting.


class InterruptedStartError(StartError):
    """The user ended the start (Ctrl-C or SIGTERM); everything has been cleared away."""


@contextlib.contextmanager
def hold(folder: VolumeFolder) -> Iterator[int]:
    """Takes the volume for a new job, after what a dead one left was cleared away.

    Raises InUseError naming mount point and process when it is served.
    """
    lock = job_state.lock_volume(folder)
    state = job_state.read(folder)
    if lock is None or job_state.process(state, "rank0") is not None:
        if lock is not None:
            os.close(lock)
        raise in_use(folder, state)
    try:
        if state.get("job"):
            for reason in leftovers.clean(folder):
                job_state.log_line(folder, reason)
            if state.get("state") in job_state.LIVE:
                reason = "the job ended without a word; cleared by the next command"
                job_state.change(folder, state["job"], job_state.CRASHED, reason)
        yield lock
    finally:
        os.close(lock)


def in_use(folder: VolumeFolder, state: job_state.State) -> InUseError:
    """The sentence for a volume that is served already."""
    process = job_state.process(state, "rank0") or job_state.process(state, "supervisor")
    who = f"process {process.pid}" if process else "another command"
    mountpoint = state.get("mountpoint")
    if state.get("state") == job_state.RESTARTING:
        return InUseError(
            f"{folder.path} is being restarted after a crash by {who}; "
            f"try again in a moment, or end that with: mpifs umount {mountpoint}"
        )
    if mountpoint:
        return InUseError(
            f"{folder.path} is in use: mounted at {mountpoint} by {who}; "
            f"unmount it with: mpifs umount {mountpoint}"
        )
    return InUseError(f"{folder.path} is in use by {who}; try again when that has ended")


def prepare(config: JobConfig, *, is_own: bool = True) -> JobConfig:
    """Gives a configuration its job id and (`is_own`) session folder and records the new job.

    Requires: the caller holds the volume.
    """
    fields = {name: getattr(config, name) for name in JobConfig.__dataclass_fields__}
    scratch = sessions.make_scratch() if is_own else ""
    try:
        ready = JobConfig(**fields | {"job": uuid.uuid4().hex, "scratch": scratch})
        supervise.rotate_log(ready.folder)
        job_config.write(ready)
        job_state.begin(ready.folder, ready.job, ready.mountpoint, ready.scratch)
    except BaseException:
        if scratch:
            os.rmdir(scratch)
        raise
    return ready


def start(config: JobConfig, last_state: int | None = None) -> subprocess.Popen[bytes]:
    """Starts the job in the background; returns when it serves and, if asked to, the mount answers.

    `last_state`: a descriptor into which the supervisor, whose process is given back, writes the
    job's last state.

    Raises InUseError, StartError with the ranks' reason, InterruptedStartError.
    """
    with term_as_interrupt(), without_interrupts() as with_interrupts:
        return _start(config, with_interrupts, last_state)


def _start(
    config: JobConfig,
    with_interrupts: Callable[[], AbstractContextManager[None]],
    last_state: int | None = None,
) -> subprocess.Popen[bytes]:
    """As start().  Signals are taken as interrupts, and blocked."""
    with hold(config.folder) as lock:
        ready = prepare(config)
        log_start = os.path.getsize(ready.folder.log)
        supervisor = _spawn(ready, lock, [] if last_state is None else [last_state])
        try:
            with with_interrupts():
                _await(ready, supervisor, log_start)
        except BaseException as error:
            _end(ready, supervisor)
            if isinstance(error, KeyboardInterrupt):
                raise InterruptedStartError("interrupted; everything was stopped") from None
            raise
        return supervisor


def run_foreground(config: JobConfig) -> int:
    """The same with the supervisor in this process; returns the exit code when all has ended."""
    with hold(config.folder), without_interrupts():  # until the supervisor takes them
        ready = prepare(config)
        log_start = os.path.getsize(ready.folder.log)
        code = supervise.Supervisor(ready).run()
        state = job_state.read(ready.folder)
        if state.get("state") == job_state.FAILED:
            raise StartError(_reason(ready.folder, state, log_start))
        if state.get("state") == job_state.CRASHED:
            raise StartError(str(state.get("reason")))
        return code


def _spawn(config: JobConfig, lock: int, more: list[int]) -> subprocess.Popen[bytes]:
    # A volume that is mounted by a command of `mpifs run` outlives that command.
    environment = {k: v for k, v in os.environ.items() if k != processes.RUN_VARIABLE}
    with open(config.folder.log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, *SUPERVISOR_PROGRAM, config.volume, *map(str, [lock, *more])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd="/",
            pass_fds=(lock, *more),
            start_new_session=True,
            env={**environment, processes.JOB_VARIABLE: config.job},
        )


def _await(config: JobConfig, supervisor: subprocess.Popen[bytes], log_start: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    next_look, has_seen_error = 0.0, False
    while True:
        has_exited = supervisor.poll() is not None
        state = job_state.read(config.folder)
        name = state.get("state")
        if name == job_state.READY:
            for sentence in state.get("lost") or []:
                print(f"mpifs: warning: {sentence}", file=sys.stderr)
            if config.mountpoint:
                _await_mount(config, deadline)
            return
        if has_exited or name in job_state.ENDED:
            raise StartError(_reason(config.folder, state, log_start))
        if time.monotonic() > next_look:  # a worker that cannot start does not end the others.
            next_look = time.monotonic() + _LOOK_S
            if has_seen_error:
                raise StartError(_reason(config.folder, state, log_start))
            has_seen_error = bool(fatal_words(config.folder, log_start))
        if time.monotonic() > deadline:
            reason = f"not ready within {START_TIMEOUT_S:g} s"
            last = last_words(config.folder, log_start)
            raise StartError(f"{reason}: {last or 'the log says more'} ({config.folder.log})")
        time.sleep(POLL_S)


def _reason(folder: VolumeFolder, state: job_state.State, log_start: int) -> str:
    reason = str(state.get("reason") or "")
    words = last_words(folder, log_start)
    if words and (not reason or reason.endswith("the log says more")):
        reason = words
    return f"{reason or 'the ranks did not start'} (log: {folder.log})"


def _lines(folder: VolumeFolder, start: int) -> list[str]:
    try:
        with open(folder.log, "rb") as file:
            file.seek(start)
            text = file.read(1 << 20).decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if set(line) - set("-=* ") and " launcher: " not in line]


def fatal_words(folder: VolumeFolder, start: int) -> str:
    """What the first rank that gave up since `start` said, or ""; it causes the others' errors."""
    for line in _lines(folder, start):
        if line.startswith(FATAL_PREFIX):
            return line.removeprefix(FATAL_PREFIX)
    return ""


def last_words(folder: VolumeFolder, start: int) -> str:
    """The line of the log since `start` that most likely says what went wrong."""
    lines = _lines(folder, start)
    errors = [line for line in lines if "rror" in line]
    return fatal_words(folder, start) or (errors or lines or [""])[-1]


def _await_mount(config: JobConfig, deadline: float) -> None:
    """Waits until the kernel shows our mount and it answers a stat.

    The stat runs in a thread: were the mount to hang, this process could not even be killed.
    """
    answered = threading.Event()

    def ask() -> None:
        parent = os.stat(os.path.dirname(config.mountpoint)).st_dev
        while not answered.is_set():
            with contextlib.suppress(OSError):
                mount = mount_at(config.mountpoint)
                is_ours = mount is not None and mount.is_ours
                if is_ours and os.stat(config.mountpoint).st_dev != parent:
                    answered.set()
            time.sleep(POLL_S)

    threading.Thread(target=ask, daemon=True).start()
    limit_s = max(_STAT_TIMEOUT_S, deadline - time.monotonic())
    if not answered.wait(limit_s):
        answered.set()
        raise StartError(f"the mount does not answer; its log: {config.folder.log}")


def _end(config: JobConfig, supervisor: subprocess.Popen[bytes]) -> None:
    """Ends a job that did not start: the supervisor does it, and if it cannot, we do.

    Requires: signals are blocked."""
    if supervisor.poll() is None:
        supervisor.send_signal(signal.SIGTERM)
        try:
            supervisor.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait(END_TIMEOUT_S)
    leftovers.clean(config.folder)
    if not os.path.isdir(config.folder.run):
        return  # the volume has gone with its job.
    reason = "interrupted or not ready in time"
    job_state.change(config.folder, config.job, job_state.FAILED, reason)


@contextlib.contextmanager
def serving(folder: VolumeFolder, config: JobConfig) -> Iterator[VolumeFolder]:
    """A volume that answers at its control socket: the running job's, or one made for this.

    `config` is used (without a mount) when nobody serves the volume; that job ends with the block.
    Raises as start().
    """
    state = job_state.read(folder)
    if state.get("state") == job_state.READY and job_state.process(state, "rank0") is not None:
        yield folder
        return
    # No signal may come between the start and the block that ends the job.
    with term_as_interrupt(), without_interrupts() as with_interrupts:
        _start(config, with_interrupts)
        try:
            with with_interrupts():
                yield folder
        finally:
            stop.end(folder)
