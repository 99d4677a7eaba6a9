"""What other users may, and the set-id bits."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.calls import (
    NOBODY,
    as_user,
    needs_root,
    opened,
    outcome,
    put,
    run,
)

OTHER = 1234


def mode_of(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(os.lstat(path).st_mode)


@needs_root
def test_set_id_bits_are_cleared(here: Path) -> None:
    """By writes, truncates and chown of others; root's writes keep them."""

    def write(path: Path) -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.pwrite(fd, b"x", 0)

    def ftruncate(path: Path) -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.ftruncate(fd, 1)

    def reopen(path: Path) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))

    def allocate(path: Path) -> None:
        with opened(path, os.O_WRONLY) as fd:
            os.posix_fallocate(fd, 0, 100)

    wrong = []
    for mode, want in ((0o6777, 0o777), (0o4766, 0o766), (0o2777, 0o777), (0o4777, 0o777)):
        for name, action in (
            ("write", write),
            ("truncate", lambda p: os.truncate(p, 2)),
            ("ftruncate", ftruncate),
            ("open with O_TRUNC", reopen),
            ("fallocate", allocate),
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
def test_an_empty_file_loses_its_set_id_bits_by_o_trunc(here: Path) -> None:
    path = put(here / "empty")
    os.chmod(path, 0o6777)
    as_user(lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
    assert mode_of(path) == 0o777


@needs_root
def test_a_write_takes_capabilities_away(here: Path) -> None:
    """The kernel asks for them before the first write only, and must find what was set since."""
    name, value = "security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    path = put(here / "program", b"12345")
    with opened(path, os.O_WRONLY) as fd:
        for _ in range(2):
            os.pwrite(fd, b"x", 0)
            os.setxattr(path, name, value)
            assert os.getxattr(path, name) == value
            os.pwrite(fd, b"y", 0)
            with pytest.raises(OSError, match="No data available"):
                os.getxattr(path, name)


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
            "mkdir": (closed / "new").mkdir,
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


@needs_root
def test_immutable_and_append_only(here: Path) -> None:
    """chattr +i and +a: EPERM for what they forbid, until they are taken off."""
    file, folder = here / "file", here / "folder"
    spare = here / "spare"
    spare.write_bytes(b"")
    file.write_bytes(b"old")
    folder.mkdir()
    (folder / "inside").write_bytes(b"")
    chattr = ["chattr", "+i", str(file)]
    if subprocess.run(chattr, capture_output=True, check=False).returncode:
        pytest.skip("chattr is not supported here")

    def refused(*actions: Callable[[], object]) -> None:
        for action in actions:
            with pytest.raises(PermissionError):
                action()

    run("lsattr", file)
    refused(
        lambda: file.open("ab"),
        lambda: os.truncate(file, 0),
        file.unlink,
        lambda: file.rename(here / "other"),
        lambda: os.link(file, here / "other"),
        lambda: os.utime(file, (1, 1)),
        lambda: spare.rename(file),
    )
    assert file.read_bytes() == b"old"
    run("chattr", "-i", file)
    run("chattr", "+a", file)
    with file.open("ab") as stream:
        stream.write(b"new")
    refused(lambda: file.open("wb"), lambda: os.truncate(file, 0), file.unlink)
    run("chattr", "-a", file)
    assert file.read_bytes() == b"oldnew"
    file.unlink()
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode:
        return  # libfuse 2 passes no ioctl of a folder on
    refused(
        lambda: (folder / "new").write_bytes(b""),
        (folder / "inside").unlink,
        folder.rmdir,
        lambda: folder.rename(here / "elsewhere"),
    )
    run("chattr", "-i", folder)
    (folder / "new").write_bytes(b"")
