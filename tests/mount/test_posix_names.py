"""Names and folders: creating, linking, renaming, listing."""

from __future__ import annotations

import itertools
import os
import stat
from errno import EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY
from pathlib import Path

import pytest

from tests.mount.calls import (
    EXCHANGE,
    NOREPLACE,
    ODD_NAMES,
    opened,
    put,
    raises,
    renameat2,
    tick,
)

KINDS = ("missing", "file", "link", "fifo", "empty", "full")


def make(path: Path, kind: str) -> None:
    """One object of a kind."""
    match kind:
        case "file":
            put(path, os.fsencode(path.name))
        case "link":
            os.symlink("target", path)
        case "fifo":
            os.mkfifo(path)
        case "empty" | "full":
            path.mkdir()
            if kind == "full":
                put(path / "inside")


def identity(path: Path) -> tuple[int, int] | None:
    """(inode, type) of a name."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    return info.st_ino, stat.S_IFMT(info.st_mode)


def expected(old: str, new: str, flags: int) -> int:
    """The errno rename(2) must give, 0 if it must work."""
    if old == "missing":
        return ENOENT
    if flags == NOREPLACE:
        return EEXIST if new != "missing" else 0
    if flags == EXCHANGE:
        return ENOENT if new == "missing" else 0
    if new == "missing":
        return 0
    is_folder = old in {"empty", "full"}
    if is_folder and new not in {"empty", "full"}:
        return ENOTDIR
    if not is_folder and new in {"empty", "full"}:
        return EISDIR
    return ENOTEMPTY if new == "full" else 0


@pytest.mark.parametrize("flags", [0, NOREPLACE, EXCHANGE])
def test_rename_matrix(here: Path, flags: int) -> None:
    wrong = []
    for number, (old, new, across) in enumerate(itertools.product(KINDS, KINDS, (False, True))):
        folder = here / f"{number}"
        (folder / "other").mkdir(parents=True)
        source, target = folder / "source", folder / ("other/target" if across else "target")
        make(source, old)
        make(target, new)
        before = identity(source), identity(target)
        want = expected(old, new, flags)
        try:
            renameat2(source, target, flags)
            got = 0
        except OSError as error:
            got = error.errno or 0
        after = identity(source), identity(target)
        if want:
            fine = got == want and after == before
        else:
            kept = before[1] if flags == EXCHANGE else None
            fine = got == 0 and after == (kept, before[0])
        if not fine:
            wrong.append(
                f"{old} → {new}, flags {flags}, across {across}: errno {got}, wanted {want}; {before} → {after}"
            )
    assert not wrong, "\n".join(wrong)


def test_rename_keeps_link_counts_of_folders(here: Path) -> None:
    for name in ("a", "b", "a/one", "a/two", "a/one/deep"):
        (here / name).mkdir()
    counts = lambda: [(here / n).stat().st_nlink for n in ("a", "b")]  # noqa: E731
    assert counts() == [4, 2]
    os.rename(here / "a/one", here / "b/moved")
    assert counts() == [3, 3]
    assert os.stat(here / "b/moved/..").st_ino == os.stat(here / "b").st_ino
    os.rename(here / "a/two", here / "b/two")
    os.rmdir(here / "b/moved/deep")
    os.rename(here / "b/moved", here / "b/two")
    assert counts() == [2, 3]
    assert os.listdir(here / "b") == ["two"]


def test_rename_to_itself_and_to_own_link(here: Path) -> None:
    put(here / "a", b"text")
    os.rename(here / "a", here / "a")
    os.link(here / "a", here / "b")
    os.rename(here / "a", here / "b")  # POSIX: same inode, nothing happens
    assert sorted(os.listdir(here)) == ["a", "b"]
    assert os.stat(here / "a").st_nlink == 2


def test_links_and_counts(here: Path) -> None:
    put(here / "a", b"text")
    for number in range(2, 30):
        os.link(here / "a", here / f"l{number}")
        assert {os.stat(here / "a").st_nlink, os.stat(here / f"l{number}").st_nlink} == {number}
    for number in range(29, 1, -1):
        os.unlink(here / f"l{number}")
        assert os.stat(here / "a").st_nlink == number - 1
    os.symlink("a", here / "s")
    os.link(here / "s", here / "s2", follow_symlinks=False)
    assert os.lstat(here / "s2").st_nlink == 2
    assert os.readlink(here / "s2") == "a"
    os.mkfifo(here / "p")
    os.link(here / "p", here / "p2")
    assert os.stat(here / "p2").st_ino == os.stat(here / "p").st_ino


@pytest.mark.parametrize("length", [1, 59, 60, 61, 255, 1000, 4095])
def test_symlink_of_any_length(here: Path, length: int) -> None:
    target = b"\xff" * length
    os.symlink(target, bytes(here / "s"))
    assert os.readlink(bytes(here / "s")) == target
    assert os.lstat(here / "s").st_size == length
    assert stat.S_ISLNK(os.lstat(here / "s").st_mode)


def test_odd_names(here: Path) -> None:
    top = os.fsencode(here)
    every = bytes(n for n in range(1, 256) if n != ord("/"))
    names = {*ODD_NAMES, every[:200], every[60:]}
    for number, name in enumerate(names):
        path = os.path.join(top, name)
        match number % 4:
            case 0:
                put(path, name)
            case 1:
                os.mkdir(path)
                put(os.path.join(path, name), name)
            case 2:
                os.symlink(name, path)
            case 3:
                put(path + b"" if len(name) < 250 else path, name)
                os.rename(path, path[:-1] + b"~")
                os.rename(path[:-1] + b"~", path)
    assert set(os.listdir(top)) == names
    for name in names:
        path = os.path.join(top, name)
        info = os.lstat(path)
        inner = os.path.join(path, name) if stat.S_ISDIR(info.st_mode) else path
        content = (
            os.readlink(path)
            if stat.S_ISLNK(info.st_mode)
            else Path(os.fsdecode(inner)).read_bytes()
        )
        assert content == name


def test_names_of_255_bytes_in_every_call(here: Path) -> None:
    one, two = here / ("n" * 255), here / ("é" * 127 + "x")
    put(one)
    os.rename(one, two)
    os.link(two, one)
    os.unlink(two)
    os.mkdir(two)
    os.rmdir(two)
    os.symlink("x", two)
    os.unlink(two)
    os.mkfifo(two)
    assert len(os.listdir(here)) == 2


def test_a_users_own_hidden_name_is_no_secret(here: Path) -> None:
    """libfuse hides removed open files under such names; a user's file of that name stays visible."""
    name = ".fuse_hidden0000000a00000001"
    put(here / "f", b"mine")
    os.rename(here / "f", here / name)
    assert os.listdir(here) == [name]
    assert (here / name).read_bytes() == b"mine"
    assert (here / name).stat().st_nlink == 1


def test_parents_times_follow_their_entries(here: Path) -> None:
    folder = here / "d"
    folder.mkdir()
    put(here / "f")
    steps = {
        "create": lambda: put(folder / "a"),
        "mkdir": (folder / "b").mkdir,
        "symlink": lambda: os.symlink("x", folder / "s"),
        "link": lambda: os.link(here / "f", folder / "l"),
        "mkfifo": lambda: os.mkfifo(folder / "p"),
        "rename inside": lambda: os.rename(folder / "a", folder / "c"),
        "rename in": lambda: os.rename(here / "f", folder / "f"),
        "rename out": lambda: os.rename(folder / "f", here / "g"),
        "unlink": lambda: os.unlink(folder / "c"),
        "rmdir": (folder / "b").rmdir,
    }
    wrong = []
    for name, step in steps.items():
        tick(folder)
        before = os.stat(folder)
        step()
        after = os.stat(folder)
        if not (after.st_mtime_ns > before.st_mtime_ns and after.st_ctime_ns == after.st_mtime_ns):
            wrong.append(name)
    assert not wrong
    for name, step in {
        "chmod": lambda: os.chmod(folder / "l", 0o600),
        "write": lambda: put(folder / "l", b"x"),
        "list": lambda: os.listdir(folder),
    }.items():
        before = os.stat(folder)
        step()
        assert os.stat(folder).st_mtime_ns == before.st_mtime_ns, name


def test_create_modes_and_umask(here: Path) -> None:
    for umask in (0, 0o022, 0o077, 0o777):
        os.umask(umask)
        with opened(here / f"f{umask}", os.O_CREAT | os.O_WRONLY, 0o6777):
            pass
        (here / f"d{umask}").mkdir(0o1777)
        os.mkfifo(here / f"p{umask}", 0o666)
        os.symlink("x", here / f"s{umask}")
        modes = [stat.S_IMODE(os.lstat(here / f"{k}{umask}").st_mode) for k in "fdps"]
        assert modes == [0o6777 & ~umask, 0o1777 & ~umask, 0o666 & ~umask, 0o777]
    os.umask(0o022)


def test_open_flags(here: Path) -> None:
    put(here / "f", b"0123456789")
    with opened(here / "f", os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        assert os.read(fd, 10) == b""
        os.write(fd, b"abc")
    with opened(here / "f", os.O_WRONLY | os.O_TRUNC):
        pass
    assert (here / "f").read_bytes() == b""
    with opened(here / "f", os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, b"one")
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"two")
        assert os.pread(fd, 10, 0) == b"onetwo"
        assert os.lseek(fd, 0, os.SEEK_CUR) == 6
    os.symlink("f", here / "s")
    with opened(here / "s", os.O_WRONLY | os.O_TRUNC):
        pass
    assert (here / "f").stat().st_size == 0
    os.symlink("born", here / "birth")
    put(here / "birth", b"through a dangling link")
    assert (here / "born").read_bytes() == b"through a dangling link"
    with opened(here, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
        assert os.stat("f", dir_fd=fd).st_size == 0
    with opened(here / "s", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert os.readlink("", dir_fd=fd) == "f"
    for flags in (os.O_SYNC, os.O_DSYNC, os.O_NOATIME, os.O_NONBLOCK, os.O_NOFOLLOW):
        with opened(here / "f", os.O_RDWR | flags) as fd:
            assert os.write(fd, b"flag") == 4
    with opened(here / "created and read-only", os.O_RDWR | os.O_CREAT, 0o400) as fd:
        assert os.write(fd, b"still writable here") == 19
    with raises(EEXIST), opened(here / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR):
        pass
    with opened(here / "f", os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW) as fd:
        assert os.read(fd, 4) == b"flag"


def test_recreated_names_are_new_objects(here: Path) -> None:
    inodes = set()
    for number in range(20):
        put(here / "f", b"x" * number)
        assert (here / "f").stat().st_size == number
        inodes.add((here / "f").stat().st_ctime_ns)
        os.unlink(here / "f")
        with raises(ENOENT):
            os.stat(here / "f")
        (here / "f").mkdir()
        assert (here / "f").is_dir()
        (here / "f").rmdir()
    assert len(inodes) > 1


def test_deep_folders(here: Path) -> None:
    path = here
    for number in range(120):
        path /= f"{number}"
        path.mkdir()
    put(path / "leaf", b"deep")
    os.rename(here / "0", here / "zero")
    moved = here / "zero" / path.relative_to(here / "0") / "leaf"
    assert moved.read_bytes() == b"deep"
    assert not path.exists()
