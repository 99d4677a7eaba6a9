"""The life of a mount: options, unmount while busy, dead mounts, a full pool."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.conftest import ROOT, Mounted


@pytest.mark.parametrize("major", [3, 2])
def test_describe_and_mount_table(mounted: Mounted) -> None:
    about = mounted.about
    assert about["binding"] == ("mfusepy" if mounted.major == 3 else "fusepy")
    assert about["libfuse"].startswith(f"{mounted.major}.")
    assert about["max_write"] == 1 << 20
    lines = Path("/proc/mounts").read_text().splitlines()
    row = next(line.split() for line in lines if str(mounted.path) in line)
    assert row[0] == "mpifs"
    assert row[2] == "fuse.mpifs"
    words = row[3].split(",")
    assert "default_permissions" in words
    assert "nosuid" not in words
    assert "nodev" not in words
    number = os.stat(mounted.path).st_dev
    knob = f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}/read_ahead_kb"
    assert Path(knob).read_text().strip() == "4096"


@pytest.mark.parametrize("major", [3, 2])
def test_largest_write_request(mounted: Mounted) -> None:
    mounted.calls()
    fd = os.open(mounted.path / "f", os.O_CREAT | os.O_WRONLY)
    page = mmap.mmap(-1, 1 << 20)  # aligned: the kernel sends whole pages of the writer's memory
    assert os.write(fd, page) == 1 << 20
    os.close(fd)
    assert mounted.calls()["write"] == 1


def test_mount_flags(mount_with: Callable[[str], Mounted]) -> None:
    mounted = mount_with("ro,nosuid,nodev,noexec,noatime,relatime,allow_other,fsname=vol")
    lines = Path("/proc/mounts").read_text().splitlines()
    row = next(line.split() for line in lines if str(mounted.path) in line)
    assert row[0] == "vol"
    words = set(row[3].split(","))
    assert {"ro", "nosuid", "nodev", "noexec", "noatime", "allow_other"} <= words
    with pytest.raises(OSError) as caught:
        (mounted.path / "f").touch()
    assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize("major", [3, 2])
def test_writeback(mount_with: Callable[[str], Mounted]) -> None:
    mounted = mount_with("writeback")
    path = mounted.path / "f"
    with path.open("wb", buffering=0) as file:
        for number in range(100):
            file.write(b"%02d" % number)
    assert path.read_bytes() == b"".join(b"%02d" % number for number in range(100))
    assert mounted.calls()["write"] < 20


@pytest.mark.parametrize("major", [3, 2])
def test_set_id_programs_and_permissions(mount_with: Callable[[str], Mounted]) -> None:
    mounted = mount_with("allow_other")
    mounted.path.chmod(0o777)
    program = mounted.path / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    secret = mounted.path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    nobody = {"user": 65534, "group": 65534, "extra_groups": ()}
    # Other folders on the way may be closed to nobody: go there by the working directory.
    shown = subprocess.run(
        ["./id", "-u"], cwd=mounted.path, capture_output=True, text=True, timeout=20, **nobody
    )
    assert shown.stdout.strip() == "0", shown.stderr
    denied = subprocess.run(
        ["cat", "secret"], cwd=mounted.path, capture_output=True, timeout=20, **nobody
    )
    assert denied.returncode == 1
    made = subprocess.run(
        ["sh", "-c", "umask 027; echo x > mine"], cwd=mounted.path, timeout=20, **nobody
    )
    assert made.returncode == 0
    found = (mounted.path / "mine").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o640)


@pytest.mark.parametrize("major", [3, 2])
def test_unmount_ends_everything(mounted: Mounted) -> None:
    (mounted.path / "f").write_text("x")
    assert mounted.ask("unmount 5") == "true" or mounted.process.wait(5) == 0
    assert mounted.process.wait(10) == 0
    assert not mounted.is_mounted()


def test_unmount_waits_for_its_users(mounted: Mounted) -> None:
    user = subprocess.Popen(["sleep", "1"], cwd=mounted.path)
    began = time.monotonic()
    mounted.ask("unmount 10")
    assert user.wait(10) == 0
    assert mounted.process.wait(10) == 0
    assert time.monotonic() - began > 0.5


@pytest.mark.parametrize("major", [3, 2])
def test_unmount_cuts_off_who_never_leaves(mounted: Mounted) -> None:
    fd = os.open(mounted.path / "f", os.O_CREAT | os.O_RDWR)
    try:
        began = time.monotonic()
        mounted.ask("unmount 0.3")
        assert mounted.process.wait(10) == 0
        assert time.monotonic() - began < 6
        assert not mounted.is_mounted()
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


@pytest.mark.parametrize("major", [3, 2])
def test_a_dead_mount_is_replaced(mount_with: Callable[[str], Mounted]) -> None:
    first = mount_with("")
    first.process.kill()
    first.process.wait(10)
    with pytest.raises(OSError) as caught:
        os.stat(first.path)
    assert caught.value.errno == errno.ENOTCONN
    second = Mounted(first.path, "", first.major, first.log.with_name("second"))
    try:
        second.wait_ready()
        (second.path / "f").write_text("served")
    finally:
        second.stop()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [("bogus", "unknown mount option 'bogus'"), ("threads=0", "a number from 1 to 64")],
)
def test_options_that_are_refused(tmp_path: Path, options: str, sentence: str) -> None:
    mounted = Mounted(tmp_path, options, 3, tmp_path.with_name("log"))
    try:
        assert mounted.process.wait(20) == 1
        assert sentence in mounted.log.read_text()
    finally:
        mounted.stop()


def test_full_and_mounted_folders_are_refused(mounted: Mounted, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for folder, sentence in ((tmp_path / "full", "is not empty"), (mounted.path, "already has")):
        other = Mounted(folder, "", mounted.major, tmp_path / "other-log")
        try:
            assert other.process.wait(20) == 1
            assert sentence in other.log.read_text()
        finally:
            other.process.kill()
            for pipe in (other.process.stdin, other.process.stdout):
                if pipe is not None:
                    pipe.close()


def test_no_child_processes_are_left(mounted: Mounted) -> None:
    children = Path(f"/proc/{mounted.process.pid}/task").glob("*/children")
    assert "".join(path.read_text() for path in children).strip() == ""


def test_only_the_binding_imports_the_bindings() -> None:
    for path in (ROOT / "mpifs").rglob("*.py"):
        text = path.read_text()
        if path.name != "binding.py":
            assert "import mfusepy" not in text
            assert "import fuse\n" not in text


@pytest.mark.parametrize("major", [3, 2])
def test_abandoned_handles_are_closed(mounted: Mounted) -> None:
    for number in range(20):
        (mounted.path / f"f{number}").write_text("x")
        (mounted.path / f"f{number}").read_text()
    subprocess.run(["umount", str(mounted.path)], check=True, timeout=20)
    assert mounted.process.wait(10) == 0
    word, _, rest = mounted.line().partition(" ")
    assert word == "ended"
    assert json.loads(rest)["open"] == 0
