"""Everything dies, at any moment: what was promised is there, and nothing else is left.

MPIFS_STRIKES_SEED=N repeats a run; `make faults` strikes 300 times.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cycle import IS_LONG
from tests.mount.harness import Volume, mpifs
from tools.strike_manifest import NOTHING, Content, Manifest, Promises, stream
from tools.strikes import Striker

COUNTS = {"openmpi": (16, 210), "mpich": (14, 90)}
SECONDS = 0.9  # how long programs write at most before a strike.
MKFS_POINTS = ("mkfs.folder", "mkfs.filled", "mkfs.made", "mkfs.renamed")
INTERVAL_S = 0.5


@pytest.mark.limit(1200 if not IS_LONG else 7200)
@pytest.mark.timeout(1400 if not IS_LONG else 7400)
@pytest.mark.parametrize("mpi", COUNTS)
def test_strikes(mount_root: Path, guarded: None, mpi: str) -> None:
    seed = int(os.environ.get("MPIFS_STRIKES_SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed {seed}")
    root = mount_root / f"strikes-{mpi}"
    root.mkdir(mode=0o755)
    striker = Striker(root, seed, mpi=mpi, seconds=1.6 if IS_LONG else SECONDS)
    for number, what in enumerate(striker.schedule(COUNTS[mpi][IS_LONG])):
        striker.strike(what, fsck=IS_LONG or number % 5 == 4)
    striker.close()
    print(striker.figures())


@pytest.mark.parametrize("point", MKFS_POINTS)
def test_mkfs_killed(mount_root: Path, guarded: None, point: str) -> None:
    """There is no volume, and mkfs makes one; or there is a whole one."""
    store = mount_root / f"store-{point}"
    words = ("mkfs", store, "--workers", "2")
    killed = mpifs(mount_root, *words, check=False, env={"MPIFS_FAULT": point})
    assert killed.returncode == -signal.SIGKILL
    again = mpifs(mount_root, *words, check=False)
    is_made = point == "mkfs.renamed"
    assert (again.returncode, b"holds a volume already" in again.stderr) == (is_made, is_made)
    document = json.loads(mpifs(mount_root, "status", store, "--json").stdout)
    assert (document["files"], document["volume"]["workers"]) == (0, 2)


def test_first_mount_killed(volume: Callable[..., Volume], tmp_path: Path) -> None:
    """A worker dies while it makes its store; the mount succeeds with a new one, or fails and the
    next one succeeds."""
    once = tmp_path / "once"
    fault = {"MPIFS_FAULT": "mount.making", "MPIFS_FAULT_ONCE": str(once)}
    one = volume(mounted=False, env=fault)
    if one.mount(check=False).returncode:
        one.mount()
    assert once.exists()
    one.remount()  # a store that was given up is tried again.
    (one / "file").write_bytes(b"content" * 100_000)
    assert (one / "file").read_bytes() == b"content" * 100_000
    assert {row["state"] for row in one.status()["workers"]} == {"serving"}


class Case:
    """A manifest that a test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = Manifest(str(path))

    def full(self, name: str, seed: int, size: int, *events: str) -> None:
        self.manifest.may(name, Content(seed, 0, size))
        self.manifest.may(name, Content(seed, size, size))
        for event in events:
            self.manifest.say(event, name)

    def compare(self, there: dict[str, bytes], after_s: float) -> list[str]:
        """What is wrong in a volume that died so long after the last event."""
        promises = Promises({"old": Content(1, 5, 5)})
        with open(self.path, "rb") as file:
            promises.read(file)
        wrong, now = promises.compare(there, promises.last_s + after_s, INTERVAL_S)
        assert {n: c.high for n, c in now.items()} == {n: len(b) for n, b in there.items()} or wrong
        return wrong


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path / "manifest")


OLD: dict[str, Any] = {"old": stream(1)[:5]}


def test_the_manifest_notices_what_was_fsynced_and_is_gone(case: Case) -> None:
    case.full("new", 2, 100, "fsynced")
    assert case.compare({**OLD, "new": stream(2)[:100]}, 0) == []
    for bad in ({}, {"new": b""}, {"new": stream(2)[:99]}, {"new": stream(2)[1:101]}):
        assert len(case.compare({**OLD, **bad}, 0)) == 1


def test_the_manifest_notices_what_was_closed_long_ago(case: Case) -> None:
    case.full("new", 2, 100, "closed")
    for early in ({}, {"new": b""}, {"new": stream(2)[:40]}, {"new": stream(2)[:100]}):
        assert case.compare({**OLD, **early}, INTERVAL_S / 2) == []
        assert len(case.compare({**OLD, **early}, 2 * INTERVAL_S)) == (
            early != {"new": stream(2)[:100]}
        )


def test_the_manifest_notices_a_mixed_file_after_a_rename(case: Case) -> None:
    case.manifest.may("old", Content(2, 9, 9))
    for good in (stream(1)[:5], stream(2)[:9]):
        assert case.compare({"old": good}, 9) == []
    for bad in (b"", stream(2)[:5], stream(1)[:2] + stream(2)[2:9]):
        assert len(case.compare({"old": bad}, 9)) == 1
    assert len(case.compare({}, 9)) == 1


def test_the_manifest_notices_what_nobody_wrote_and_what_came_back(case: Case) -> None:
    case.manifest.may("old", NOTHING)
    assert case.compare(OLD, 9) == []
    case.manifest.say("closed", "old")
    assert case.compare({}, 9) == []
    assert len(case.compare(OLD, 9)) == 1
    assert len(case.compare({"other": b""}, 9)) == 1
