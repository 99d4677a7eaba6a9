"""`mpifs bench` for real: a volume, a plain folder, all limits, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpifs.bench.phases import PHASES
from tests.mount.harness import TOKEN, fuse_mounts, mpifs, poll, processes_of

TINY = ("--quick", "--size", "8MiB", "--files", "32", "--idle", "0.4")


@pytest.fixture
def home(mount_root: Path, guarded: None) -> Path:
    """A folder of the test's own."""
    folder = mount_root / f"bench-{time.monotonic_ns()}"
    folder.mkdir()
    return folder


def files_below(folder: Path) -> list[str]:
    """What lies there, a volume's own folders left out."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "vol" not in path.relative_to(folder).parts and path.parent.name != "commands"
    )


def assert_nothing_left(home: Path) -> None:
    """No process, no mount, no folder; what processes are ending may take a moment."""
    poll(lambda: not processes_of(home), 20, "the benchmark's processes end")
    assert fuse_mounts(home) == []
    assert [name for name in files_below(home) if "bench-" in name or "mnt-" in name] == []


@pytest.mark.limit(100)
def test_all_phases_and_limits_are_measured_and_nothing_is_left(home: Path):
    mpifs(home, "mkfs", home / "vol", "--workers", "2")
    page = home / "page.html"
    out = mpifs(home, "bench", home / "vol", *TINY, "--json", "--html", page).stdout
    document = json.loads(out)
    rows = {row["name"]: row for row in document["phases"]}
    assert list(rows) == [phase.name for phase in PHASES]
    volume = str(home / "vol")
    for phase in PHASES:
        row = rows[phase.name]
        found = row["targets"].get(volume)
        assert found is not None, phase.name
        assert found["low"] <= found["median"] <= found["high"]
        assert found["median"] > 0 or phase.name == "idle_cpu"
        assert set(row["limits"]) == set(phase.limits), phase.name
        assert all(limit["median"] > 0 for limit in row["limits"].values()), phase.name
        assert (row["lowest"] is not None) == bool(phase.limits)
        assert (volume in row["shares"]) == bool(phase.limits)
    assert rows["random_write_cost"]["targets"][volume]["median"] >= 1
    assert rows["idle_cpu"]["targets"][volume]["median"] < 200
    assert {each["name"] for each in document["ratios"]} >= {"hard_write_ratio", "create_ratio"}
    assert document["settings"]["workers"] == 2
    html = page.read_text()
    assert html.count("<svg") == len(PHASES)
    assert not re.search(r"(src|href)\s*=|https?://", html)
    assert_nothing_left(home)


@pytest.mark.limit(60)
def test_a_mounted_volume_keeps_its_files_and_another_folder_stands_beside(home: Path):
    mnt, other = home / "mnt", home / "other"
    mnt.mkdir()
    other.mkdir()
    mpifs(home, "mount", home / "vol", mnt, "-w", "1")
    (mnt / "own").write_bytes(b"mine")
    try:
        words = ("--quick", "--size", "8MiB", "--files", "16", "--only", "write_close,stat")
        done = mpifs(home, "bench", mnt, other, *words)
        for word in ("write + close", "null FUSE", str(mnt)[-12:], str(other)[-12:]):
            assert word.encode() in done.stdout
        assert files_below(other) == []
        assert sorted(os.listdir(mnt)) == ["own"]
        assert (mnt / "own").read_bytes() == b"mine"
        done = mpifs(home, "bench", home / "vol", "-o", "noatime", *words, check=False)
        assert done.returncode == 1
        assert b"is mounted already" in done.stderr
    finally:
        mpifs(home, "umount", mnt)
    assert_nothing_left(home)


@pytest.mark.limit(60)
def test_an_interrupted_run_leaves_nothing(home: Path):
    mpifs(home, "mkfs", home / "vol", "--workers", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "mpifs", "bench", home / "vol", "--quick", "--size", "32MiB"],
        env={**os.environ, TOKEN: str(home)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    poll(lambda: list(home.glob(".mpifs-bench-*/disk/big")), 40, "the phases begin")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=40)
    assert process.returncode == 1
    assert said.endswith(b"mpifs: interrupted\n")
    assert_nothing_left(home)


@pytest.mark.limit(60)
def test_a_mount_that_a_stranger_keeps_busy_loses_nothing(home: Path):
    mnt = home / "mnt"
    mnt.mkdir()
    mpifs(home, "mount", home / "vol", mnt, "-w", "1")
    (mnt / "own").write_bytes(b"mine")
    mpifs(home, "umount", mnt)
    words = [home / "vol", "--quick", "--size", "8MiB", "--files", "8", "--only", "stat"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mpifs", "bench", *words],
        env={**os.environ, TOKEN: str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    poll(lambda: list(home.glob(".mpifs-bench-*/mnt-*/own")), 40, "the volume is mounted")
    (own,) = home.glob(".mpifs-bench-*/mnt-*/own")
    with open(own, "rb"):
        _, said = process.communicate(timeout=50)
    assert process.returncode == 1
    assert b"is in use by process" in said
    assert own.read_bytes() == b"mine"
    mpifs(home, "umount", own.parent)
    poll(lambda: not processes_of(home), 20, "the volume's processes end")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("/none",), 1, b"mpifs: /none does not exist; make a volume with: mpifs mkfs /none\n"),
        (("/etc/passwd",), 1, b"mpifs: /etc/passwd is no folder; name a volume, a mount"),
        (("/tmp", "--only", "reed"), 2, b"there is no phase 'reed'"),
        (("/tmp", "--size", "1MiB"), 2, b"--size is at least 8MiB"),
        (("/tmp", "--size", "many"), 2, b"'many' is no size"),
        (("/tmp", "/tmp"), 2, b"a place is named twice"),
        (("/tmp", "--size", "4000TiB"), 1, b"the run needs"),
        (("/tmp", "--html", "/none/page"), 1, b"/none/page: No such file or directory"),
    ],
)
def test_wrong_words_are_told_in_one_line(
    home: Path, words: tuple[str, ...], code: int, said: bytes
):
    done = mpifs(home, "bench", *words, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert_nothing_left(home)
