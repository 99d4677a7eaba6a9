"""`mpifs fsck` with real ranks, at rest and mounted: exit codes, output, signals, losses."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpifs.job import launch
from mpifs.job import state as job_state
from tests.job.lifecycle import ROOT, Volume, mpifs, volume

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse may not be opened"
)
KIB = 1024
KEYS = ["check", "severity", "path", "inode", "chunk", "worker", "detail", "repaired"]
FILES = {"a": 300 * KIB + 7, "dir/b": 64 * KIB, "dir/c": 5, "empty": 0, "dir/sub/d": 1000 * KIB}
CHUNKS = 5 + 1 + 1 + 16


def content(name: str) -> bytes:
    return random.Random(name).randbytes(FILES[name])


@pytest.fixture
def one() -> Iterator[Volume]:
    with volume() as made:
        yield made


def fill(one: Volume, *words: str) -> None:
    """Makes, fills and unmounts the volume."""
    one.mount("--chunk-size", "64KiB", *words)
    for name in FILES:
        path = one.mountpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    umount(one)


def umount(one: Volume) -> None:
    result = mpifs("umount", str(one.mountpoint))
    assert result.returncode == 0, result.stderr + one.log()


def all_there(one: Volume) -> None:
    one.mount()
    for name in FILES:
        assert (one.mountpoint / name).read_bytes() == content(name)
    umount(one)


def sums(one: Volume) -> dict[str, str]:
    """Of everything that belongs to the volume and not to a job or to LMDB's table of readers."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(one.folder.path).rglob("*"))
        if path.is_file() and path.name not in ("lock", "lock.mdb") and "/run/" not in str(path)
    }


def fsck(one: Volume, *words: str, place: str = "") -> tuple[int, dict[str, Any]]:
    """Exit code and document; whatever the outcome, nothing may be left of a job at rest."""
    done = mpifs("fsck", "--json", *words, place or one.folder.path)
    assert "Traceback" not in done.stderr + one.log()
    assert done.stdout, done.stderr + one.log()
    document = json.loads(done.stdout)
    assert list(document) == ["clean", "findings", "checked", "notes"]
    assert list(document["checked"]) == ["inodes", "chunks", "bytes", "seconds"]
    assert all(list(finding) == KEYS for finding in document["findings"])
    assert document["clean"] == (done.returncode == 0), done.stdout
    if not place:
        assert one.left(one.state()) == []
    return done.returncode, document


def await_true(check: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := check()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


def test_a_clean_volume_at_rest(one: Volume) -> None:
    fill(one, "-w", "3")
    before = sums(one)
    code, document = fsck(one)
    assert (code, document["findings"]) == (0, []), one.log()
    checked = document["checked"]
    assert (checked["inodes"], checked["chunks"]) == (len(FILES) + 3, CHUNKS)
    assert checked["bytes"] == sum(FILES.values())
    code, document = fsck(one, "--no-data")
    assert (code, document["checked"]["chunks"], document["checked"]["bytes"]) == (0, CHUNKS, 0)
    assert sums(one) == before
    done = mpifs("fsck", one.folder.path)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{one.folder.path}: clean; {len(FILES) + 3} inodes" in done.stderr
    assert fsck(one, "--repair")[0] == 0
    all_there(one)


def test_a_volume_that_was_only_made(one: Volume) -> None:
    assert mpifs("mkfs", one.folder.path, "-w", "2").returncode == 0
    assert fsck(one)[0] == 0
    assert fsck(one, "--repair")[0] == 0
    one.mount()
    umount(one)


def test_mounted_while_files_change(one: Volume) -> None:
    fill(one, "-w", "3", "--replicas", "2")
    one.mount("-o", "commit=0.05")
    end = threading.Event()
    trouble: list[BaseException] = []

    def change(seed: int) -> None:
        chance = random.Random(seed)
        mine = one.mountpoint / f"w{seed}"
        mine.mkdir()
        try:
            while not end.is_set():
                path = mine / f"f{chance.randrange(6)}"
                match chance.randrange(6):
                    case 0:
                        path.unlink(missing_ok=True)
                    case 1 if path.exists():
                        path.rename(mine / f"f{chance.randrange(6)}")
                    case 2 if path.exists():
                        os.truncate(path, chance.randrange(200 * KIB))
                    case 3 if path.exists():
                        with path.open("r+b") as file:
                            file.seek(chance.randrange(150 * KIB))
                            file.write(chance.randbytes(chance.randrange(100 * KIB)))
                    case _:
                        path.write_bytes(chance.randbytes(chance.randrange(400 * KIB)))
        except BaseException as error:
            trouble.append(error)
            raise

    threads = [threading.Thread(target=change, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        for words in ([], [], ["--repair"], []):
            code, document = fsck(one, *words, place=str(one.mountpoint))
            assert (code, document["findings"]) == (0, []), document
            assert document["checked"]["chunks"] >= CHUNKS
        assert fsck(one, place=one.folder.path)[0] == 0  # STORE of a mounted volume means the same.
    finally:
        end.set()
        for thread in threads:
            thread.join(30)
    assert trouble == []
    umount(one)
    assert fsck(one)[0] == 0


def _start(one: Volume, *words: str, place: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mpifs", "fsck", place or one.folder.path, *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _ready(one: Volume, before: str) -> job_state.State | None:
    state = one.state()
    is_new = state.get("job") != before and state.get("state") == job_state.READY
    return state if is_new else None


@pytest.mark.long_variant("15")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_middle(one: Volume, number: signal.Signals) -> None:
    fill(one, "-w", "2")
    before = one.state()["job"]
    with _start(one) as process:
        state = await_true(lambda: _ready(one, before), one.log())
        worker = state["workers"][0]["pid"]
        os.kill(worker, signal.SIGSTOP)  # the run cannot end before the signal comes.
        try:
            process.send_signal(number)
            time.sleep(1.0)
        finally:
            os.kill(worker, signal.SIGCONT)
        _, words = process.communicate(timeout=60)
    assert process.returncode == 32, words + one.log()
    assert "interrupted" in words
    assert "Traceback" not in words
    assert one.left(state) == []
    assert fsck(one)[0] == 0


_INTERRUPTED_WHEN_STARTED = """
import os, sys
from mpifs.cli import app
from mpifs.job import launch

def start(*words, real=launch._start):
    supervisor = real(*words)
    os.kill(os.getpid(), int(sys.argv[2]))
    return supervisor

launch._start = start
sys.exit(app.run(["fsck", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_as_soon_as_it_has_started(one: Volume, number: signal.Signals) -> None:
    fill(one, "-w", "2")
    before = one.state()["job"]
    words = [one.folder.path, str(int(number))]
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_WHEN_STARTED, *words],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 32, done.stderr + one.log()
    assert "interrupted" in done.stderr
    assert one.state()["job"] != before
    assert one.left(one.state()) == []
    assert fsck(one)[0] == 0


@pytest.mark.parametrize("delay_s", [0.8])
def test_ctrl_c_while_starting(one: Volume, delay_s: float) -> None:
    fill(one, "-w", "2")
    with _start(one) as process:
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=60)
    assert process.returncode in (32, 0, -signal.SIGINT), words
    assert one.left(one.state()) == []
    assert fsck(one)[0] == 0


def test_a_killed_command_leaves_nothing(one: Volume) -> None:
    fill(one, "-w", "2")
    before = one.state()["job"]
    with _start(one) as process:
        state = await_true(lambda: _ready(one, before), one.log())
        process.kill()
        process.communicate()
    one.await_gone(state, 40.0)
    assert fsck(one)[0] == 0


def test_usage_and_could_not_run(one: Volume, tmp_path: Path) -> None:
    for words in ([], ["--bogus", one.folder.path], [one.folder.path, "more"]):
        assert mpifs("fsck", *words).returncode == 16
    assert mpifs("fsck", "--host", "a", "--hostfile", "b", one.folder.path).returncode == 16
    for place in (str(tmp_path / "nothing"), str(tmp_path)):
        done = mpifs("fsck", place)
        assert (done.returncode, done.stderr.count("\n")) == (8, 1)
    fill(one, "-w", "2")
    with launch.hold(one.folder):
        done = mpifs("fsck", one.folder.path)
    assert done.returncode == 8
    assert "in use" in done.stderr


def test_fsck_tool(one: Volume) -> None:
    fill(one, "-w", "2")
    tool = str(ROOT / "tools" / "fsck.mpifs")
    done = subprocess.run([tool, "-n", "-C2", one.folder.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total = sum(FILES.values())
    assert f"1 {total} {total} {one.folder.path}" in done.stderr.splitlines()
    (Path(one.folder.store(1)) / "superblock").unlink()
    assert subprocess.run([tool, one.folder.path], capture_output=True).returncode == 4
    assert subprocess.run([tool, "-a", one.folder.path], capture_output=True).returncode == 1
    assert subprocess.run([tool, "-y", one.folder.path], capture_output=True).returncode == 0
    all_there(one)


def test_a_missing_store(one: Volume) -> None:
    fill(one, "-w", "2")
    home, away = one.folder.store(2), one.folder.path + "/elsewhere"
    os.rename(home, away)
    before = sums(one)
    for words in ([], ["--repair"]):
        code, document = fsck(one, *words)
        assert code == 4
        findings = document["findings"]
        whole = [f["check"] for f in findings if f["chunk"] is None]
        assert whole == ["check_store_is_there", "check_copies"], findings
        assert {f["worker"] for f in findings} == {2}
        chunks = {(f["path"], f["chunk"]) for f in findings if f["chunk"] is not None}
        assert all(f["severity"] == "lost" for f in findings if f["chunk"] is not None)
        assert len(chunks) == len(findings) - 2 < CHUNKS
        assert [f["check"] for f in findings if f["repaired"]] == ["check_copies"] * bool(words)
        if not words:
            assert sums(one) == before
    os.rename(away, home)
    code, document = fsck(one, "--repair")  # it has pieces of the copy before.
    assert {f["check"] for f in document["findings"]} <= {"check_copies"}
    assert fsck(one)[0] == 0
    all_there(one)


def test_replicas_of_a_missing_store_are_made_anew(one: Volume) -> None:
    fill(one, "-w", "3", "--replicas", "2")
    shutil.rmtree(one.folder.store(3))
    code, document = fsck(one)
    assert code == 4
    assert {f["severity"] for f in document["findings"]} == {"damage"}
    code, document = fsck(one, "--repair")
    left = [f for f in document["findings"] if not f["repaired"]]
    assert [(f["worker"], f["chunk"]) for f in left] == [(3, None)]
    code, document = fsck(one)
    assert [(f["worker"], f["chunk"]) for f in document["findings"]] == [(3, None)]


@pytest.mark.parametrize("way", ["folder", "superblock"])
def test_a_lost_index_is_brought_back(one: Volume, way: str) -> None:
    fill(one, "-w", "3")
    index = Path(one.folder.index)
    if way == "folder":
        shutil.rmtree(index)
    else:
        (index / "superblock").write_bytes(bytes(128))
    before = sums(one)
    code, document = fsck(one)
    assert (code, sums(one)) == (4, before)
    assert any(f["check"] == "check_index_files" for f in document["findings"]), document
    refused = mpifs("mount", one.folder.path, str(one.mountpoint))
    assert refused.returncode == 1
    code, document = fsck(one, "--repair")
    assert code == 1, document
    assert document["notes"], document
    assert fsck(one)[0] == 0
    all_there(one)


def test_a_worker_that_dies_in_the_middle(one: Volume) -> None:
    fill(one, "-w", "3")
    before = one.state()["job"]
    with _start(one, "--json") as process:
        state = await_true(lambda: _ready(one, before), one.log())
        os.kill(state["workers"][1]["pid"], signal.SIGKILL)
        out, words = process.communicate(timeout=120)
    assert process.returncode in (4, 0), words + one.log()  # 0: it was over before.
    document = json.loads(out)
    if process.returncode:
        assert 2 in {f["worker"] for f in document["findings"]}
    assert one.left(state) == []
    assert fsck(one)[0] == 0


def test_a_worker_dies_amid_a_check(one: Volume) -> None:
    """It is replaced, and the check goes on with it: of a mount, and of a volume at rest."""
    fill(one, "-w", "3")
    for place in (str(one.mountpoint), one.folder.path):
        before = one.state().get("job", "")
        state = one.mount() if place == str(one.mountpoint) else None
        with _start(one, "--json", place=place) as process:
            state = state or await_true(lambda: _ready(one, before), one.log())  # noqa: B023
            os.kill(state["workers"][1]["pid"], signal.SIGKILL)
            words, _ = process.communicate(timeout=60)
        assert process.returncode == 0, words
        if place == str(one.mountpoint):
            mpifs("umount", place)


def test_umount_ends_a_check(one: Volume) -> None:
    fill(one, "-w", "2")
    state = one.mount()
    worker = state["workers"][0]["pid"]
    os.kill(worker, signal.SIGSTOP)
    with _start(one) as process:
        try:
            time.sleep(3.0)  # it has begun, and waits for the worker
            ending = subprocess.Popen(
                [sys.executable, "-m", "mpifs", "umount", str(one.mountpoint)]
            )
            time.sleep(1.0)
        finally:
            os.kill(worker, signal.SIGCONT)
        _, words = process.communicate(timeout=60)
        assert ending.wait(60) == 0, one.log()
    assert process.returncode == 32, words
    assert "being stopped" in words
    assert one.left(state) == []


def test_what_lies_on_a_store_that_is_only_misplaced_is_not_called_lost(one: Volume) -> None:
    fill(one, "-w", "3")
    folders = [one.folder.store(1), one.folder.store(2), one.folder.path + "/aside"]
    for old, new in ((0, 2), (1, 0), (2, 1)):
        os.rename(folders[old], folders[new])
    code, document = fsck(one)
    assert code == 4
    findings = document["findings"]
    exchanged = [f["worker"] for f in findings if f["check"] == "check_store_is_not_exchanged"]
    assert exchanged == [1, 2]
    assert {f["severity"] for f in findings} == {"damage"}
    assert {f["worker"] for f in findings} == {1, 2}
    code, document = fsck(one, "--repair")
    assert code == 1
    assert {f["check"] for f in document["findings"]} == {"check_store_is_not_exchanged"}
    assert fsck(one)[0] == 0
    all_there(one)
