"""The transfer commands as a user has them: real ranks, in a mount's job and of their own."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.limits import MIB
from mpifs.job.processes import JOB_VARIABLE, Process, marked_with, start_of, wait_gone
from tests.job.lifecycle import Volume, mpifs, volume

WORKERS = 3
SEED = random.randrange(2**32)


class Mounted:
    """A mount with --local; files of rank K are in `rank(K)`."""

    def __init__(self, made: Volume, base: Path) -> None:
        self.volume = made
        self.base = base

    def rank(self, number: int) -> Path:
        return self.base / f"rank-{number}"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return mpifs(*words, "--mount", str(self.volume.mountpoint))


STUCK = {"MPIFS_FAULT": "transfer.write:60:hang"}
"""A receiver comes no further than this many chunks."""


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    with (
        volume() as made,
        tempfile.TemporaryDirectory(prefix="mpifs-local-") as base,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**STUCK, "MPIFS_FAULT_ARMED": f"{base}/armed"}.items():
            patch.setenv(name, value)
        state = made.mount("-w", str(WORKERS), "--local", base)
        yield Mounted(made, Path(base))
        assert mpifs("umount", str(made.mountpoint)).returncode == 0
        made.await_gone(state)


def noise(path: Path, size: int) -> bytes:
    print("seed", SEED)
    content = random.Random(SEED + size).randbytes(min(size, MIB - 1)) * (size // (MIB - 1) + 1)
    content = content[:size]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


LONG, ENOUGH = 100, 50  # chunks of a long file, and how many are there when its receiver ends.


def has_part(base: Path, rank: int) -> bool:
    """Whether enough chunks of the long file have come whole."""
    path = base / f"rank-{rank}" / ".mpifs-long.part"
    if not path.exists():
        return False
    ends = [(index + 1) * MIB - 4096 for index in range(LONG)]
    with open(base / "rank-0" / "long", "rb") as source, open(path, "rb") as part:
        found = (
            os.pread(source.fileno(), 4096, e) == os.pread(part.fileno(), 4096, e) for e in ends
        )
        return sum(found) >= ENOUGH


def test_every_way_a_file_can_go(mounted: Mounted) -> None:
    content = noise(mounted.rank(0) / "d" / "big", 3 * MIB + 1)
    sent = mounted.run("send", "d", "--to", "1")
    assert (sent.returncode, sent.stderr) == (0, "")
    assert "worker 1: stored d from master: 3.0 MiB" in sent.stdout
    moved = mounted.run("request", "d/big", "--from", "1", "--to", "3")
    assert moved.returncode == 0, moved.stderr
    assert "worker 3: stored d/big from worker 1" in moved.stdout
    shutil.rmtree(mounted.rank(0) / "d")
    fetched = mounted.run("request", "d/big", "--from", "3", "--json")
    assert fetched.returncode == 0, fetched.stderr
    found = json.loads(fetched.stdout)
    assert (found["command"], found["files"], found["sent"]) == ("request", 1, 4)
    for number in (0, 1, 3):
        assert (mounted.rank(number) / "d" / "big").read_bytes() == content
    assert not (mounted.rank(2) / "d").exists()


def test_broadcast_grows_a_tree(mounted: Mounted) -> None:
    content = noise(mounted.rank(0) / "all", 2 * MIB)
    done = mounted.run("broadcast", "all")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == WORKERS
    assert sum("from master" in line for line in lines) == 2
    assert sum("from worker" in line and "step 2 of the tree" in line for line in lines) == 1
    for number in range(1, WORKERS + 1):
        assert (mounted.rank(number) / "all").read_bytes() == content


def test_scatter_and_gather(mounted: Mounted) -> None:
    content = noise(mounted.rank(0) / "test.txt", 5 * 4096 + 1)
    done = mounted.run("scatter", "test.txt", "--chunk-size", "4KiB")
    assert done.returncode == 0, done.stderr
    for chunk in range(6):
        assert f"worker {chunk % 3 + 1}: stored chunk {chunk} of test.txt" in done.stdout
    (mounted.rank(0) / "test.txt").unlink()
    back = mounted.run("gather", "test.txt")
    assert back.returncode == 0, back.stderr
    assert (mounted.rank(0) / "test.txt").read_bytes() == content
    assert mounted.run("gather", "never").returncode == 1


def test_collect_keeps_the_ranks_apart(mounted: Mounted) -> None:
    for number in (1, 3):
        noise(mounted.rank(number) / "out" / f"{number}.log", 10 * number)
        noise(mounted.rank(number) / "out" / "same.log", number)
    done = mounted.run("collect", "out/*.log", "--into", "logs")
    assert done.returncode == 0, done.stderr
    for number in (1, 3):
        found = mounted.rank(0) / "logs" / f"rank-{number}" / "out"
        assert sorted(path.name for path in found.iterdir()) == [f"{number}.log", "same.log"]
        assert (found / "same.log").stat().st_size == number
    assert mounted.run("collect", "nothing*").returncode == 1


def test_exit_codes_and_sentences(mounted: Mounted, tmp_path: Path) -> None:
    noise(mounted.rank(0) / "good", 10)
    (mounted.rank(0) / "link").symlink_to(tmp_path)
    part = mounted.run("send", "good", "nothing", "--to", "2")
    assert part.returncode == 2
    assert f"no such file in {mounted.rank(0)}" in part.stderr
    for words, sentence in (
        (("send", "nothing", "--to", "1"), "no such file"),
        (("request", "nothing", "--from", "1"), "worker 1: nothing: no such file"),
        (("send", "../rank-1/good", "--to", "1"), "climbs out"),
        (("send", "/etc/passwd", "--to", "1"), "is absolute"),
        (("send", "link", "--to", "1"), "symbolic link"),
        (("send", "good", "--to", "9"), "there is no rank 9"),
    ):
        done = mounted.run(*words)
        assert done.returncode == 1, words
        assert sentence in done.stderr, words
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert mounted.run("send", "good", "--to", "x").returncode == 2
    assert mounted.run("send", "good", "--to", "0").returncode == 2
    assert mpifs("send", "good", "--to", "1").returncode == 2


def test_several_commands_at_once(mounted: Mounted) -> None:
    contents = [noise(mounted.rank(1) / f"at-once-{n}", 2 * MIB + n) for n in range(4)]
    words = [sys.executable, "-m", "mpifs", "request"]
    mount = str(mounted.volume.mountpoint)
    running = [
        subprocess.Popen([*words, f"at-once-{n}", "--from", "1", "--mount", mount])
        for n in range(4)
    ]
    assert [one.wait(60) for one in running] == [0] * 4
    for n, content in enumerate(contents):
        assert (mounted.rank(0) / f"at-once-{n}").read_bytes() == content


def test_a_receiver_that_dies_keeps_what_it_has(mounted: Mounted) -> None:
    noise(mounted.rank(0) / "long", LONG * MIB)
    armed = mounted.base / "armed"
    armed.touch()
    words = [sys.executable, "-m", "mpifs", "send", "long", "--to", "2"]
    with subprocess.Popen(
        [*words, "--mount", str(mounted.volume.mountpoint)], stderr=subprocess.PIPE, text=True
    ) as running:
        mounted.volume.await_that(lambda: has_part(mounted.base, 2), 30)
        (pid,) = [w["pid"] for w in mounted.volume.state()["workers"] if w["rank"] == 2]
        armed.unlink()
        os.kill(pid, signal.SIGKILL)
        _, sentence = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "worker 2" in sentence
    assert not (mounted.rank(2) / "long").exists()

    def again() -> bool:
        done = mounted.run("send", "long", "--to", "2", "--json")
        if done.returncode:  # its replacement is not there yet
            return False
        assert 0 < json.loads(done.stdout)["sent"] <= LONG - ENOUGH + 1, done.stdout
        return True

    mounted.volume.await_that(again, 30)
    same = subprocess.run(["cmp", mounted.rank(0) / "long", mounted.rank(2) / "long"])
    assert same.returncode == 0


SCRIPT = """# a comment
ranks
send test.txt --to 1,2
scatter test.txt --chunk-size 4KiB
ls 2:
bogus
status
quit
send never --to 1
"""


def test_the_shell_from_a_script(tmp_path: Path) -> None:
    noise(tmp_path / "rank-0" / "test.txt", 3 * 4096)
    done = subprocess.run(
        [sys.executable, "-m", "mpifs", "shell", "-w", "2", "--local", str(tmp_path)],
        input=SCRIPT, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr  # a part: one line was no command
    assert "bogus: no such command" in done.stderr
    lines = done.stdout.splitlines()
    for line in (
        "mpifs> ranks",
        "worker 1: stored chunk 0 of test.txt",
        "worker 2: stored chunk 1 of test.txt",
        "worker 1: got the termination message, ended",
        "worker 2: got the termination message, ended",
        "master: all ranks have ended",
    ):
        assert line in lines, done.stdout
    assert not any("never" in line for line in lines)
    assert any(line.endswith("  test.txt.mpifs-chunks/") for line in lines)


def job_of(pid: int) -> str:
    """The job that a command has started."""
    mark = f"{JOB_VARIABLE}=".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                status = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b") ")[2].split()
                words = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            found = [word for word in words if word.startswith(mark)]
            if found and int(status[1]) == pid:
                return found[0][len(mark) :].decode()
    return ""


def folder_of(everyone: list[Process]) -> Path:
    """The session folder of a job: its ranks are told of it."""
    for process in everyone:
        with contextlib.suppress(OSError):
            for word in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0"):
                if word.startswith(b"/tmp/mpifs-transfer-"):
                    return Path(os.fsdecode(word))
    raise AssertionError("no rank is there")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_nothing_but_its_part(
    tmp_path: Path, end: signal.Signals
) -> None:
    noise(tmp_path / "rank-0" / "long", LONG * MIB)
    words = ["send", "long", "--to", "1", "--local", str(tmp_path)]
    stuck = {k: v for k, v in os.environ.items() if k != "MPIFS_FAULT_ARMED"} | STUCK
    running = subprocess.Popen(
        [sys.executable, "-m", "mpifs", *words],
        stderr=subprocess.PIPE, text=True, env=stuck,
    )  # fmt: skip
    job = ""
    deadline = time.monotonic() + 60
    while not has_part(tmp_path, 1):
        job = job or job_of(running.pid)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    everyone: list[Process] = marked_with(job)
    assert job
    folder = folder_of(everyone)
    assert folder.exists()
    running.send_signal(end)
    _, sentence = running.communicate(timeout=30)
    if end == signal.SIGINT:
        assert running.returncode == 1
        assert "interrupted; run the command again and it goes on" in sentence
    assert wait_gone(everyone, 10) == []
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()
    left = os.listdir(tmp_path / "rank-1")
    assert has_part(tmp_path, 1), left
    assert not (tmp_path / "rank-1" / "long").exists()
    again = mpifs(*words, "--json")
    assert again.returncode == 0, again.stderr
    assert 0 < json.loads(again.stdout)["sent"] <= LONG - ENOUGH + 1
    assert start_of(running.pid) == 0


ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]")


def test_the_shell_on_a_terminal(mounted: Mounted, tmp_path: Path) -> None:
    noise(mounted.rank(0) / "unusual-name", 10)
    words = ["shell", "--mount", str(mounted.volume.mountpoint)]
    pid, terminal = pty.fork()
    if not pid:
        os.environ.update(TERM="xterm", XDG_STATE_HOME=str(tmp_path), PROMPT_TOOLKIT_NO_CPR="1")
        os.execv(sys.executable, [sys.executable, "-m", "mpifs", *words])
    seen = ""

    def await_text(text: str, key: bytes = b"") -> None:
        """`key` is pressed now, and again as long as nothing comes of it."""
        nonlocal seen
        deadline, pressed = time.monotonic() + 30, float("-inf")
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if key and time.monotonic() - pressed > 3:
                os.write(terminal, key)
                pressed = time.monotonic()
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 65536).decode(errors="replace")
                seen = ESCAPE.sub("", seen)
        seen = seen.partition(text)[2]

    try:
        await_text("mpifs>")
        os.write(terminal, b"ran\t")
        await_text("ks")
        os.write(terminal, b"\r")
        await_text("worker 3: serving")
        await_text("mpifs>")
        os.write(terminal, b"send unus\t")
        await_text("ual-name")
        os.write(terminal, b" --to 3\r")
        await_text("worker 3: stored unusual-name from master")
        await_text("mpifs>")
        os.write(terminal, b"\x03")
        await_text("mpifs>")
        # The tty turns an end of file that comes between two prompts into a NUL.
        await_text("go on until it is unmounted", key=b"\x04")
        with contextlib.suppress(OSError):  # EIO: the other end is closed.
            while select.select([terminal], [], [], 10.0)[0] and os.read(terminal, 65536):
                pass
    finally:
        os.close(terminal)  # which ends the shell if it has not ended
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "+send unusual-name --to 3" in (tmp_path / "mpifs" / "history").read_text()
