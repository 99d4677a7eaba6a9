"""`mpifs run` in a world that a launcher gave: rank 0 serves, and a process beside it, the runner,
runs the command.

The runner is started before MPI is, because a process with MPI must not fork.  It gets its order
when the mount answers, and answers with the exit code; either side takes the end of the connection
for the other's death and clears up.  No session of the launcher's: what ends the ranks group by
group leaves the runner alive until it has done so.

    rank 0 ──job, mount point──▶ runner ──starts──▶ command
           ◀─────exit code──────
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mpifs.core.limits import RUN_GRACE_S, RUN_LEFT_GRACE_S, RUN_LOOK_S, START_TIMEOUT_S
from mpifs.job import run_guard, run_scratch
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder
from mpifs.job.processes import Process, start_of

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
_FRAME_BYTES_MAX = 1 << 16
_POLL_S = 0.02
LOST = 1  # the exit code when the volume or the runner was lost.


class Escort:
    """The runner as a rank sees it.  `_stop` is set once by begin(); ask_to_stop() is any thread's,
    all else the main thread's and the one that begin() starts."""

    def __init__(self, volume: str, words: Sequence[str], *, scratch: bool) -> None:
        self._volume = VolumeFolder(volume)
        self._scratch = scratch
        self._stores = set(_stores_of(volume))
        self._code: int | None = None
        self._config: JobConfig | None = None
        self._stop: Callable[[], None] | None = None
        self._runner: subprocess.Popen[bytes] | None = None
        if _rank() not in ("", "0"):
            return
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._runner = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mpifs.job.run_world"),
                    *(str(theirs.fileno()), volume, *words),
                ],
                pass_fds=(theirs.fileno(),),
                start_new_session=not os.isatty(0),
            )

    @property
    def owner(self) -> list[int]:
        """The runner, for JobConfig.owner."""
        assert self._runner is not None
        return [self._runner.pid, start_of(self._runner.pid)]

    def begin(self, config: JobConfig, stop: Callable[[], None]) -> Callable[[], None]:
        """The command runs from when the volume serves; its end calls `stop`.  Gives what a signal
        is to call."""
        self._config, self._stop = config, stop
        threading.Thread(target=self._follow, name="escort", daemon=True).start()
        return self._ask_to_stop

    def end(self) -> int:
        """After the volume was served: ends the command if it runs; the exit code."""
        runner, config = self._runner, self._config
        assert runner is not None
        assert config is not None
        if self._code is None:
            print("mpifs: the volume was unmounted while the command ran", file=sys.stderr)
            self._socket.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                self._socket.settimeout(RUN_GRACE_S + 3 * RUN_LEFT_GRACE_S)
                self._socket.recv(_FRAME_BYTES_MAX)
        run_scratch.remove(config)
        return LOST if self._code is None else self._code

    def end_worker(self) -> None:
        """After a worker has served: removes what it made on its host, if it is to go."""
        if self._scratch:
            for path in set(_stores_of(self._volume.path)) - self._stores:
                shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rmdir(self._volume.path)

    def _follow(self) -> None:
        """Hands the order over when the volume serves; waits for the exit code."""
        assert self._config is not None
        assert self._stop is not None
        folder = self._volume
        while job_state.read(folder).get("state") != job_state.READY:
            time.sleep(_POLL_S)  # a start that fails ends this process.
        order = {
            "volume": folder.path,
            "job": self._config.job,
            "mountpoint": self._config.mountpoint,
            "removal": self._config.removal,
        }
        with contextlib.suppress(OSError, ValueError, KeyError):
            self._socket.sendall(json.dumps(order).encode())
            self._code = int(json.loads(self._socket.recv(_FRAME_BYTES_MAX))["code"])
        if self._code is None:  # it was killed.
            self._code = LOST
            run_guard.end_command(self._config.job)
            print("mpifs: the process that ran the command was killed", file=sys.stderr)
        self._stop()

    def _ask_to_stop(self) -> None:
        """A signal: the command gets it first, and its end stops the volume."""
        assert self._runner is not None
        assert self._stop is not None
        if job_state.read(self._volume).get("state") == job_state.READY:
            with contextlib.suppress(OSError):
                self._runner.send_signal(signal.SIGTERM)
        else:
            self._code = 128 + signal.SIGTERM
            self._stop()


def _rank() -> str:
    """This process's rank, as launchers tell it before MPI does; "" when this one does not."""
    return next((os.environ[name] for name in _RANK_VARIABLES if name in os.environ), "")


def _stores_of(volume: str) -> list[str]:
    with contextlib.suppress(OSError):
        return [os.path.join(volume, n) for n in os.listdir(volume) if n.startswith("worker-")]
    return []


class Orders:
    """The runner's side of the connection."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self.rank0 = Process(os.getppid(), start_of(os.getppid()))

    @property
    def is_of_rank0(self) -> bool:
        """Whether the rank beside it was rank 0, or cannot be told."""
        return _rank() in ("", "0")

    def take(self) -> dict[str, Any] | None:
        """The order, or None when this rank is not rank 0 or was never to serve."""
        self._socket.settimeout(4 * START_TIMEOUT_S)
        try:
            data = self._socket.recv(_FRAME_BYTES_MAX)
            return dict(json.loads(data)) if data else None
        except (OSError, ValueError):
            return None

    def are_over(self) -> bool:
        """Whether rank 0 has ended, or the volume has."""
        readable, _, _ = select.select([self._socket], [], [], 0)
        return bool(readable)

    def report(self, code: int) -> None:
        """The command's exit code, to rank 0 if it lives."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps({"code": code}).encode())

    def await_end(self, timeout_s: float) -> None:
        """Until rank 0 has ended."""
        deadline = time.monotonic() + timeout_s
        while self.rank0.is_alive and time.monotonic() < deadline:
            time.sleep(RUN_LOOK_S / 10)
