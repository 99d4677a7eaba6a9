"""Files without a name, with many names, and locked ones."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable
from errno import EACCES, EAGAIN, EWOULDBLOCK
from pathlib import Path
from typing import Any

import pytest

from tests.mount.calls import (
    cold,
    forked,
    opened,
    outcome,
    pattern,
    put,
    raises,
    read_all,
    write_all,
)

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


def visible(folder: Path) -> list[str]:
    """Names in a folder."""
    return sorted(os.listdir(folder))


def rename_over(path: Path) -> None:
    """Takes the name away by putting another file there."""
    os.rename(put(path.with_name("winner"), b"winner"), path)


@pytest.mark.parametrize("remove", [os.unlink, rename_over])
def test_removed_open_file_works_on(here: Path, chunk: int, remove: Callable[[Path], None]) -> None:
    path = here / "f"
    data = bytearray(pattern(chunk + 1000))
    put(path, data)
    others = ["f"] if remove is rename_over else []
    with opened(path) as fd, opened(path, os.O_RDONLY) as second:
        inode = os.fstat(fd).st_ino
        remove(path)
        assert visible(here) == others, "no .fuse_hidden name may show"
        info = os.fstat(fd)
        assert (info.st_nlink, info.st_ino, info.st_size) == (0, inode, len(data))
        assert read_all(fd, 9 * chunk) == data
        write_all(fd, b"still", chunk - 2)
        data[chunk - 2 : chunk + 3] = b"still"
        cold(fd)
        assert read_all(second, 9 * chunk) == data
        os.ftruncate(fd, 2 * chunk)
        assert os.fstat(second).st_size == 2 * chunk
        os.ftruncate(fd, 100)
        assert read_all(fd, chunk) == data[:100]
        os.fchmod(fd, 0o604)
        os.utime(fd, ns=(1, 2))
        if os.geteuid() == 0:
            os.fchown(fd, 7, 8)
            assert (os.fstat(fd).st_uid, os.fstat(fd).st_gid) == (7, 8)
        info = os.fstat(fd)
        assert (info.st_mode & 0o7777, info.st_atime_ns, info.st_mtime_ns, info.st_nlink) == (
            0o604,
            1,
            2,
            0,
        )
        os.fdatasync(fd)
        with mmap.mmap(fd, 100) as view:
            view[0:3] = b"map"
        assert os.pread(second, 5, 0) == b"map" + bytes(data[3:5])
        if remove is os.unlink:
            put(path, b"a new file")
            assert path.read_bytes() == b"a new file"
            assert os.fstat(fd).st_size == 100
            assert path.stat().st_ino != inode
        else:
            assert path.read_bytes() == b"winner"
    assert visible(here) == ["f"]


def test_folder_of_a_removed_open_file_can_go(here: Path) -> None:
    folder = here / "d"
    folder.mkdir()
    with opened(folder / "f", NEW) as fd:
        os.write(fd, b"first")
        os.unlink(folder / "f")
        assert visible(folder) == []
        assert folder.stat().st_nlink == 2
        os.rmdir(folder)
        assert visible(here) == []
        os.write(fd, b" second")
        assert os.pread(fd, 100, 0) == b"first second"
        os.fsync(fd)
        folder.mkdir()
        put(folder / "f", b"other")
        assert os.pread(fd, 100, 0) == b"first second"
    assert (folder / "f").read_bytes() == b"other"


def test_folder_of_a_removed_open_file_can_be_moved_and_replaced(here: Path) -> None:
    for name in ("a", "b"):
        (here / name).mkdir()
    with opened(here / "a/f", NEW) as fd:
        os.write(fd, b"text")
        os.unlink(here / "a/f")
        os.rename(here / "b", here / "a")
        os.rename(here / "a", here / "c")
        assert os.pread(fd, 10, 0) == b"text"
        assert visible(here) == ["c"]
    os.rmdir(here / "c")


def test_many_removed_open_files(here: Path) -> None:
    fds = []
    for number in range(200):
        fd = os.open(here / "f", NEW)
        os.write(fd, b"%d" % number)
        os.unlink(here / "f")
        fds.append(fd)
    assert visible(here) == []
    assert [int(os.pread(fd, 10, 0)) for fd in fds] == list(range(200))
    for fd in fds:
        os.close(fd)


def test_unlink_one_of_two_names_of_an_open_file(here: Path) -> None:
    put(here / "a", b"text")
    os.link(here / "a", here / "b")
    with opened(here / "a") as fd:
        os.unlink(here / "a")
        assert os.fstat(fd).st_nlink == 1
        os.pwrite(fd, b"more", 4)
        assert (here / "b").read_bytes() == b"textmore"
        assert visible(here) == ["b"]
        os.unlink(here / "b")
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 10, 0) == b"textmore"
        assert visible(here) == []


def test_rename_of_an_open_file(here: Path) -> None:
    (here / "d").mkdir()
    with opened(here / "a", NEW) as fd:
        os.write(fd, b"one")
        os.rename(here / "a", here / "d/b")
        os.write(fd, b"two")
        assert (here / "d/b").read_bytes() == b"onetwo"
        assert os.fstat(fd).st_nlink == 1
        os.rename(here / "d", here / "e")
        os.ftruncate(fd, 2)
        assert (here / "e/b").stat().st_size == 2


def test_hard_links_never_disagree(here: Path, chunk: int) -> None:
    """Bytes, sizes and counts through both names, with both open, in both directions."""
    put(here / "a", pattern(chunk + 50))
    assert (here / "a").read_bytes()  # a is in the page cache
    (here / "d").mkdir()
    os.link(here / "a", here / "d/b")
    model = bytearray(pattern(chunk + 50))
    with opened(here / "a") as one, opened(here / "d/b") as two:
        assert read_all(two, 9 * chunk) == model
        for number in range(40):
            writer, reader = (one, two) if number % 2 else (two, one)
            offset = (number * 7919) % (chunk + 40)
            if number % 10 == 9:
                os.ftruncate(writer, offset)
                del model[offset:]
                model.extend(bytes(max(0, offset - len(model))))
            else:
                data = b"%06d" % number
                write_all(writer, data, offset)
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + 6] = data
            sizes = [
                os.fstat(one).st_size,
                os.fstat(two).st_size,
                (here / "a").stat().st_size,
                (here / "d/b").stat().st_size,
            ]
            assert sizes == [len(model)] * 4, number
            assert read_all(reader, 9 * chunk) == model, number
            assert (here / "a").read_bytes() == (here / "d/b").read_bytes() == model, number
    os.link(here / "a", here / "c")
    names = (here / "a", here / "d/b", here / "c")
    for count, name in ((3, None), (2, here / "a"), (1, here / "d/b")):
        if name:
            os.unlink(name)
        assert {p.stat().st_nlink for p in names if p.exists()} == {count}


def test_metadata_through_either_hard_link(here: Path) -> None:
    put(here / "a", b"text")
    os.link(here / "a", here / "b")
    a, b = here / "a", here / "b"
    steps: list[Callable[[], Any]] = [
        lambda: os.chmod(a, 0o640),
        lambda: os.chmod(b, 0o604),
        lambda: os.utime(a, ns=(1, 2)),
        lambda: os.utime(b, ns=(3, 4)),
        lambda: os.truncate(a, 100),
        lambda: os.truncate(b, 7),
        lambda: os.setxattr(a, "user.x", b"1"),
        lambda: os.removexattr(b, "user.x"),
        lambda: os.link(b, here / "c"),
        lambda: os.unlink(here / "c"),
        lambda: (os.rename(a, here / "a2"), os.rename(here / "a2", a)),
    ]
    if os.geteuid() == 0:
        steps.append(lambda: os.chown(b, 5, 6))
    wrong = []
    for number, step in enumerate(steps):
        for path in (a, b):
            os.stat(path)
        step()
        if tuple(a.stat())[:10] != tuple(b.stat())[:10]:
            wrong.append((number, tuple(a.stat()), tuple(b.stat())))
        if os.listxattr(a) != os.listxattr(b):
            wrong.append((number, "xattrs"))
    assert not wrong


def test_hard_links_agree_through_mappings(here: Path, chunk: int) -> None:
    size = chunk + 4096
    put(here / "a", bytes(size))
    os.link(here / "a", here / "b")
    with opened(here / "a") as one, opened(here / "b") as two:
        with mmap.mmap(one, size) as view:
            view[chunk - 2 : chunk + 2] = b"mmap"
            view.flush()
            assert os.pread(two, 4, chunk - 2) == b"mmap"
            assert (here / "b").read_bytes()[chunk - 2 : chunk + 2] == b"mmap"
            view[10:14] = b"last"
        assert os.pread(one, 4, 10) == b"last"
        os.fsync(one)
        assert os.pread(two, 4, 10) == b"last"
        os.pwrite(two, b"thru", 5000)
        assert os.pread(one, 4, 5000) == b"thru"
        with mmap.mmap(one, size) as view:
            assert view[5000:5004] == b"thru"


def test_link_made_while_open_and_mapped(here: Path) -> None:
    put(here / "a", bytes(8192))
    with opened(here / "a") as one, mmap.mmap(one, 8192) as view:
        view[0:5] = b"early"
        os.link(here / "a", here / "b")
        os.pwrite(one, b"write", 100)
        with opened(here / "b") as two:
            assert os.fstat(two).st_nlink == os.fstat(one).st_nlink == 2
            assert os.pread(two, 5, 100) == b"write"
            os.pwrite(two, b"other", 200)
            assert os.pread(one, 5, 200) == b"other"
            view.flush()
            assert os.pread(two, 5, 0) == b"early"
            assert os.pread(one, 5, 200) == b"other"


def test_fcntl_locks_between_processes(here: Path) -> None:
    put(here / "f", bytes(1000))

    def attempt(kind: int, length: int, start: int) -> Any:
        with opened(here / "f") as fd:
            return outcome(fcntl.lockf, fd, kind | fcntl.LOCK_NB, length, start)

    def elsewhere(*arguments: int) -> Any:
        return forked(attempt, *arguments)()

    busy = {"EAGAIN", "EACCES"}
    with opened(here / "f") as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 100, 200)
        assert elsewhere(fcntl.LOCK_EX, 10, 250) in busy
        assert elsewhere(fcntl.LOCK_SH, 10, 250) in busy
        assert elsewhere(fcntl.LOCK_EX, 10, 100) is None
        assert elsewhere(fcntl.LOCK_EX, 0, 300) is None
        fcntl.lockf(fd, fcntl.LOCK_UN, 50, 200)
        assert elsewhere(fcntl.LOCK_EX, 10, 220) is None
        assert elsewhere(fcntl.LOCK_EX, 10, 260) in busy
        fcntl.lockf(fd, fcntl.LOCK_SH, 100, 200)
        assert elsewhere(fcntl.LOCK_SH, 10, 260) is None
        assert elsewhere(fcntl.LOCK_EX, 10, 260) in busy
    assert elsewhere(fcntl.LOCK_EX, 0, 0) is None  # close gave them back


def test_waiting_for_a_lock(here: Path) -> None:
    for lock in (fcntl.flock, fcntl.lockf):
        put(here / "f", b"0")

        def child(lock: Callable[..., None] = lock) -> bytes:
            with opened(here / "f") as fd:
                lock(fd, fcntl.LOCK_EX)
                return os.pread(fd, 10, 0)

        with opened(here / "f") as fd:
            lock(fd, fcntl.LOCK_EX)
            wait = forked(child)
            time.sleep(0.1)  # it must be waiting, not reading
            os.pwrite(fd, b"released", 0)
            lock(fd, fcntl.LOCK_UN)
            assert wait() == b"released"


def test_flock(here: Path) -> None:
    put(here / "f")

    def attempt(kind: int) -> Any:
        with opened(here / "f") as fd:
            return outcome(fcntl.flock, fd, kind | fcntl.LOCK_NB)

    with opened(here / "f") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with raises(EAGAIN, EWOULDBLOCK, EACCES), opened(here / "f") as second:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert forked(attempt, fcntl.LOCK_SH)() == "EAGAIN"
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert forked(attempt, fcntl.LOCK_SH)() is None
        assert forked(attempt, fcntl.LOCK_EX)() == "EAGAIN"
        copy = os.dup(fd)
    assert forked(attempt, fcntl.LOCK_EX)() == "EAGAIN"  # the duplicate still holds it
    os.close(copy)
    assert forked(attempt, fcntl.LOCK_EX)() is None


def test_open_file_description_locks(here: Path) -> None:
    """F_OFD_SETLK: between descriptions of one process."""
    import struct

    put(here / "f", bytes(100))
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    with opened(here / "f") as one, opened(here / "f") as two:
        fcntl.fcntl(one, 37, request)
        with raises(EAGAIN, EACCES):
            fcntl.fcntl(two, 37, request)
