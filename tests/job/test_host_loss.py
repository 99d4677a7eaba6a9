"""A host that is cut off or whose launcher's daemon dies: the others are cleared within 15 s, and
-o restart=N brings the volume back on those that remain."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from mpifs.core.limits import HOST_SILENCE_S
from mpifs.job import state as job_state
from mpifs.job.host_watch import silent_host
from mpifs.job.mounts import mount_at
from mpifs.job.processes import marked_with
from mpifs.job.roster import DEAD, LOST, SERVING, SILENT, Worker
from tests.job.lifecycle import Volume, mpifs, pid_of, volume
from tests.job.namespaces import AGENT, Hosts, memory_of

CONTENT = os.urandom(700_001)
BOUND_S = 15.0


def _mount(vol: Volume, hosts: Hosts, *words: str) -> job_state.State:
    agent = ["--launch-agent", str(AGENT), "--host", ",".join(hosts.names)]
    return vol.mount(*agent, "--replicas", "2", "--chunk-size", "64KiB", *words)


def _left_elsewhere(vol: Volume, job: str, lost: list[int]) -> list[str]:
    """Processes of the job that are not on the lost host, and the mount."""
    found = [str(p.pid) for p in marked_with(job, everywhere=True) if p.pid not in lost]
    return found + (["mount"] if mount_at(str(vol.mountpoint)) else [])


def test_a_host_that_is_cut_off(hosts: Hosts) -> None:
    with volume() as vol:
        state = _mount(vol, hosts)
        vol.put("file", CONTENT)
        gone = hosts.names[1]
        lost = hosts.pids(gone)
        hosts.cut(gone)
        took_s = vol.await_that(lambda: not _left_elsewhere(vol, state["job"], lost), BOUND_S)
        print(f"cleared {took_s:.1f} s after the cut")
        assert f"host {gone} has been silent" in vol.state()["reason"]
        vol.await_that(
            lambda: not [w for w in state["workers"] if w["host"] == gone and _lives(w["pid"])],
            BOUND_S,
        )  # the worker there ends by itself,
        vol.await_that(lambda: not memory_of(gone), BOUND_S)  # and leaves nothing in /dev/shm.
        hosts.mend(gone)
        hosts.end(gone)
        _mount(vol, hosts)
        assert (vol.mountpoint / "file").read_bytes() == CONTENT
        assert mpifs("umount", str(vol.mountpoint)).returncode == 0


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_volume_comes_back_on_the_hosts_that_remain(hosts: Hosts) -> None:
    with volume() as vol:
        state = _mount(vol, hosts, "-o", "restart=3")
        vol.put("file", CONTENT)
        rank0, gone = pid_of(state, "rank0"), hosts.names[2]
        daemons = [pid for pid in hosts.pids(gone) if _name(pid) == "prted"]
        assert daemons
        hosts.cut(gone)
        for pid in daemons:
            os.kill(pid, signal.SIGKILL)

        def is_back() -> bool:
            now = vol.state()
            process = job_state.process(now, "rank0")
            if now["state"] != job_state.READY or process is None or process.pid == rank0:
                return False
            with contextlib.suppress(OSError):
                return (vol.mountpoint / "file").read_bytes() == CONTENT
            return False

        took_s = vol.await_that(is_back, 40.0)
        print(f"back {took_s:.1f} s after the host's death")
        document = json.loads(mpifs("status", str(vol.mountpoint), "--json").stdout)
        states = {row["id"]: row["state"] for row in document["workers"]}
        assert sorted(states.values()) == ["lost", "serving", "serving"]
        vol.put("written while degraded", CONTENT)
        assert (vol.mountpoint / "written while degraded").read_bytes() == CONTENT
        assert mpifs("umount", str(vol.mountpoint)).returncode == 0


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def test_when_a_host_is_gone() -> None:
    now, old = 1000.0, 1000.0 - HOST_SILENCE_S - 0.1
    hosts = {1: "a", 2: "a", 3: "b", 4: "master"}

    def gone(*ranks: tuple[int, float, str]) -> str:
        workers = [Worker(rank, 1, "", 1, state, answered_s=at) for rank, at, state in ranks]
        return silent_host(workers, hosts.__getitem__, "master", now)

    assert gone((1, old, SILENT)) == "a"
    assert gone((1, old, SILENT), (2, now, SERVING)) == ""
    assert gone((1, old, SILENT), (2, old, DEAD)) == "a"
    assert gone((3, now, SERVING), (1, old, SILENT)) == "a"
    for state in (DEAD, LOST):
        assert gone((1, old, state)) == ""
    assert gone((0, old, SILENT)) == ""
    assert gone((4, old, SILENT)) == ""
    assert gone((1, now - HOST_SILENCE_S / 2, SILENT)) == ""


pytestmark = pytest.mark.timeout(150)
