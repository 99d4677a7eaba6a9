"""Mount, umount, signals and crashes of real jobs with real mounts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.job import mpi_launcher
from mpifs.job.folder import VolumeFolder
from mpifs.job.mounts import mount_at
from tests.job.lifecycle import Volume, kill_all, mpifs, pid_of, volume

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse may not be opened"
)
CONTENT = os.urandom(3_000_001)


def _has(mpi: str) -> bool:
    try:
        return bool(mpi_launcher.find(mpi))
    except OSError:
        return False


@pytest.fixture(params=["openmpi", "mpich"])
def vol(request: pytest.FixtureRequest) -> Iterator[Volume]:
    if not _has(request.param):
        pytest.skip(f"no {request.param} is installed")
    with volume(request.param) as made:
        yield made


@pytest.fixture
def one() -> Iterator[Volume]:
    with volume() as made:
        yield made


def _survives(vol: Volume) -> None:
    vol.mount()
    assert (vol.mountpoint / "file").read_bytes() == CONTENT
    assert mpifs("umount", str(vol.mountpoint)).returncode == 0


def test_mount_umount_mount(vol: Volume) -> None:
    state = vol.mount("-w", "3", "--chunk-size", "64KiB")
    assert vol.mountpoint.stat().st_dev != vol.mountpoint.parent.stat().st_dev
    (vol.mountpoint / "file").write_bytes(CONTENT)
    result = mpifs("umount", str(vol.mountpoint))
    assert (result.returncode, result.stderr) == (0, "")
    assert vol.left(state) == []
    _survives(vol)


def test_odd_names_of_the_volume(one: Volume) -> None:
    """Commas and backslashes are special in mount options, blanks in the kernel's table."""
    one.folder = VolumeFolder(str(one.mountpoint.with_name("a b,c\\d")))
    state = one.mount("-w", "1")
    (one.mountpoint / "file").write_bytes(CONTENT)
    assert mpifs("umount", str(one.mountpoint)).returncode == 0
    assert one.left(state) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("role", ["supervisor", "rank0", "launcher"])
def test_signal_ends_cleanly(vol: Volume, role: str, number: signal.Signals) -> None:
    state = vol.mount()
    (vol.mountpoint / "file").write_bytes(CONTENT)
    time.sleep(0.5)  # the promise of close needs a commit interval.
    os.kill(pid_of(state, role), number)
    vol.await_gone(state)
    # mpiexec kills after 0.25 s; rank 0 holds it off if it gets a processor by then.
    ways = ("stopped", "crashed") if role == "launcher" else ("stopped",)
    assert vol.state()["state"] in ways, vol.log()
    _survives(vol)


def test_fusermount_ends_cleanly(one: Volume) -> None:
    state = one.mount()
    (one.mountpoint / "file").write_bytes(CONTENT)
    subprocess.run(["fusermount3", "-u", str(one.mountpoint)], check=True)
    one.await_gone(state)
    assert one.state()["state"] == "stopped", one.log()
    _survives(one)


@pytest.mark.parametrize("role", ["rank0", "launcher"])
def test_kill_is_cleaned_by_the_supervisor(vol: Volume, role: str) -> None:
    state = vol.mount()
    (vol.mountpoint / "file").write_bytes(CONTENT)
    time.sleep(0.5)  # the promise of close needs a commit interval.
    os.kill(pid_of(state, role), signal.SIGKILL)
    vol.await_gone(state, 10.0)
    assert vol.state()["state"] == "crashed"
    _survives(vol)


@pytest.mark.parametrize("command", ["umount", "mount"])
def test_kill_of_everything_is_cleaned_by_the_next_command(one: Volume, command: str) -> None:
    state = one.mount()
    (one.mountpoint / "file").write_bytes(CONTENT)
    time.sleep(0.5)
    kill_all(state)
    assert mount_at(str(one.mountpoint))
    if command == "umount":
        assert mpifs("umount", str(one.mountpoint)).returncode == 0
        assert one.left(state) == []
    _survives(one)
    assert one.left(state) == []


def test_umount_without_supervisor(one: Volume) -> None:
    state = one.mount()
    os.kill(pid_of(state, "supervisor"), signal.SIGKILL)
    other = mpifs("mount", one.folder.path, str(one.mountpoint.parent))
    assert other.returncode == 1
    assert mpifs("umount", str(one.mountpoint)).returncode == 0
    assert one.left(state) == []


def test_busy_umount_changes_nothing(one: Volume) -> None:
    one.mount()
    path = one.mountpoint / "file"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        result = mpifs("umount", str(one.mountpoint))
        assert result.returncode == 1
        assert f"in use by process {os.getpid()}" in result.stderr
        assert file.read() == CONTENT
    assert mpifs("umount", str(one.mountpoint)).returncode == 0


def test_refusals(one: Volume, tmp_path: Path) -> None:
    one.mount()
    second = tmp_path / "second"
    second.mkdir()
    in_use = mpifs("mount", one.folder.path, str(second))
    assert in_use.returncode == 1
    assert f"mounted at {one.mountpoint} by process" in in_use.stderr
    assert "already a mount" in mpifs("mount", str(tmp_path / "v"), str(one.mountpoint)).stderr
    assert mpifs("umount", str(one.mountpoint)).returncode == 0
    assert "has 4 workers, not 3" in mpifs("mount", one.folder.path, str(second), "-w", "3").stderr
    (tmp_path / "file").touch()
    cases = {"nothing": "does not exist", "file": "not a directory", ".": "is not empty"}
    for name, words in cases.items():
        result = mpifs("mount", one.folder.path, str(tmp_path / name))
        assert result.returncode == 1
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert mpifs("mount", one.folder.path).returncode == 2
    assert mpifs("mount", one.folder.path, str(second), "-o", "bogus").returncode == 1


@pytest.mark.parametrize("delay_s", [0.3, 0.9, 1.3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_start_leaves_nothing(
    one: Volume, delay_s: float, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "mpifs", "mount", one.folder.path, str(one.mountpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(delay_s)
        state = one.state()
        process.send_signal(number)
        _, words = process.communicate(timeout=30)
    if process.returncode == 0:
        assert mpifs("umount", str(one.mountpoint)).returncode == 0
        return
    assert "Traceback" not in words
    assert not mount_at(str(one.mountpoint))
    if state:
        assert one.left(state) == []


@pytest.mark.parametrize("is_foreground", [False, True])
def test_a_start_that_is_interrupted_as_soon_as_it_is_noted(
    one: Volume, is_foreground: bool
) -> None:
    command = [sys.executable, "-m", "mpifs", "mount", one.folder.path, str(one.mountpoint)]
    for number in (signal.SIGTERM, signal.SIGINT) * 3:
        before = one.state()
        with subprocess.Popen(command + ["--foreground"] * is_foreground) as process:
            deadline = time.monotonic() + 20
            while not (state := one.state()) or state == before:
                assert time.monotonic() < deadline
            process.send_signal(number)
            assert process.wait(30) != 0
        assert one.left(state) == []


def test_status(one: Volume) -> None:
    state = one.mount("-w", "2")
    with open(one.mountpoint / "file", "wb") as file:
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())
    time.sleep(0.5)
    for place in (one.folder.path, str(one.mountpoint)):
        document = json.loads(mpifs("status", place, "--json").stdout)
        assert list(document) == ["volume", "mount", "workers", "files", "bytes", "heal"]
        assert list(document["volume"]) == ["uuid", "chunk_size", "replicas", "checksum", "workers"]
        assert document["mount"] == {
            "mountpoint": str(one.mountpoint),
            "pid": pid_of(state, "rank0"),
            "state": "mounted",
        }
        row = document["workers"][0]
        assert list(row) == ["id", "state", "pid", "host", "chunks", "bytes", "free"]
        assert (document["files"], document["bytes"]) == (1, len(CONTENT))
        assert sum(row["bytes"] for row in document["workers"]) == len(CONTENT)
    mpifs("umount", str(one.mountpoint))
    document = json.loads(mpifs("status", one.folder.path, "--json").stdout)
    assert document["mount"]["state"] == "unmounted"
    assert {row["state"] for row in document["workers"]} == {"stopped"}
    assert sum(row["bytes"] for row in document["workers"]) == len(CONTENT)


def test_given_world(one: Volume) -> None:
    launcher = mpi_launcher.find("openmpi")
    program = [sys.executable, "-m", "mpifs", "mount", one.folder.path, str(one.mountpoint)]
    env = launcher.environment(dict(os.environ))
    command = launcher.command(program, 3, "", "", [])
    with subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL) as world:
        try:
            deadline = time.monotonic() + 30
            while not mount_at(str(one.mountpoint)) and time.monotonic() < deadline:
                assert world.poll() is None
                time.sleep(0.05)
            assert len(os.listdir(one.mountpoint)) == 0
            assert mpifs("umount", str(one.mountpoint)).returncode == 0
            assert world.wait(20) == 0
        finally:
            world.kill()
    alone = subprocess.run(
        launcher.command(program, 1, "", "", []), env=env, capture_output=True, text=True
    )
    assert alone.returncode == 2
    assert "one rank" in alone.stderr
