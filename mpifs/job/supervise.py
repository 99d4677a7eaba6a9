"""The supervisor: starts mpiexec for one job, waits, and leaves nothing behind when it ends.

It is no child of the command that started it, has its own session and holds the volume's lock as
long as anything of the job lives.  mpiexec runs in yet another session, because it gives ranks
only 0.25 s between SIGTERM and SIGKILL: signals come here (or to rank 0), and rank 0 flushes.
Standard library only, so that it stays small; it must never import MPI, LMDB or FUSE.

Run as: python -m mpifs.job.supervise STORE LOCK_DESCRIPTOR
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

from mpifs.core.errors import MpifsError
from mpifs.core.limits import FINALIZE_TIMEOUT_S, REQUEST_TIMEOUT_S, STOP_TIMEOUT_S
from mpifs.job import config as job_config
from mpifs.job import hosts, leftovers, mpi_launcher, processes
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder

RANK_PROGRAM = ["-m", "mpifs.job.rank"]
LOG_BYTES_MAX = 8 << 20  # the log of the job before is kept once, as mpifs.log.1.
POLL_START_S = 0.05  # while starting: how soon a change of the state is seen.
POLL_S = 2.0  # afterwards; deaths are seen at once through descriptors.
STOP_DEADLINE_S = STOP_TIMEOUT_S + 2 * REQUEST_TIMEOUT_S  # a flush and a commit may take so long.
EXIT_GRACE_S = FINALIZE_TIMEOUT_S + 2.0  # from "stopped" to the end of mpiexec.
DEATH_GRACE_S = 1.0  # rank 0 gone: mpiexec may end by itself so long.


class Supervisor:
    """One job's supervisor.  Used by the main thread only."""

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        self.folder: VolumeFolder = config.folder
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._launcher: subprocess.Popen[bytes] | None = None
        self._rank0: tuple[processes.Process, int] | None = None
        self._must_stop = False
        self._ending_since = 0.0
        self._limit_s = 0.0

    def run(self) -> int:
        """Starts the job and returns its exit code when nothing of it is left."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        job_state.update(self.folder, {"supervisor": list(processes.this_process())})
        try:
            if not self._must_stop:
                self._start()
                self._watch()
        except (MpifsError, OSError) as error:
            job_state.change(self.folder, self.config.job, job_state.FAILED, str(error))
        return self._finish()

    def _on_stop_signal(self, number: int, frame: object) -> None:
        self._must_stop = True

    def _start(self) -> None:
        launcher = mpi_launcher.find(self.config.mpi)
        environment = launcher.environment(dict(os.environ))
        environment[processes.JOB_VARIABLE] = self.config.job
        environment["TMPDIR"] = self.config.scratch
        environment["PYTHONUNBUFFERED"] = "1"
        rank = [sys.executable, *RANK_PROGRAM, self.config.volume]
        export = [processes.JOB_VARIABLE]
        export += [name for name in ("MPI4PY_LIBMPI", "PYTHONPATH") if name in environment]
        command = launcher.command(
            rank, self._ranks(launcher), self._hosts_file(), self.config.launch_agent, export
        )
        job_state.log_line(self.folder, "starting: " + " ".join(command))
        with open(self.folder.log, "ab") as log:
            self._launcher = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        pid = self._launcher.pid
        found = processes.Process(pid, processes.start_of(pid))
        job_state.update(self.folder, {"launcher": list(found), "mpi": launcher.kind})

    def _ranks(self, launcher: mpi_launcher.MpiLauncher) -> int:
        """Rank 0, the workers, and on hosts with one worker a keeper."""
        more = len(hosts.keepers(self.config.hosts)) if launcher.has_ulfm else 0
        return 1 + self.config.workers + more

    def _hosts_file(self) -> str:
        """Writes the hosts of all ranks, one a line, rank 0 on this host; "" when all are here."""
        if not self.config.hosts:
            return ""
        path = os.path.join(self.config.scratch, "hosts")
        workers = self.config.hosts
        lines = [os.uname().nodename, *workers, *hosts.keepers(workers)]
        with open(path, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        return path

    def _watch(self) -> None:
        """Returns when the job has ended, or has had its time to."""
        assert self._launcher is not None
        while self._launcher.poll() is None:
            state = job_state.read(self.folder)
            name = str(state.get("state", ""))
            self._follow_rank0(state)
            if self._must_stop:
                self._must_stop = False
                self._ask_to_stop(name)
            self._note_ending(name)
            if self._ending_since and time.monotonic() > self._ending_since + self._limit_s:
                return
            self._sleep(POLL_START_S if name == job_state.STARTING or self._limit_s else POLL_S)

    def _follow_rank0(self, state: job_state.State) -> None:
        """Once rank 0 serves: watches its process, and notes the job's shared memory."""
        found = job_state.process(state, "rank0")
        if self._rank0 is None and found is not None and state.get("state") == job_state.READY:
            leftovers.remember_shared_memory(self.folder, state)
            try:
                self._rank0 = (found, os.pidfd_open(found.pid))
            except OSError:
                self._rank0 = (found, -1)

    def _ask_to_stop(self, name: str) -> None:
        """Rank 0 stops on SIGTERM as on the command umount; before it serves, nothing is lost."""
        if self._rank0 is not None and processes.send(self._rank0[0], signal.SIGTERM):
            self._end_within(STOP_DEADLINE_S)
        elif name == job_state.STARTING:
            job_state.change(
                self.folder, self.config.job, job_state.FAILED, "stopped while starting"
            )
            self._end_within(0.0)

    def _note_ending(self, name: str) -> None:
        if name in job_state.ENDED:
            self._end_within(EXIT_GRACE_S)
        elif name == job_state.STOPPING:
            self._end_within(STOP_DEADLINE_S)
        if self._rank0 is not None and not self._rank0[0].is_alive:
            self._end_within(DEATH_GRACE_S)

    def _end_within(self, limit_s: float) -> None:
        """From now at most `limit_s`; a longer limit set before is shortened, never prolonged."""
        now = time.monotonic()
        if not self._ending_since or now + limit_s < self._ending_since + self._limit_s:
            self._ending_since, self._limit_s = now, limit_s

    def _sleep(self, timeout_s: float) -> None:
        watched = [self._wake_read]
        if self._rank0 is not None and self._rank0[1] >= 0 and self._rank0[0].is_alive:
            watched.append(self._rank0[1])
        readable, _, _ = select.select(watched, [], [], timeout_s)
        if self._wake_read in readable:
            os.read(self._wake_read, 4096)

    def _finish(self) -> int:
        state = job_state.read(self.folder)
        name = state.get("state")
        if name == job_state.STARTING:
            reason = "the ranks ended before the volume was served; the log says more"
            job_state.change(self.folder, self.config.job, job_state.FAILED, reason)
        for reason in leftovers.clean(self.folder):
            job_state.log_line(self.folder, reason)
        if self._launcher is not None:
            self._launcher.wait()
        if name in (job_state.READY, job_state.STOPPING):
            reason = "rank 0 ended without a word; what was closed before it is safe"
            job_state.change(self.folder, self.config.job, job_state.CRASHED, reason)
            job_state.log_line(self.folder, "crashed: " + reason)
        name = job_state.read(self.folder).get("state")
        job_state.log_line(self.folder, f"ended: {name}")
        return 0 if name == job_state.STOPPED else 1


def rotate_log(folder: VolumeFolder) -> None:
    """Keeps the volume's log bounded: a long one is put aside before a job starts."""
    try:
        if os.path.getsize(folder.log) > LOG_BYTES_MAX:
            os.replace(folder.log, folder.log + ".1")
    except FileNotFoundError:
        os.close(os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def main() -> int:
    """Entry of the background process; the lock's descriptor stays open until it ends."""
    folder = VolumeFolder(sys.argv[1])
    os.set_inheritable(int(sys.argv[2]), False)
    return Supervisor(job_config.read(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
