"""-o restart=N: a volume whose job has died comes back by itself, or is cleared away."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mpifs.core.limits import HEARTBEAT_S, MPI_STALL_S
from mpifs.job import state as job_state
from mpifs.job.mounts import mount_at
from mpifs.job.options import parse_options
from mpifs.job.restart import Restarts, answering
from tests.job.lifecycle import ROOT, Volume, mpifs, pid_of, volume

CONTENT = os.urandom(300_001)
BACK_S = 10.0


def _serves(vol: Volume, after: int) -> Callable[[], bool]:
    """Whether the volume is served again by another rank 0, and gives the right bytes."""

    def check() -> bool:
        state = vol.state()
        process = job_state.process(state, "rank0")
        if state.get("state") != job_state.READY or process is None or process.pid == after:
            return False
        with contextlib.suppress(OSError):
            return (vol.mountpoint / "file").read_bytes() == CONTENT
        return False

    return check


def _crash(vol: Volume, role: str) -> int:
    """SIGKILL; the old rank 0's pid."""
    rank0 = pid_of(vol.state(), "rank0")
    os.kill(rank0 if role == "rank0" else pid_of(vol.state(), role), signal.SIGKILL)
    return rank0


def test_the_volume_comes_back_as_often_as_allowed() -> None:
    with volume() as vol:
        state = vol.mount("-w", "2", "-o", "restart=2")
        vol.put("file", CONTENT)
        job = state["job"]
        for count, role in enumerate(("rank0", "launcher"), 1):
            rank0 = _crash(vol, role)
            vol.await_that(_serves(vol, rank0), BACK_S)
            assert vol.state()["restarts"] == count
            assert len([m for m in [mount_at(str(vol.mountpoint))] if m]) == 1
        shown = mpifs("status", str(vol.mountpoint)).stdout
        assert "restarts 2, the last one because mpiexec was killed" in shown
        _crash(vol, "rank0")
        vol.await_gone(state, 10.0)
        after = vol.state()
        assert (after["state"], after["job"]) == ("crashed", job)
        assert "restarted 2 of 2 times" in after["reason"]
        vol.mount()
        assert (vol.mountpoint / "file").read_bytes() == CONTENT
        assert mpifs("umount", str(vol.mountpoint)).returncode == 0


def test_a_call_of_mpi_that_does_not_return(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rank 0 ends itself, and the volume comes back: nobody waits for ever."""
    armed = tmp_path / "armed"
    monkeypatch.setenv("MPIFS_FAULT", "heartbeat:1:hang")
    monkeypatch.setenv("MPIFS_FAULT_ARMED", str(armed))
    with volume() as vol:
        vol.mount("-w", "2", "-o", "restart=1")
        vol.put("file", CONTENT)
        rank0 = pid_of(vol.state(), "rank0")
        armed.touch()
        time.sleep(3 * HEARTBEAT_S)
        armed.unlink()
        vol.await_that(_serves(vol, rank0), MPI_STALL_S + 2 * BACK_S)
        assert "a call of the MPI library has not returned" in vol.log(), vol.log()
        shown = mpifs("status", str(vol.mountpoint)).stdout
        assert "restarts 1, the last one because a call of the MPI library has not" in shown
        assert mpifs("umount", str(vol.mountpoint)).returncode == 0


def test_status_and_umount_while_restarting() -> None:
    """The third restart in a row waits for two seconds: then nothing is mounted."""
    with volume() as vol:
        state = vol.mount("-w", "2", "-o", "restart=5")
        vol.put("file", CONTENT)
        for _ in range(2):
            vol.await_that(_serves(vol, _crash(vol, "rank0")), BACK_S)
        _crash(vol, "rank0")
        vol.await_that(lambda: vol.state()["state"] == job_state.RESTARTING, 5.0)
        vol.await_that(lambda: mount_at(str(vol.mountpoint)) is None, 5.0)
        places = (vol.folder.path, str(vol.mountpoint))
        commands = [("status", place, "--json") for place in places] + [("mount", *places)]
        with ThreadPoolExecutor() as pool:  # at once, to be in time on a slow machine.
            *told, other = pool.map(lambda words: mpifs(*words), commands)
        for done in told:
            document = json.loads(done.stdout)
            assert document["mount"]["state"] == "restarting"
            assert document["mount"]["mountpoint"] == str(vol.mountpoint)
            assert [row["state"] for row in document["workers"]] == ["restarting"] * 2
        assert other.returncode == 1
        assert "is being restarted" in other.stderr
        result = mpifs("umount", str(vol.mountpoint))
        assert result.returncode == 0, result.stderr
        assert "the restart was ended" in result.stderr
        assert vol.left(state) == []
        assert vol.state()["state"] == job_state.CRASHED
        assert "the restart was stopped" in mpifs("status", vol.folder.path).stdout
        assert mpifs("umount", str(vol.mountpoint)).returncode == 1


def test_foreground_restarts_too() -> None:
    with volume() as vol:
        words = ["mount", vol.folder.path, str(vol.mountpoint), "-w", "2", "-o", "restart=1"]
        command = [sys.executable, "-m", "mpifs", *words, "--foreground"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                vol.await_that(lambda: vol.state().get("state") == job_state.READY, 30.0)
                vol.put("file", CONTENT)
                vol.await_that(_serves(vol, _crash(vol, "rank0")), BACK_S)
                assert process.poll() is None
                assert mpifs("umount", str(vol.mountpoint)).returncode == 0
                assert process.wait(20) == 0
            finally:
                process.terminate()


def test_mpich_ends_the_job_with_a_worker_and_the_volume_comes_back() -> None:
    with volume("mpich") as vol:
        state = vol.mount("-w", "2", "-o", "restart=1")
        vol.put("file", CONTENT)
        rank0 = pid_of(state, "rank0")
        os.kill(state["workers"][0]["pid"], signal.SIGKILL)
        vol.await_that(_serves(vol, rank0), BACK_S)
        assert "a rank died or mpiexec was ended, and MPICH ends the whole job" in vol.log()
        os.kill(vol.state()["workers"][1]["pid"], signal.SIGKILL)
        vol.await_gone(state, 10.0)
        shown = mpifs("status", vol.folder.path).stdout
        assert "crashed (a rank died or mpiexec was ended" in shown


def test_back_off() -> None:
    now = 0.0
    restarts = Restarts(20, lambda: now)
    restarts.begin()
    waits = []
    for _ in range(8):
        assert restarts.take(has_served=True)
        waits.append(restarts.wait_s())
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    now = 100.0  # it has served for long.
    assert restarts.take(has_served=True)
    assert restarts.wait_s() == 0.0
    restarts.begin()
    now = 200.0  # it was not served at all: as bad as before.
    assert restarts.take(has_served=False)
    assert restarts.wait_s() == 1.0
    assert [restarts.take(has_served=True) for _ in range(11)] == [True] * 10 + [False]


def test_hosts_that_do_not_answer(tmp_path: os.PathLike[str]) -> None:
    agent = os.path.join(tmp_path, "agent")
    with open(os.open(agent, os.O_WRONLY | os.O_CREAT, 0o700), "w") as file:
        file.write(
            '#!/bin/sh\ncase $1 in a) exec sleep 60;; b) exit 255;; esac\nshift\nexec sh -c "$*"\n'
        )
    begun = time.monotonic()
    assert answering(["a", "c", "b", "localhost", "c"], agent, "none") == (
        ["c", "localhost", "c"],
        ["a", "b"],
    )
    assert time.monotonic() - begun < 7.0


@pytest.mark.parametrize("word", ["restart", "restart=", "restart=-1", "restart=x", "restart=1001"])
def test_refused_numbers(word: str) -> None:
    with pytest.raises(OSError, match="restart takes a number from 0 to 1000"):
        parse_options([word], str(ROOT))
