"""Modes, owners, times, extended attributes, permissions, figures of the file system."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from errno import EACCES, EPERM
from pathlib import Path
from typing import Any

import pytest

from tests.mount.calls import (
    UTIME_NOW,
    UTIME_OMIT,
    as_user,
    needs_root,
    opened,
    pattern,
    put,
    raises,
    run,
    tick,
    utimensat,
)

OTHER = 1234


def mode_of(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_chmod_keeps_every_bit(here: Path) -> None:
    put(here / "f")
    (here / "d").mkdir()
    for name in ("f", "d"):
        for mode in (0, 0o777, 0o7777, 0o4700, 0o2070, 0o1007, 0o640):
            os.chmod(here / name, mode)
            assert mode_of(here / name) == mode
    with opened(here / "f") as fd:
        os.fchmod(fd, 0o612)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == mode_of(here / "f") == 0o612


@needs_root
def test_chown(here: Path) -> None:
    put(here / "f")
    os.symlink("f", here / "s")
    os.chown(here / "f", 1, 2)
    os.chown(here / "f", -1, 3)
    os.chown(here / "f", 4, -1)
    os.chown(here / "f", -1, -1)
    os.lchown(here / "s", 5, 6)
    assert [(os.lstat(p).st_uid, os.lstat(p).st_gid) for p in (here / "f", here / "s")] == [
        (4, 3),
        (5, 6),
    ]
    with opened(here / "f") as fd:
        os.fchown(fd, 2**32 - 2, 2**31)
        assert (os.fstat(fd).st_uid, os.fstat(fd).st_gid) == (2**32 - 2, 2**31)


TIMES = [
    0,
    1,
    999_999_999,
    1_234_567_890_123_456_789,
    -1,
    -1_000_000_000,
    -123_456_789_123,
    (2**31 + 5) * 10**9 + 1,
    (2**32 + 5) * 10**9 + 999_999_999,
    14_000_000_000 * 10**9,
]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_times_to_the_nanosecond(here: Path, kind: str) -> None:
    path = here / "x"
    {"file": lambda: put(path), "folder": path.mkdir, "link": lambda: os.symlink("gone", path)}[
        kind
    ]()
    for atime in TIMES:
        mtime = TIMES[(TIMES.index(atime) + 3) % len(TIMES)]
        os.utime(path, ns=(atime, mtime), follow_symlinks=False)
        info = os.lstat(path)
        assert (info.st_atime_ns, info.st_mtime_ns) == (atime, mtime)


def test_now_and_omit(here: Path) -> None:
    path = put(here / "f")
    for number, (atime, mtime) in enumerate(
        [
            ((5, 6), (0, UTIME_OMIT)),
            ((0, UTIME_OMIT), (7, 8)),
            ((0, UTIME_NOW), (0, UTIME_OMIT)),
            ((0, UTIME_OMIT), (0, UTIME_NOW)),
            ((0, UTIME_NOW), (9, 10)),
            ((11, 12), (0, UTIME_NOW)),
            ((0, UTIME_NOW), (0, UTIME_NOW)),
            ((0, UTIME_OMIT), (0, UTIME_OMIT)),
        ]
    ):
        os.utime(path, ns=(1_000_000_001, 2_000_000_002))
        start = time.time_ns() - 20_000_000
        utimensat(path, atime, mtime)
        info = path.stat()
        for given, old, got in (
            (atime, 1_000_000_001, info.st_atime_ns),
            (mtime, 2_000_000_002, info.st_mtime_ns),
        ):
            match given[1]:
                case 1073741822:
                    assert got == old, number
                case 1073741823:
                    assert start <= got <= time.time_ns() + 20_000_000, number
                case _:
                    assert got == given[0] * 10**9 + given[1], number
    run("touch", "-d", "1999-12-31 23:59:59.123456789 UTC", path)
    assert path.stat().st_mtime_ns == 946_684_799_123_456_789
    run("touch", path)
    assert abs(path.stat().st_mtime_ns - time.time_ns()) < 5_000_000_000
    with opened(path) as fd:
        os.utime(fd, ns=(3, 4))
        assert (os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns) == (3, 4)


def test_what_changes_which_time(here: Path) -> None:
    path = put(here / "f", b"text")
    with opened(path) as fd:
        steps: dict[str, tuple[Callable[[], Any], bool]] = {
            "write": (lambda: os.pwrite(fd, b"x", 0), True),
            "extend": (lambda: os.pwrite(fd, b"x", 100), True),
            "truncate": (lambda: os.truncate(path, 50), True),
            "ftruncate": (lambda: os.ftruncate(fd, 60), True),
            "ftruncate same": (lambda: os.ftruncate(fd, 60), True),
            "chmod": (lambda: os.chmod(path, 0o600), False),
            "chmod same": (lambda: os.chmod(path, 0o600), False),
            "link": (lambda: os.link(path, here / "l"), False),
            "unlink": (lambda: os.unlink(here / "l"), False),
            "rename": (lambda: (os.rename(path, here / "r"), os.rename(here / "r", path)), False),
            "setxattr": (lambda: os.setxattr(path, "user.x", b"1"), False),
            "removexattr": (lambda: os.removexattr(path, "user.x"), False),
        }
        if os.geteuid() == 0:
            steps["chown"] = (lambda: os.chown(path, 1, 1), False)
        wrong = []
        for name, (step, changes_mtime) in steps.items():
            tick(path)
            before = os.stat(path)
            step()
            after = os.stat(path)
            if (
                after.st_ctime_ns <= before.st_ctime_ns
                or (after.st_mtime_ns > before.st_mtime_ns) != changes_mtime
            ):
                wrong.append(
                    f"{name}: ctime {after.st_ctime_ns - before.st_ctime_ns:+}, mtime {after.st_mtime_ns - before.st_mtime_ns:+} ns"
                )
        assert not wrong, "\n".join(wrong)
    before = os.stat(path)
    assert path.read_bytes()
    with opened(path) as fd:
        os.fsync(fd)
    assert (os.stat(path).st_mtime_ns, os.stat(path).st_ctime_ns) == (
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


def test_written_file_keeps_times_set_afterwards(here: Path) -> None:
    """The late flush of data must not touch a time that utimensat set (cp -p, tar, rsync)."""
    for name in ("closed", "open"):
        fd = os.open(here / name, os.O_CREAT | os.O_RDWR)
        os.write(fd, pattern(200_000))
        os.utime(fd, ns=(1, 1_111_111_111))
        if name == "closed":
            os.close(fd)
        os.sync()
        time.sleep(1.3 if name == "open" else 0)  # longer than dirty data may stay
        assert (here / name).stat().st_mtime_ns == 1_111_111_111
        if name == "open":
            os.close(fd)


def test_xattrs(here: Path, variant: str) -> None:
    path = put(here / "f")
    (here / "d").mkdir()
    big = 3000 if variant == "plain" else 65_536
    values = {
        "user.empty": b"",
        "user.zero\xff": b"\0" * 10,
        "user.bin": pattern(1000),
        "user." + "n" * 250: b"long name",
    }
    for target in (path, here / "d"):
        for name, value in values.items():
            os.setxattr(target, name, value)
        assert {n: os.getxattr(target, n) for n in os.listxattr(target)} == values
        os.setxattr(target, "user.empty", pattern(2000, 5), os.XATTR_REPLACE)
        os.setxattr(target, "user.new", b"n", os.XATTR_CREATE)
        assert os.getxattr(target, "user.empty") == pattern(2000, 5)
        for name in [*values, "user.new"]:
            os.removexattr(target, name)
        assert os.listxattr(target) == []
    os.setxattr(path, "user.big", pattern(big))
    assert os.getxattr(path, "user.big") == pattern(big)
    os.rename(path, here / "g")
    os.link(here / "g", here / "h")
    assert os.getxattr(here / "h", "user.big") == pattern(big)
    with opened(here / "g") as fd:
        os.setxattr(fd, "user.fd", b"1")
        os.unlink(here / "g")
        os.unlink(here / "h")
    put(here / "g")
    assert os.listxattr(here / "g") == []
    if os.geteuid() == 0:
        os.setxattr(here / "g", "trusted.mine", b"t")
        assert os.getxattr(here / "g", "trusted.mine") == b"t"
        with raises(EPERM, EACCES):
            as_user(os.setxattr, here / "g", "trusted.mine", b"t")


@pytest.mark.not_plain
def test_many_xattrs_stay_listable(here: Path) -> None:
    path = put(here / "f")
    names = {f"user.number-{n:04}" for n in range(500)}
    for name in names:
        os.setxattr(path, name, name.encode())
    assert set(os.listxattr(path)) == names


def test_statfs(here: Path) -> None:
    info = os.statvfs(here)
    assert info.f_namemax == 255
    assert info.f_frsize > 0
    assert info.f_bsize > 0
    assert 0 < info.f_bavail <= info.f_bfree <= info.f_blocks
    assert 0 < info.f_ffree <= info.f_files
    with opened(here / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, pattern(20_000_000))
        os.fsync(fd)
        assert os.fstatvfs(fd).f_namemax == 255
    assert b"%" in run("df", here).stdout
    assert int(run("du", "-sk", "--apparent-size", here).stdout.split()[0]) >= 19_000
    assert 19_000 <= int(run("du", "-sk", here).stdout.split()[0]) <= 23_000


def test_inode_numbers_are_stable(here: Path) -> None:
    files = [put(here / f"{n}") for n in range(50)]
    numbers = [f.stat().st_ino for f in files]
    assert len(set(numbers)) == 50
    assert 0 not in numbers
    assert {e.inode() for e in os.scandir(here)} == set(numbers)
    os.rename(files[0], here / "renamed")
    assert (here / "renamed").stat().st_ino == numbers[0]
    assert len({f.stat().st_dev for f in files[1:]}) == 1
