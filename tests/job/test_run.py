"""`mpifs run`: a volume that lives as long as a command.  Real jobs, real mounts, real kills."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.index.volume import read_superblock
from mpifs.job import processes
from mpifs.job import state as job_state
from mpifs.job.folder import VolumeFolder
from mpifs.job.mounts import mount_at, unmount
from mpifs.job.processes import Process
from tests.job.lifecycle import mpifs
from tests.mpi.launcher import Library, libraries

ONLY_LONG = pytest.mark.skipif(os.environ.get("MPIFS_FAULTS") != "long", reason="MPIFS_FAULTS=long")
GONE_S = 10.0  # the promise of `mpifs run`.
# A command with a child of its own session that holds a file of the mount open.
HOLDER = 'setsid sh -c \'echo $$ > "$0.child"; exec sleep 300 > held\' "$0" & '
STAYS = "cd mnt; " + HOLDER + 'while [ ! -e "$0.child" ]; do sleep 0.02; done; echo $$ > "$0"; '


class Run:
    """One `mpifs run` in a folder of its own, and what it must not leave."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = VolumeFolder(str(place / "store"))
        self.mnt = place / "mnt"
        self.mnt.mkdir()
        self.note = place / "note"
        self.seen: set[Process] = set()
        self.paths: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str, prefix: tuple[str, ...] = (), **more: object) -> None:
        """Starts `mpifs run …`; relative names are below the place."""
        run = [*prefix, sys.executable, "-m", "mpifs", "run", *words]
        more.setdefault("stdin", subprocess.DEVNULL)
        with open(self.place / "err", "wb") as err, open(self.place / "out", "wb") as out:
            more = {"stdout": out, "stderr": err, **more}
            self.process = subprocess.Popen(run, cwd=self.place, **more)  # type: ignore[call-overload]

    def await_note(self) -> int:
        """The pid that the command has written; notes all processes and paths of the run."""
        deadline = time.monotonic() + 30
        while not (self.note.exists() and self.note.read_text().strip()):
            assert self.process is not None
            assert self.process.poll() is None, self.error()
            assert time.monotonic() < deadline, self.error()
            time.sleep(0.02)
        self.look()
        return int(self.note.read_text())

    def look(self) -> None:
        """Notes what there is now."""
        state = self.state()
        job = str(state.get("job", "-"))
        self.seen.update(processes.marked_with(job))
        self.seen.update(processes.marked_with(job, variable=processes.RUN_VARIABLE))
        assert self.process is not None
        self.seen.add(Process(self.process.pid, processes.start_of(self.process.pid)))
        self.paths.update(path for path, _ in state.get("shm") or [])
        self.paths.update([str(state.get("scratch") or ""), self.folder.socket])

    def state(self) -> job_state.State:
        """run/state.json."""
        return job_state.read(self.folder)

    def left(self) -> list[str]:
        """What is still there."""
        found = [f"process {p.pid}" for p in self.seen if p.is_alive]
        found += [path for path in self.paths if path and os.path.exists(path)]
        return [*found, "mount"] if mount_at(str(self.mnt)) else found

    def await_gone(self, *, scratch: bool = True) -> None:
        """Fails when anything is left after GONE_S."""
        deadline = time.monotonic() + GONE_S

        def is_clean() -> bool:
            return not self.left() and not (scratch and os.path.exists(self.folder.path))

        while not is_clean() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.left() == [], self.error()
        if scratch:
            assert not os.path.exists(self.folder.path), os.listdir(self.folder.path)

    def code(self, timeout_s: float = 40.0) -> int:
        """The exit code."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def error(self) -> str:
        """What it said on stderr."""
        with contextlib.suppress(OSError):
            return (self.place / "err").read_text(errors="replace")
        return ""

    def clear(self) -> None:
        """Ends by force what is left; the test fails then."""
        if self.process is not None and self.process.poll() is None:
            self.look()
            self.process.kill()
            self.process.wait()
        left = self.left()
        processes.kill(p for p in self.seen if p.is_alive)
        while mount_at(str(self.mnt)):
            if unmount(str(self.mnt), lazy=True):
                break
        assert left == [], f"left: {left}\n{self.error()}"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run that leaves nothing."""
    made = Run(tmp_path)
    try:
        yield made
    finally:
        made.clear()


def _pid(run: Run, role: str, command: int) -> int:
    assert run.process is not None
    if role == "run":
        return run.process.pid
    if role == "command":
        return command
    state = run.state()
    if role == "worker":
        return int(state["workers"][0]["pid"])
    found = job_state.process(state, role)
    assert found is not None
    return found.pid


@pytest.mark.parametrize(
    ("role", "code"),
    [
        ("run", -9),
        ("supervisor", 1),
        pytest.param("launcher", 1, marks=ONLY_LONG),
        ("rank0", 1),
        pytest.param("command", 137, marks=ONLY_LONG),
    ],
)
def test_kill_leaves_nothing(run: Run, role: str, code: int) -> None:
    """Whoever is killed: command, its child with an open file, volume, all of it is gone."""
    words = ("--scratch", "-w", "2", "store", "mnt", "--", "sh", "-c", STAYS + "sleep 300")
    run.start(*words, str(run.note))
    command = run.await_note()
    os.kill(_pid(run, role, command), signal.SIGKILL)
    run.await_gone()
    assert run.code() == code, run.error()
    assert "Traceback" not in run.error()


@ONLY_LONG
def test_both_guards_killed(run: Run) -> None:
    """`mpifs run` and the supervisor at once: rank 0 is left, and ends the rest."""
    words = ("--scratch", "-w", "2", "store", "mnt", "--", "sh", "-c", STAYS + "sleep 300")
    run.start(*words, str(run.note))
    command = run.await_note()
    for pid in (_pid(run, "supervisor", command), _pid(run, "run", command)):
        os.kill(pid, signal.SIGKILL)
    run.code()
    scratch = str(run.state().get("scratch"))
    run.paths.discard(scratch)  # nobody is left who knows of it.
    run.await_gone()
    shutil.rmtree(scratch, ignore_errors=True)


def test_stores_of_other_hosts(run: Run) -> None:
    """end_ranks removes the stores of the volume it is told, and of no other; a scratch volume
    that was cut off together with its machine is made anew."""
    run.start("-w", "2", "store", "mnt", "--", "touch", "mnt/x")
    assert run.code() == 0, run.error()
    uuid = read_superblock(run.folder.index).volume_uuid

    def end_ranks(number: bytes) -> None:
        words = ["-m", "mpifs.job.end_ranks", "no-job", run.folder.path, number.hex()]
        subprocess.run([sys.executable, *words], check=True, timeout=30)

    end_ranks(bytes(16))
    assert os.path.isdir(run.folder.store(1))
    end_ranks(uuid)
    assert sorted(os.listdir(run.folder.path)) == ["index", "run"]
    Path(run.folder.run, "scratch").touch()
    run.start("--scratch", "-w", "1", "store", "mnt", "--", "ls", "mnt")
    assert run.code() == 0, run.error()
    assert (run.place / "out").read_bytes() == b""
    assert not os.path.exists(run.folder.index)


def test_a_killed_worker_is_replaced(run: Run) -> None:
    """The command does not notice; its output, exit code and the volume's content are right."""
    script = 'echo $$ > "$0"; read word; echo $word > mnt/x; cat mnt/x; exit 7'
    run.start("-w", "2", "store", "mnt", "--", "sh", "-c", script, str(run.note), stdin=-1)
    assert run.process is not None
    assert run.process.stdin is not None
    os.kill(_pid(run, "worker", run.await_note()), signal.SIGKILL)
    run.process.stdin.write(b"hello\n")
    run.process.stdin.close()
    assert run.code() == 7, run.error()
    run.await_gone(scratch=False)
    assert (run.place / "out").read_bytes() == b"hello\n"
    run.start("store", "mnt", "--", "cat", "mnt/x")  # the volume is there at the next run.
    assert run.code() == 0, run.error()
    assert (run.place / "out").read_bytes() == b"hello\n"
    run.await_gone(scratch=False)


def test_term_goes_to_the_command(run: Run) -> None:
    """SIGTERM is passed on; the command's answer is the exit code; a second volume of scratch
    is refused where there is one."""
    script = STAYS + 'trap "exit 9" TERM; while :; do sleep 0.05; done'
    run.start("-w", "1", "store", "mnt", "--", "sh", "-c", script, str(run.note))
    run.await_note()
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)
    assert run.code() == 9, run.error()
    run.await_gone(scratch=False)
    assert "sleep" in run.error()  # the child that was left is named.
    run.start("--scratch", "store", "mnt", "--", "true")
    assert run.code() == 1
    assert "holds a volume already" in run.error()
    assert os.path.exists(run.folder.index)


def test_what_cannot_be_run(run: Run) -> None:
    """127 without a mount, 126 and 127 after one, 2 without a command."""
    for words, code in (
        (["no-such-command"], 127),
        (["mnt/no-such"], 127),
        (["/etc/passwd"], 126),
        ([], 2),
    ):
        run.start("--scratch", "-w", "1", "store", "mnt", "--", *words)
        assert run.code() == code, run.error()
        assert len(run.error().splitlines()) == 1
        run.await_gone()


def test_scratch_touches_nothing_else(run: Run) -> None:
    """A folder with something else is refused and stays as it is; an empty one stays, empty but
    for what a disk has of its own."""
    store = Path(run.folder.path)
    (store / "run").mkdir(parents=True)
    (store / "run" / "mine").touch()
    (store / "lost+found").mkdir()
    (store / "index.html").touch()
    run.start("--scratch", "-w", "1", "store", "mnt", "--", "true")
    assert run.code() == 1
    assert "is not empty" in run.error()
    (store / "index.html").unlink()
    run.start("--scratch", "-w", "1", "store", "mnt", "--", "true")
    assert run.code() == 0, run.error()
    assert sorted(path.name for path in store.iterdir()) == ["lost+found", "run"]
    assert [path.name for path in (store / "run").iterdir()] == ["mine"]


def test_interrupted_start(run: Run) -> None:
    """Ctrl-C while the ranks start: nothing is there afterwards."""
    run.start("--scratch", "-w", "2", "store", "mnt", "--", "sleep", "300")
    deadline = time.monotonic() + 20
    while not run.state().get("supervisor") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    run.look()
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    assert run.code() == 130, run.error()
    assert "interrupted" in run.error()
    run.await_gone()


class Terminal:
    """A pseudo-terminal whose session is led by what is started in it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.seen = b""

    def await_text(self, text: bytes) -> None:
        """Reads until the text has come."""
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.master, 65536)

    def type(self, text: bytes) -> None:
        """As if it were typed."""
        os.write(self.master, text)

    def close(self) -> None:
        """Ends it."""
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal."""
    made = Terminal()
    yield made
    made.close()


CONTROLLING = (
    sys.executable,
    "-c",
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])",
)


def test_terminal(run: Run, terminal: Terminal) -> None:
    """An interactive shell has the terminal, with job control; Ctrl-C is its to answer."""
    tty = terminal.slave
    run.start(
        *("--scratch", "-w", "1", "store", "mnt", "--", "bash", "--norc", "-i"),
        prefix=CONTROLLING,
        stdin=tty,
        stdout=tty,
        stderr=tty,
    )
    terminal.type(b"PS1='ready: '; echo $$ > note; cd mnt; test -t 0 && echo is-a-$((40+2))-tty\n")
    terminal.await_text(b"is-a-42-tty")
    run.await_note()
    terminal.type(b"sleep 100\n")
    time.sleep(0.3)
    terminal.type(b"\x03")
    terminal.type(b"echo code-$?\n")
    terminal.await_text(b"code-130")
    terminal.type(b"df --output=source . | tail -1; exit 5\n")
    terminal.await_text(str(run.folder.path).encode())
    assert run.code() == 5
    run.await_gone()


def test_interrupt_at_the_terminal(run: Run, terminal: Terminal) -> None:
    """Ctrl-C ends a command that does not catch it; the exit code says so."""
    tty = terminal.slave
    script = 'echo $$ > "$0"; exec sleep 300'
    words = ("--scratch", "-w", "1", "store", "mnt", "--", "sh", "-c", script, str(run.note))
    run.start(*words, prefix=CONTROLLING, stdin=tty, stdout=tty, stderr=tty)
    run.await_note()
    terminal.type(b"\x03")
    assert run.code() == 130
    run.await_gone()


def _leave_forgotten(folder: VolumeFolder) -> None:
    mpifs("mkfs", folder.path, "--workers", "4")
    os.makedirs(folder.run, exist_ok=True)
    with open(os.path.join(folder.run, "scratch"), "w", encoding="ascii") as mark:
        json.dump({"boot": "another", "maker": [1, 1], "removal": "contents"}, mark)


@pytest.mark.parametrize("library", libraries(), ids=lambda library: library.name)
@pytest.mark.parametrize("is_killed", [False, True])
def test_in_a_given_world(run: Run, library: Library, is_killed: bool) -> None:
    """`mpiexec -n 3 mpifs run`: one launch; rank 0's exit code is the command's.  A scratch volume
    of more workers, whose job was cut off with its machine, is in nobody's way."""
    if not is_killed:
        _leave_forgotten(run.folder)
    script = 'test -z "$PMI_RANK$PMIX_RANK" || exit 99; '  # no rank: it may use MPI itself.
    script += 'echo $$ > "$0"; while [ ! -e go ]; do sleep 0.05; done; echo hi > mnt/x; cat mnt/x'
    run.start(
        *("--scratch", "store", "mnt", "--", "sh", "-c", script + "; exit 6", str(run.note)),
        prefix=(*library.command, "-n", "3"),
        env=os.environ | library.environment,
        start_new_session=True,
    )
    run.await_note()
    rank0 = _pid(run, "rank0", 0)
    run.seen.add(Process(rank0, processes.start_of(rank0)))
    if is_killed:
        os.kill(rank0, signal.SIGKILL)
        assert run.code() != 0
    else:
        (run.place / "go").touch()
        assert run.code() == 6, run.error() + (run.place / "out").read_text()
        assert "hi\n" in (run.place / "out").read_text()
    run.await_gone(scratch=is_killed)
    assert not os.path.exists(run.folder.path) or os.listdir(run.folder.path) == []
