"""Every misuse gets the errno that a local file system gives: one table."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from errno import (
    E2BIG,
    EBADF,
    EBUSY,
    EEXIST,
    EFBIG,
    EINVAL,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENODATA,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
)
from pathlib import Path
from typing import Any

import pytest

from tests.mount.calls import forked, libc, opened, put, raises, renameat2

Call = Callable[[Path], Any]
LONG = "n" * 256


def _open(name: str, flags: int) -> Call:
    return lambda d: os.close(os.open(f"{d}/{name}", flags, 0o644))


def _with(flags: int, action: Callable[[int], Any], name: str = "file") -> Call:
    def call(d: Path) -> None:
        with opened(d / name, flags) as fd:
            action(fd)

    return call


CASES: list[tuple[str, Call, tuple[int, ...]]] = [
    ("open missing", _open("none", os.O_RDONLY), (ENOENT,)),
    ("open missing parent", _open("none/x", os.O_RDWR | os.O_CREAT), (ENOENT,)),
    ("open below a file", _open("file/x", os.O_RDONLY), (ENOTDIR,)),
    ("create below a file", _open("file/x", os.O_RDWR | os.O_CREAT), (ENOTDIR,)),
    ("open file with slash", _open("file/", os.O_RDONLY), (ENOTDIR,)),
    ("create with slash", _open("none/", os.O_RDWR | os.O_CREAT), (EISDIR,)),
    ("O_EXCL on file", _open("file", os.O_RDWR | os.O_CREAT | os.O_EXCL), (EEXIST,)),
    ("O_EXCL on folder", _open("empty", os.O_RDWR | os.O_CREAT | os.O_EXCL), (EEXIST,)),
    ("O_EXCL on dangling link", _open("dangling", os.O_RDWR | os.O_CREAT | os.O_EXCL), (EEXIST,)),
    ("write folder", _open("empty", os.O_WRONLY), (EISDIR,)),
    ("O_TRUNC folder", _open("empty", os.O_RDWR | os.O_TRUNC), (EISDIR,)),
    ("O_CREAT folder", _open("empty", os.O_RDONLY | os.O_CREAT), (EISDIR,)),
    ("O_DIRECTORY on file", _open("file", os.O_RDONLY | os.O_DIRECTORY), (ENOTDIR,)),
    ("O_DIRECTORY via link to file", _open("link", os.O_RDONLY | os.O_DIRECTORY), (ENOTDIR,)),
    ("O_NOFOLLOW on link", _open("link", os.O_RDONLY | os.O_NOFOLLOW), (ELOOP,)),
    ("link loop", _open("loop", os.O_RDONLY), (ELOOP,)),
    ("dangling link", _open("dangling", os.O_RDONLY), (ENOENT,)),
    ("fifo O_NONBLOCK without reader", _open("fifo", os.O_WRONLY | os.O_NONBLOCK), (ENXIO,)),
    ("open name too long", _open(LONG, os.O_RDWR | os.O_CREAT), (ENAMETOOLONG,)),
    ("stat name too long", lambda d: os.stat(d / LONG), (ENAMETOOLONG,)),
    ("mkdir name too long", lambda d: os.mkdir(d / LONG), (ENAMETOOLONG,)),
    ("symlink name too long", lambda d: os.symlink("x", d / LONG), (ENAMETOOLONG,)),
    ("link name too long", lambda d: os.link(d / "file", d / LONG), (ENAMETOOLONG,)),
    ("rename name too long", lambda d: os.rename(d / "file", d / LONG), (ENAMETOOLONG,)),
    ("unlink name too long", lambda d: os.unlink(d / LONG), (ENAMETOOLONG,)),
    ("mkfifo name too long", lambda d: os.mkfifo(d / LONG), (ENAMETOOLONG,)),
    ("symlink target too long", lambda d: os.symlink("t" * 4096, d / "new"), (ENAMETOOLONG,)),
    ("symlink to nothing", lambda d: os.symlink("", d / "new"), (ENOENT,)),
    ("symlink over file", lambda d: os.symlink("x", d / "file"), (EEXIST,)),
    ("mkdir on file", lambda d: os.mkdir(d / "file"), (EEXIST,)),
    ("mkdir on folder", lambda d: os.mkdir(d / "empty"), (EEXIST,)),
    ("mkdir on dangling link", lambda d: os.mkdir(d / "dangling"), (EEXIST,)),
    ("mkdir below missing", lambda d: os.mkdir(d / "none/x"), (ENOENT,)),
    ("mkdir below file", lambda d: os.mkdir(d / "file/x"), (ENOTDIR,)),
    ("mkfifo on file", lambda d: os.mkfifo(d / "file"), (EEXIST,)),
    ("rmdir missing", lambda d: os.rmdir(d / "none"), (ENOENT,)),
    ("rmdir file", lambda d: os.rmdir(d / "file"), (ENOTDIR,)),
    ("rmdir link to folder", lambda d: os.rmdir(d / "dirlink"), (ENOTDIR,)),
    ("rmdir full", lambda d: os.rmdir(d / "full"), (ENOTEMPTY, EEXIST)),
    ("rmdir .", lambda d: os.rmdir(f"{d}/empty/."), (EINVAL,)),
    ("rmdir ..", lambda d: os.rmdir(f"{d}/full/sub/.."), (ENOTEMPTY, EEXIST)),
    ("unlink missing", lambda d: os.unlink(d / "none"), (ENOENT,)),
    ("unlink folder", lambda d: os.unlink(d / "empty"), (EISDIR,)),
    ("unlink file/", lambda d: os.unlink(f"{d}/file/"), (ENOTDIR,)),
    ("link folder", lambda d: os.link(d / "empty", d / "new"), (EPERM,)),
    ("link to existing", lambda d: os.link(d / "file", d / "link"), (EEXIST,)),
    ("link missing", lambda d: os.link(d / "none", d / "new"), (ENOENT,)),
    ("rename missing", lambda d: os.rename(d / "none", d / "new"), (ENOENT,)),
    ("rename .", lambda d: os.rename(f"{d}/empty/.", d / "new"), (EBUSY, EINVAL)),
    ("rename into itself", lambda d: os.rename(d / "full", d / "full/sub/new"), (EINVAL,)),
    (
        "rename onto its parent",
        lambda d: os.rename(d / "full/sub", d / "full"),
        (ENOTEMPTY, EEXIST),
    ),
    ("rename file to name/", lambda d: os.rename(d / "file", f"{d}/new/"), (ENOTDIR,)),
    ("rename both flags", lambda d: renameat2(d / "file", d / "full", 3), (EINVAL,)),
    ("rename unknown flag", lambda d: renameat2(d / "file", d / "full", 64), (EINVAL,)),
    ("readlink file", lambda d: os.readlink(d / "file"), (EINVAL,)),
    ("readdir file", lambda d: os.listdir(d / "file"), (ENOTDIR,)),
    ("truncate folder", lambda d: os.truncate(d / "empty", 0), (EISDIR,)),
    ("truncate negative", lambda d: os.truncate(d / "file", -1), (EINVAL,)),
    ("truncate missing", lambda d: os.truncate(d / "none", 0), (ENOENT,)),
    ("ftruncate read-only", _with(os.O_RDONLY, lambda fd: os.ftruncate(fd, 0)), (EINVAL, EBADF)),
    ("write read-only", _with(os.O_RDONLY, lambda fd: os.write(fd, b"x")), (EBADF,)),
    ("read write-only", _with(os.O_WRONLY, lambda fd: os.read(fd, 1)), (EBADF,)),
    ("read folder", _with(os.O_RDONLY, lambda fd: os.read(fd, 1), "empty"), (EISDIR,)),
    ("pread negative", _with(os.O_RDONLY, lambda fd: os.pread(fd, 1, -1)), (EINVAL,)),
    ("pwrite negative", _with(os.O_RDWR, lambda fd: os.pwrite(fd, b"x", -1)), (EINVAL,)),
    ("lseek negative", _with(os.O_RDWR, lambda fd: os.lseek(fd, -1, os.SEEK_SET)), (EINVAL,)),
    ("lseek whence", _with(os.O_RDWR, lambda fd: os.lseek(fd, 0, 99)), (EINVAL,)),
    ("SEEK_DATA behind end", _with(os.O_RDWR, lambda fd: os.lseek(fd, 99, os.SEEK_DATA)), (ENXIO,)),
    ("chmod missing", lambda d: os.chmod(d / "none", 0o600), (ENOENT,)),
    ("chown missing", lambda d: os.chown(d / "none", 0, 0), (ENOENT,)),
    ("utime missing", lambda d: os.utime(d / "none"), (ENOENT,)),
    ("utime through a file", lambda d: os.utime(d / "file/x"), (ENOTDIR,)),
    ("statvfs missing", lambda d: os.statvfs(d / "none"), (ENOENT,)),
    ("getxattr missing attribute", lambda d: os.getxattr(d / "file", "user.none"), (ENODATA,)),
    ("getxattr missing file", lambda d: os.getxattr(d / "none", "user.none"), (ENOENT,)),
    ("removexattr missing", lambda d: os.removexattr(d / "file", "user.none"), (ENODATA,)),
    (
        "setxattr create",
        lambda d: os.setxattr(d / "file", "user.a", b"2", os.XATTR_CREATE),
        (EEXIST,),
    ),
    (
        "setxattr replace",
        lambda d: os.setxattr(d / "file", "user.b", b"2", os.XATTR_REPLACE),
        (ENODATA,),
    ),
    (
        "setxattr name too long",
        lambda d: os.setxattr(d / "file", "user." + "n" * 251, b""),
        (ERANGE,),
    ),
    (
        "setxattr value too long",
        lambda d: os.setxattr(d / "file", "user.v", bytes(65537)),
        (E2BIG, ERANGE),
    ),
    ("setxattr without namespace", lambda d: os.setxattr(d / "file", "plain", b""), (EOPNOTSUPP,)),
    ("setxattr system", lambda d: os.setxattr(d / "file", "system.mine", b""), (EOPNOTSUPP,)),
    (
        "user xattr on symlink",
        lambda d: os.setxattr(d / "link", "user.a", b"", follow_symlinks=False),
        (EPERM,),
    ),
    ("user xattr on fifo", lambda d: os.setxattr(d / "fifo", "user.a", b""), (EPERM,)),
    (
        "getxattr small buffer",
        lambda d: libc.getxattr(bytes(d / "file"), b"user.a", bytes(2), 2),
        (ERANGE,),
    ),
    ("listxattr small buffer", lambda d: libc.listxattr(bytes(d / "file"), bytes(2), 2), (ERANGE,)),
]


@pytest.fixture(name="tree")
def _tree(here: Path) -> Path:
    put(here / "file", b"hello")
    os.setxattr(here / "file", "user.a", b"value")
    (here / "empty").mkdir()
    (here / "full" / "sub").mkdir(parents=True)
    os.mkfifo(here / "fifo")
    for name, target in (
        ("link", "file"),
        ("dirlink", "empty"),
        ("dangling", "none"),
        ("loop", "loop"),
    ):
        os.symlink(target, here / name)
    return here


def test_errno_of_every_misuse(tree: Path) -> None:
    before = sorted(os.listdir(tree))
    wrong = []
    for name, call, numbers in CASES:
        try:
            with raises(*numbers):
                call(tree)
        except (AssertionError, pytest.fail.Exception) as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)
    assert sorted(os.listdir(tree)) == before
    assert (tree / "file").read_bytes() == b"hello"


def test_path_of_4095_bytes_works_and_4096_not(here: Path) -> None:
    def child() -> None:
        os.chdir(here)
        folder = ""
        while len(folder) < 3890:
            folder += "d" * 200 + "/"
            os.mkdir(folder)
        path = folder + "f" * (4095 - len(folder))
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.rename(path, path[:-1])
        os.link(path[:-1], path)
        assert os.stat(path).st_nlink == 2
        with raises(ENAMETOOLONG):
            os.stat(path + "x")

    forked(child)()


def test_file_size_limit_gives_efbig(here: Path) -> None:
    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with opened(here / "f", os.O_RDWR | os.O_CREAT) as fd:
            assert os.pwrite(fd, bytes(200_000), 0) == 100_000
            with raises(EFBIG):
                os.pwrite(fd, b"x", 100_000)
            with raises(EFBIG):
                os.ftruncate(fd, 100_001)

    forked(child)()
    assert (here / "f").stat().st_size == 100_000


@pytest.mark.not_plain
def test_largest_offset(here: Path) -> None:
    with opened(here / "f", os.O_RDWR | os.O_CREAT) as fd:
        assert os.pwrite(fd, b"z", 2**62 + 12_345) == 1
        assert os.fstat(fd).st_size == 2**62 + 12_346
        assert os.pread(fd, 10, 2**62 + 12_344) == b"\0z"
        with raises(EFBIG, EINVAL):
            os.pwrite(fd, b"z", 2**63 - 1)
        os.ftruncate(fd, 1)
        assert os.pread(fd, 10, 0) == b"\0"


@pytest.mark.not_plain
def test_refused_on_purpose(tree: Path) -> None:
    acl = bytes.fromhex(
        "02000000 01000600ffffffff 04000400ffffffff 20000400ffffffff".replace(" ", "")
    )
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        with raises(EOPNOTSUPP):
            os.setxattr(tree / "empty", name, acl)
    with raises(EINVAL):
        renameat2(tree / "file", tree / "new", 4)  # RENAME_WHITEOUT
    assert (tree / "file").exists()
    assert not os.path.lexists(tree / "new")
