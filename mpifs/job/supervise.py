"""The supervisor: starts mpiexec for one job, waits, and leaves nothing behind when it ends.

With `-o restart=N` it starts the job again, up to N times, when that has ended without having been
asked to; between two starts nothing of the first one is left either.

It is no child of the command that started it, has its own session and holds the volume's lock as
long as anything of the job lives.  mpiexec runs in yet another session, because it gives ranks
only 0.25 s between SIGTERM and SIGKILL: signals come here (or to rank 0), and rank 0 flushes.
Standard library only, so that it stays small; it must never import MPI, LMDB or FUSE.

Run as: python -m mpifs.job.supervise STORE LOCK_DESCRIPTOR [LAST_STATE_DESCRIPTOR]
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace

from mpifs import faultpoint
from mpifs.core.errors import MpifsError, StartError
from mpifs.core.limits import (
    FINALIZE_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
)
from mpifs.job import config as job_config
from mpifs.job import hosts, leftovers, mpi_launcher, processes, sessions
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder
from mpifs.job.restart import Restarts, answering, cause_of_end
from mpifs.job.run_guard import Guard
from mpifs.job.signals import SIGNALS

RANK_PROGRAM = ["-m", "mpifs.job.rank"]
LOG_BYTES_MAX = 8 << 20  # the log of the job before is kept once, as mpifs.log.1.
POLL_START_S = 0.05  # while starting: how soon a change of the state is seen.
POLL_S = 2.0  # afterwards; deaths are seen at once through descriptors.
STOP_DEADLINE_S = STOP_TIMEOUT_S + 2 * REQUEST_TIMEOUT_S  # a flush and a commit may take so long.
EXIT_GRACE_S = FINALIZE_TIMEOUT_S + 2.0  # from "stopped" to the end of mpiexec.
DEATH_GRACE_S = 1.0  # rank 0 gone after its work: mpiexec may end by itself so long,
CRASH_GRACE_S = 0.2  # and so long when rank 0 died: its last words may be on their way to the log.
_SERVED = (job_state.READY, job_state.STOPPING, job_state.STOPPED)


class Supervisor:
    """One job's supervisor.  Used by the main thread only."""

    def __init__(self, config: JobConfig, last_state: int = -1) -> None:
        self.config = config
        self._guard = Guard(config, last_state)
        self.folder: VolumeFolder = config.folder
        self._hosts = config.hosts
        self._restarts = Restarts(config.restarts)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._launcher: subprocess.Popen[bytes] | None = None
        self._rank0: tuple[processes.Process, int] | None = None
        self._must_stop = False
        self._was_asked = False
        self._ending_since = 0.0
        self._limit_s = 0.0
        self._log_start = 0

    def run(self) -> int:
        """Starts the job, and again as often as it may; the exit code when nothing is left."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._on_stop_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the starting command had them wait
        signal.signal(signal.SIGCHLD, lambda *_: None)
        job_state.update(self.folder, {"supervisor": list(processes.this_process())})
        while True:
            self._run_once()
            if not self._clear():
                break
            self._pause()
        name = job_state.read(self.folder).get("state")
        job_state.log_line(self.folder, f"ended: {name}")
        self._guard.finish()
        return 0 if name == job_state.STOPPED else 1

    def _run_once(self) -> None:
        """From the start of mpiexec to its end, or to when it has had its time to end."""
        try:
            if not self._must_stop:
                self._restarts.begin()
                self._start()
                self._watch()
        except (MpifsError, OSError) as error:
            self._change(job_state.FAILED, str(error))

    def _on_stop_signal(self, number: int, frame: object) -> None:
        self._must_stop = self._was_asked = True

    def _start(self) -> None:
        if self._restarts.count:
            if self._hosts and not self.config.hosts:
                raise StartError("none of the hosts answers")
            rotate_log(self.folder)
            job_config.write(self.config)
        launcher = mpi_launcher.find(self.config.mpi)
        environment = launcher.environment(dict(os.environ))
        environment[processes.JOB_VARIABLE] = self.config.job
        environment["TMPDIR"] = self.config.scratch
        environment["PYTHONUNBUFFERED"] = "1"
        rank = [sys.executable, *RANK_PROGRAM, self.config.volume]
        export = [processes.JOB_VARIABLE]
        wanted = ("MPI4PY_LIBMPI", "PYTHONPATH", mpi_launcher.MALLOC_VARIABLE)
        export += [name for name in wanted if name in environment]
        command = launcher.command(
            rank, self._ranks(launcher), self._hosts_file(), self.config.launch_agent, export
        )
        job_state.log_line(self.folder, "starting: " + " ".join(command))
        self._log_start = os.path.getsize(self.folder.log)
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
        faultpoint.reach("supervisor.started")
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
            self._note_ending(state)
            if name == job_state.RESTARTING and self._restarts.is_late():
                self._change(job_state.FAILED, f"not ready within {START_TIMEOUT_S:g} s")
                return
            if self._ending_since and time.monotonic() > self._ending_since + self._limit_s:
                return
            is_brief = name in job_state.BEGINNING or self._limit_s > 0
            self._sleep(POLL_START_S if is_brief else POLL_S)

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
            self._change(job_state.FAILED, "stopped while starting")
            self._end_within(0.0)
        elif name == job_state.RESTARTING:
            self._end_within(0.0)

    def _note_ending(self, state: job_state.State) -> None:
        name = state.get("state")
        if name in job_state.ENDED:
            self._end_within(EXIT_GRACE_S)
        elif name == job_state.STOPPING:
            self._end_within(STOP_DEADLINE_S)
        if name in (job_state.READY, job_state.STOPPING):
            if job_state.process(state, "rank0") is None:
                self._end_within(CRASH_GRACE_S)
        elif name in job_state.BEGINNING:
            if state.get("master") and job_state.process(state, "master") is None:
                self._end_within(CRASH_GRACE_S)
        elif self._rank0 is not None and not self._rank0[0].is_alive:
            self._end_within(DEATH_GRACE_S)

    def _change(self, name: str, reason: str) -> bool:
        return job_state.change(self.folder, self.config.job, name, reason)

    def _end_within(self, limit_s: float) -> None:
        """From now at most `limit_s`; a longer limit set before is shortened, never prolonged."""
        now = time.monotonic()
        if not self._ending_since or now + limit_s < self._ending_since + self._limit_s:
            self._ending_since, self._limit_s = now, limit_s

    def _sleep(self, timeout_s: float) -> None:
        watched = [self._wake_read]
        if self._rank0 is not None and self._rank0[1] >= 0 and self._rank0[0].is_alive:
            watched.append(self._rank0[1])
        watched += self._guard.descriptors()
        readable, _, _ = select.select(watched, [], [], timeout_s)
        if self._guard.sees_end(readable):  # nobody is left for whom the job runs.
            self._must_stop = self._was_asked = True
        if self._wake_read in readable:
            os.read(self._wake_read, 4096)

    def _clear(self) -> bool:
        """After the end of mpiexec: takes away what is left and says how the job ended; whether
        it is to be started again."""
        state = job_state.read(self.folder)
        name, reason = state.get("state"), str(state.get("reason") or "")
        has_served = self._rank0 is not None or name in _SERVED
        is_restart = self._restarts.count > 0 and not has_served
        if name in (job_state.READY, job_state.STOPPING):
            reason = self._cause(state)
        elif name == job_state.STARTING or (is_restart and name == job_state.RESTARTING):
            reason = "the ranks ended before the volume was served; the log says more"
        may_restart = not self._was_asked and (name == job_state.READY or is_restart)
        is_again = may_restart and self._restarts.take(has_served)
        scratch = self._announce_restart(reason) if is_again else ""
        self._end_all()
        if is_again and job_state.read(self.folder).get("state") != job_state.STOPPED:
            self.config = replace(self.config, scratch=scratch)
            job_state.restart(self.folder, reason, self._restarts.count, scratch)
            return True
        if is_restart:
            stopped = "the restart was stopped; it was necessary because " + str(state.get("crash"))
            reason = stopped if self._was_asked else self._restarts.sum_up(reason)
            job_state.update(self.folder, {"state": job_state.CRASHED, "reason": reason})
        elif name == job_state.STARTING:
            self._change(job_state.FAILED, reason)
        elif self._change(job_state.CRASHED, self._restarts.sum_up(reason)):
            job_state.log_line(self.folder, "crashed: " + self._restarts.sum_up(reason))
        return False

    def _announce_restart(self, reason: str) -> str:
        """Tells everybody, before the dead mount goes, that the volume comes back; the session
        folder of the next start."""
        scratch = sessions.make_scratch()
        sessions.note_restart(scratch, self.folder.path, self.config.mountpoint)
        count = self._restarts.count
        text = f"{reason}; restart {count} of {self.config.restarts}"
        job_state.log_line(self.folder, f"crashed: {text}")
        fields = {"state": job_state.RESTARTING, "reason": reason, "restarts": count}
        job_state.update(self.folder, fields)
        return scratch

    def _pause(self) -> None:
        """Waits before a restart, as long as there is no signal, and finds out who takes part."""
        deadline = time.monotonic() + self._restarts.wait_s()
        while not self._must_stop and (left := deadline - time.monotonic()) > 0:
            self._sleep(left)
        if not self._hosts or self._must_stop:
            return
        found, silent = answering(self._hosts, self.config.launch_agent, self.config.job)
        if silent:
            names = ", ".join(dict.fromkeys(silent))
            job_state.log_line(self.folder, f"no answer from {names}; starting without")
        self.config = replace(self.config, hosts=found, workers=len(found))

    def _end_all(self) -> None:
        """No process, mount or file of this start is left afterwards, or the log says which."""
        faultpoint.reach("supervisor.clearing")
        for reason in leftovers.clean(self.folder):
            job_state.log_line(self.folder, reason)
        if self._launcher is not None:
            self._launcher.wait()
        if self._rank0 is not None and self._rank0[1] >= 0:
            os.close(self._rank0[1])
        self._launcher = self._rank0 = None
        self._ending_since = self._limit_s = 0.0

    def _cause(self, state: job_state.State) -> str:
        """Why a job that served has ended."""
        said = str(state.get("fault") or "")
        launcher = self._launcher.poll() if self._launcher is not None else None
        is_rank0_gone = job_state.process(state, "rank0") is None
        return said or cause_of_end(
            self.folder, self._log_start, str(state.get("mpi", "")), launcher, is_rank0_gone
        )


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
    inherited = [int(word) for word in sys.argv[2:]]
    for descriptor in inherited:
        os.set_inheritable(descriptor, False)
    code = Supervisor(job_config.read(folder), *inherited[1:]).run()
    sessions.remove_ownerless(folder.path)
    return code


if __name__ == "__main__":
    sys.exit(main())
