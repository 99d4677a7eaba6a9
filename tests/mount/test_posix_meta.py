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

from tests.mount.helpers import (
    NOBODY,
    UTIME_NOW,
    UTIME_OMIT,
    as_user,
    needs_root,
    opened,
    outcome,
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


@needs_root
def test_set_id_bits_are_cleared(here: Path) -> None:
    """By writes, truncates and chown of others; root's writes keep them."""

    def write(path: Path) -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.pwrite(fd, b"x", 0)

    def ftruncate(path: Path) -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.ftruncate(fd, 1)

    wrong = []
    for mode, want in ((0o6777, 0o777), (0o4766, 0o766), (0o2777, 0o777), (0o4777, 0o777)):
        for name, action in (
            ("write", write),
            ("truncate", lambda p: os.truncate(p, 2)),
            ("ftruncate", ftruncate),
        ):
            path = put(here / f"{name}{mode:o}", b"12345")
            os.chmod(path, mode)
            as_user(action, path)
            if mode_of(path) != want:
                wrong.append(f"{name} by nobody: {mode:o} → {mode_of(path):o}, wanted {want:o}")
    for action in (write, ftruncate):
        path = put(here / "root", b"12345")
        os.chmod(path, 0o6755)
        action(path)
        if mode_of(path) != 0o6755:
            wrong.append(f"{action.__name__} by root: {mode_of(path):o}")
    path = put(here / "owned")
    os.chmod(path, 0o6755)
    os.chown(path, OTHER, OTHER)
    if mode_of(path) != 0o755:
        wrong.append(f"chown by root: {mode_of(path):o}")
    folder = here / "folder"
    folder.mkdir()
    os.chmod(folder, 0o6755)
    os.chown(folder, OTHER, OTHER)
    if mode_of(folder) != 0o6755:
        wrong.append(f"chown of a folder: {mode_of(folder):o}")
    assert not wrong, "\n".join(wrong)


@needs_root
def test_set_gid_folders(here: Path) -> None:
    shared = here / "shared"
    shared.mkdir()
    os.chown(shared, 0, OTHER)
    os.chmod(shared, 0o2777)

    def child() -> None:
        put(shared / "file")
        (shared / "sub").mkdir()
        (shared / "sub" / "subsub").mkdir()
        os.symlink("x", shared / "link")
        os.mkfifo(shared / "fifo")

    as_user(child)
    for name in ("file", "sub", "link", "fifo", "sub/subsub"):
        info = os.lstat(shared / name)
        assert (info.st_uid, info.st_gid) == (NOBODY, OTHER), name
        assert bool(info.st_mode & stat.S_ISGID) == name.startswith("sub"), name
    plain = here / "plain"
    plain.mkdir()
    os.chmod(plain, 0o777)
    as_user(lambda: put(plain / "f"))
    assert ((plain / "f").stat().st_uid, (plain / "f").stat().st_gid) == (NOBODY, NOBODY)


@needs_root
def test_permissions_of_another_user(here: Path) -> None:
    """What nobody (65534) may and may not do; one row each."""
    own, closed, sticky = here / "own", here / "closed", here / "sticky"
    for folder, mode in ((own, 0o777), (closed, 0o755), (sticky, 0o1777)):
        folder.mkdir()
        os.chmod(folder, mode)
        put(folder / "roots", b"secret")
        os.chmod(folder / "roots", 0o604)
        put(folder / "private")
        os.chmod(folder / "private", 0o600)
        (folder / "dir").mkdir()
        (folder / "locked").mkdir(0o700)
        put(folder / "locked" / "in")
    put(own / "his")
    os.chown(own / "his", NOBODY, OTHER)

    def rows() -> dict[str, Any]:
        def opening(path: Path, flags: int) -> Any:
            return outcome(lambda: os.close(os.open(path, flags)))

        calls: dict[str, Callable[[], Any]] = {
            "read 604": lambda: opening(closed / "roots", os.O_RDONLY),
            "write 604": lambda: opening(closed / "roots", os.O_WRONLY),
            "read 600": lambda: opening(closed / "private", os.O_RDONLY),
            "trunc 604": lambda: opening(closed / "roots", os.O_RDONLY | os.O_TRUNC),
            "truncate 604": lambda: os.truncate(closed / "roots", 0),
            "create": lambda: put(closed / "new"),
            "mkdir": lambda: (closed / "new").mkdir(),
            "unlink": lambda: os.unlink(closed / "roots"),
            "rename": lambda: os.rename(closed / "roots", own / "stolen"),
            "search": lambda: os.stat(closed / "locked/in"),
            "list": lambda: os.listdir(closed / "locked"),
            "sticky unlink": lambda: os.unlink(sticky / "roots"),
            "sticky rename": lambda: os.rename(sticky / "roots", sticky / "other"),
            "sticky rmdir": lambda: os.rmdir(sticky / "dir"),
            "sticky own": lambda: (put(sticky / "mine"), os.unlink(sticky / "mine"))[1],
            "sticky over": lambda: os.rename(put(sticky / "mine2"), sticky / "roots"),
            "chmod": lambda: os.chmod(own / "roots", 0o777),
            "chown": lambda: os.chown(own / "roots", NOBODY, -1),
            "give away": lambda: os.chown(own / "his", 0, -1),
            "foreign group": lambda: os.chown(own / "his", -1, 77),
            "own group": lambda: os.chown(own / "his", -1, NOBODY),
            "utime": lambda: os.utime(own / "roots", (1, 1)),
            "touch": lambda: os.utime(own / "private"),
            "setxattr": lambda: os.setxattr(own / "roots", "user.x", b""),
            "getxattr": lambda: os.getxattr(own / "private", "user.x"),
            "access": lambda: (
                os.access(closed / "roots", os.R_OK),
                os.access(closed / "roots", os.W_OK),
                os.access(closed / "private", os.R_OK),
            ),
            "device": lambda: os.mknod(own / "dev", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
            "loose unlink": lambda: os.unlink(own / "roots"),
        }
        return {name: outcome(call) for name, call in calls.items()}

    got = as_user(rows)
    want = {
        "read 604": None, "write 604": "EACCES", "read 600": "EACCES", "trunc 604": "EACCES", "truncate 604": "EACCES", "create": "EACCES",
        "mkdir": "EACCES", "unlink": "EACCES", "rename": "EACCES", "search": "EACCES", "list": "EACCES", "sticky unlink": "EPERM",
        "sticky rename": "EPERM", "sticky rmdir": "EPERM", "sticky own": None, "sticky over": "EPERM", "chmod": "EPERM", "chown": "EPERM",
        "give away": "EPERM", "foreign group": "EPERM", "own group": None, "utime": "EPERM", "touch": "EACCES", "setxattr": "EACCES",
        "getxattr": "EACCES", "access": (True, False, False), "device": "EPERM", "loose unlink": None,
    }  # fmt: skip
    assert got == want
    assert (closed / "roots").read_bytes() == b"secret"


@needs_root
def test_chmod_outside_own_groups_drops_set_gid(here: Path) -> None:
    put(here / "f")
    os.chown(here / "f", NOBODY, OTHER)
    as_user(os.chmod, here / "f", 0o2755)
    assert mode_of(here / "f") == 0o755
    as_user(os.chmod, here / "f", 0o2755, groups=(OTHER,))
    assert mode_of(here / "f") == 0o2755


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
