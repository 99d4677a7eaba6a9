"""One rank of a job: joins the others, is master or worker, and ends for certain.

Run by mpiexec as: python -m mpifs.job.rank VOLUME.  Under a launcher of the user's own,
`mpifs mount` calls run_rank itself.  MPI_Finalize can hang after a death, so a watchdog ends the
process in any case; nothing runs after the rank has said how it ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from mpifs import faultpoint
from mpifs.core.limits import FINALIZE_TIMEOUT_S, RUN_LOOK_S
from mpifs.fuse.process import limit_heaps
from mpifs.job import config as job_config
from mpifs.job import launch, processes
from mpifs.job import state as job_state
from mpifs.job.config import JobConfig
from mpifs.job.folder import VolumeFolder
from mpifs.job.signals import SignalGate
from mpifs.transport.endpoint import Endpoint

if TYPE_CHECKING:
    from mpifs.job.run_escort import Escort

log = logging.getLogger(__name__)


def run_rank(
    volume: str,
    gate: SignalGate,
    config_of: Callable[[int], JobConfig],
    is_own: bool,
    replaced: tuple[int, int] | None = None,
    escort: Escort | None = None,
) -> NoReturn:
    """Runs this process as a rank of the MPI world it was started in, and ends it.

    `replaced` (rank, size): it takes the place of a worker that died (transport.mpi.connect).
    `config_of` (given the number of workers) is called in rank 0 alone.  `is_own` says that mpifs
    started the launcher; else messages go to the user's terminal.  `escort`: that of `mpifs run`.
    """
    code = 1
    endpoint: Endpoint | None = None
    try:
        from mpifs.transport import mpi

        limit_heaps()
        endpoint = mpi.connect(replaced)
        _set_up_log(endpoint.rank, verbose=is_own)
        code = _serve(volume, endpoint, gate, config_of, escort)
    except OSError as error:
        _give_up(f"{error}")
    except Exception:  # noqa: BLE001 - the last stop: say what it was, then end.
        traceback.print_exc()
        _give_up("an error inside mpifs; the lines above say where")
    _finish(endpoint, gate, code, is_told=escort is not None)


def _serve(
    volume: str,
    endpoint: Endpoint,
    gate: SignalGate,
    config_of: Callable[[int], JobConfig],
    escort: Escort | None,
) -> int:
    if endpoint.size < 2:
        _give_up(
            "this MPI job has one rank, mpifs needs a master and at least one worker; "
            "start it with: mpiexec -n 5 mpifs mount STORE MNT"
        )
        return 2
    if endpoint.rank == 0:
        from mpifs.job import master

        return master.serve(config_of, endpoint, gate, escort)
    from mpifs.job import worker

    try:
        return worker.serve(volume, endpoint, gate)
    finally:
        if escort is not None:
            escort.end_worker()


def _set_up_log(rank: int, *, verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format=f"%(asctime)s rank {rank}: %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    faulthandler.register(signal.SIGUSR2, all_threads=True)


def _give_up(sentence: str) -> None:
    print(launch.FATAL_PREFIX + sentence.replace("\n", " "), file=sys.stderr, flush=True)


def _finish(endpoint: Endpoint | None, gate: SignalGate, code: int, *, is_told: bool) -> NoReturn:
    """Ends MPI if that goes, and the process in any case.  `is_told`: rank 0's code is the
    launcher's to hand on.

    Rank 0 does so after a failure, too: the workers have been sent home and wait in MPI_Finalize
    for it; without it a refused mount takes 9 s instead of 3.
    """
    gate.release()
    # Not a thread: MPI_Finalize keeps the interpreter's lock while it hangs after a death.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, FINALIZE_TIMEOUT_S)
    if endpoint is not None and (code == 0 or endpoint.rank == 0):
        try:
            if is_told and code and endpoint.rank == 0:
                _tell_launcher(code)
            endpoint.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the work is done.
            log.warning("ending MPI: %s", error)
    else:
        # Open MPI does so in MPI_Finalize only; the files of ranks that live on are theirs.
        _unlink_memory("sm_segment.", "." + os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "none"))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _unlink_memory(begin: str = "", end: str = "") -> None:
    """Takes away what this process has mapped in /dev/shm, of names with this beginning and end."""
    for path, _ in processes.shared_memory_of([processes.this_process()]):
        if os.path.basename(path).startswith(begin) and path.endswith(end):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _tell_launcher(code: int) -> None:
    """Ends the world with an exit code, where it would be lost otherwise."""
    from mpifs.transport import mpi

    if not mpi.loses_exit_codes():
        return
    time.sleep(RUN_LOOK_S)  # the workers are at their end.
    _unlink_memory()  # MPICH does so in MPI_Finalize only.
    mpi.abort(code)


def announce(folder: VolumeFolder, job: str) -> None:
    """Notes who rank 0 is, so that its death is seen also before it serves, and what it has mapped:
    a start that fails must not leave that in /dev/shm."""
    mine = processes.this_process()
    files = processes.shared_memory_of([mine])
    job_state.update(
        folder,
        {"master": list(mine), "shm": [list(entry) for entry in files]},
        only_if=lambda state: state.get("job") == job,
    )


def main() -> NoReturn:
    """Entry of a rank that mpifs's own mpiexec started, or rank 0 to replace one: then the words
    are VOLUME --replace RANK SIZE PID NOTE: the process PID is what it replaces, and into the file
    NOTE it writes which process it is, if rank 0 is on this host."""
    gate = SignalGate()
    volume, words = sys.argv[1], sys.argv[2:]
    replaced = None
    if words:
        rank, size, old_pid = map(int, words[1:4])
        replaced = (rank, size)
        with contextlib.suppress(OSError), open(words[4], "r+", encoding="ascii") as note:
            note.write("{0.pid} {0.start}".format(processes.this_process()))
        faultpoint.reach("rank.replace")
        _end_predecessor(old_pid)
    run_rank(
        volume,
        gate,
        lambda workers: job_config.read(VolumeFolder(volume)),
        is_own=True,
        replaced=replaced,
    )


def _end_predecessor(pid: int) -> None:
    """Kills the process whose place this one takes: hanging, it would go on holding its store."""
    job = os.environ.get(processes.JOB_VARIABLE, "-")
    if pid:
        processes.kill([one for one in processes.marked_with(job) if one.pid == pid])


if __name__ == "__main__":
    main()
