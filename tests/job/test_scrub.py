"""`mpifs scrub` in real mounts: start, pause, status, stop, and its memory across mounts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.job.lifecycle import Volume, mpifs, volume

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse may not be opened"
)
CHUNKS = 768
TOTAL = CHUNKS * 64 * 1024
RATE = 6 << 20  # eight seconds for all; a paced step is 8 MiB of one store.


@pytest.fixture
def one() -> Iterator[Volume]:
    with volume() as made:
        made.mount("--chunk-size", "64KiB", "-w", "2")
        with open(made.mountpoint / "file", "wb") as file:
            file.write(os.urandom(TOTAL))
            file.flush()
            os.fsync(file.fileno())  # sync(2) asks nothing of a FUSE file system
        yield made
        if mpifs("umount", str(made.mountpoint)).returncode:
            raise AssertionError(made.log())


def scrub(one: Volume, action: str, *words: str) -> dict[str, Any]:
    done = mpifs("scrub", action, str(one.mountpoint), "--json", *words)
    assert done.returncode == 0, done.stderr + one.log()
    return json.loads(done.stdout)


def await_status(one: Volume, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while not is_so(status := scrub(one, "status")):
        assert time.monotonic() < deadline, (status, one.log())
        time.sleep(0.1)
    return status


def test_a_pass_finds_nothing_in_a_good_volume(one: Volume) -> None:
    assert scrub(one, "status")["state"] == "stopped"
    scrub(one, "start")
    done = await_status(one, lambda status: status["state"] == "finished")
    assert (done["chunks"], done["bytes"]) == (CHUNKS, TOTAL)
    assert (done["found"], done["findings"], done["error"]) == (0, [], "")
    assert done["started"] <= done["ended"] <= time.time()
    assert scrub(one, "stop")["state"] == "stopped"


def test_pause_umount_mount_and_on(one: Volume) -> None:
    started = scrub(one, "start", "--rate", "6MiB/s", "--repair")
    assert (started["state"], started["rate"], started["repair"]) == ("running", RATE, True)
    await_status(one, lambda status: status["chunks"] >= 4)
    paused = scrub(one, "pause")
    assert paused["state"] == "paused"
    time.sleep(0.5)
    paused = scrub(one, "status")
    assert 4 <= paused["chunks"] < CHUNKS
    time.sleep(1.0)
    assert scrub(one, "status") == paused
    assert mpifs("umount", str(one.mountpoint)).returncode == 0
    at_rest = json.loads(mpifs("scrub", "status", one.folder.path, "--json").stdout)
    assert (at_rest["state"], at_rest["chunks"]) == ("paused", paused["chunks"])
    one.mount()
    time.sleep(1.0)
    assert scrub(one, "status")["chunks"] == paused["chunks"]
    begun = time.monotonic()
    scrub(one, "start")
    assert mpifs("umount", str(one.mountpoint)).returncode == 0  # running: goes on by itself.
    one.mount()
    done = await_status(one, lambda status: status["state"] == "finished")
    assert (done["chunks"], done["rate"]) == (CHUNKS, RATE)
    assert TOTAL <= done["bytes"] < 2 * TOTAL  # what was read ahead of the pause is read again.
    left = TOTAL - paused["bytes"]
    assert time.monotonic() - begun > 0.7 * left / done["rate"]


def test_stop_forgets_and_fsck_goes_first(one: Volume) -> None:
    scrub(one, "start", "--rate", "1MiB")
    await_status(one, lambda status: status["chunks"] >= 2)
    done = mpifs("fsck", "--json", str(one.mountpoint))
    assert (done.returncode, json.loads(done.stdout)["findings"]) == (0, []), done.stderr
    status = scrub(one, "status")
    assert status["state"] == "running"
    assert status["chunks"] < CHUNKS
    assert scrub(one, "stop")["chunks"] == 0
    assert scrub(one, "start", "--rate", "1GiB")["rate"] == 1 << 30
    await_status(one, lambda status: status["state"] == "finished")


def test_refusals(one: Volume) -> None:
    place = str(one.mountpoint)
    for words in (["start"], ["begin", place], ["pause", place, "--rate", "1MiB"]):
        assert mpifs("scrub", *words).returncode == 2
    assert mpifs("scrub", "start", place, "--rate", "fast").returncode == 2
    assert mpifs("umount", place).returncode == 0
    done = mpifs("scrub", "start", one.folder.path)
    assert done.returncode == 1
    assert "mpifs fsck" in done.stderr
    one.mount()
