"""Listings of folders, and what else than files stands in them."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from errno import ENOTEMPTY
from pathlib import Path

import pytest

from tests.mount.calls import (
    forked,
    libc,
    needs_root,
    outcome,
    put,
    raises,
)
from tests.mount.test_posix_names import KINDS, make


def test_dot_entries_and_types_in_listings(here: Path) -> None:
    for kind in KINDS[1:]:
        make(here / kind, kind)
    types = {
        e.name: (
            e.is_dir(follow_symlinks=False),
            e.is_file(follow_symlinks=False),
            e.is_symlink(),
            e.inode(),
        )
        for e in os.scandir(here)
    }
    for name, (is_dir, is_file, is_link, inode) in types.items():
        info = os.lstat(here / name)
        assert (is_dir, is_file, is_link) == (
            stat.S_ISDIR(info.st_mode),
            stat.S_ISREG(info.st_mode),
            stat.S_ISLNK(info.st_mode),
        )
        assert inode == info.st_ino
    stream = Stream(here)
    names = [name for name, _ in stream.rest()]
    stream.close()
    assert sorted(names) == sorted([b".", b"..", *(k.encode() for k in KINDS[1:])])


class Stream:
    """opendir, readdir, telldir, seekdir of libc."""

    def __init__(self, path: Path) -> None:
        for name in ("opendir", "readdir", "telldir"):
            getattr(libc, name).restype = ctypes.c_void_p if name != "telldir" else ctypes.c_long
        self._stream = ctypes.c_void_p(libc.opendir(bytes(path)))
        assert self._stream

    def next(self) -> tuple[bytes, int] | None:
        """(name, position behind it)."""
        entry = libc.readdir(self._stream)
        if not entry:
            return None
        return ctypes.string_at(entry + 19), libc.telldir(self._stream)

    def rest(self) -> list[tuple[bytes, int]]:
        """All that follow."""
        return list(iter(self.next, None))

    def seek(self, position: int) -> None:
        """seekdir; -1 rewinds."""
        if position < 0:
            libc.rewinddir(self._stream)
        else:
            libc.seekdir(self._stream, ctypes.c_long(position))

    def close(self) -> None:
        """closedir."""
        libc.closedir(self._stream)


def test_telldir_and_seekdir(here: Path) -> None:
    for number in range(700):
        put(here / f"file-{number:04}-{'x' * (number % 60)}")
    stream = Stream(here)
    entries = stream.rest()
    assert len({name for name, _ in entries}) == len(entries) == 702
    for index in (0, 1, 2, 350, 700, 17):
        stream.seek(entries[index][1])
        assert [name for name, _ in stream.rest()] == [name for name, _ in entries[index + 1 :]]
    stream.seek(-1)
    put(here / "new")
    assert len(stream.rest()) in {702, 703}
    stream.seek(-1)
    assert len(stream.rest()) == 703
    stream.close()


@pytest.mark.parametrize("remove", ["seen", "others"])
def test_listing_while_deleting(here: Path, remove: str) -> None:
    """What is neither added nor removed meanwhile is listed once and only once."""
    count = 3000
    for number in range(count):
        put(here / f"{number}")
    seen: list[str] = []
    gone: set[str] = set()
    with os.scandir(here) as entries:
        for entry in entries:
            seen.append(entry.name)
            victim = entry.name if remove == "seen" else str((int(entry.name) * 7 + 1) % count)
            if (remove == "seen" or victim.endswith("1")) and victim not in gone:
                os.unlink(here / victim)
                gone.add(victim)
    assert len(seen) == len(set(seen)), "an entry came twice"
    assert not {str(n) for n in range(count)} - set(seen) - gone, "an entry was missed"
    assert set(os.listdir(here)) == {str(n) for n in range(count)} - gone


def test_fifo_between_processes(here: Path) -> None:
    os.mkfifo(here / "p", 0o600)
    wait = forked(lambda: (here / "p").write_bytes(b"through the pipe"))
    assert (here / "p").read_bytes() == b"through the pipe"
    wait()


def test_socket_in_the_mount(here: Path) -> None:
    folder = os.open(here, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(f"/proc/self/fd/{folder}/sock")
        server.listen()
        assert stat.S_ISSOCK(os.stat(here / "sock").st_mode)
        client.connect(f"/proc/self/fd/{folder}/sock")
        client.sendall(b"hi")
        accepted, _ = server.accept()
        with accepted:
            assert accepted.recv(10) == b"hi"
    os.close(folder)


@needs_root
@pytest.mark.parametrize(
    ("kind", "major", "minor"),
    [(stat.S_IFCHR, 1, 3), (stat.S_IFBLK, 250, 255), (stat.S_IFCHR, 4095, 1_048_575)],
)
def test_device_nodes(here: Path, kind: int, major: int, minor: int) -> None:
    os.mknod(here / "n", kind | 0o640, os.makedev(major, minor))
    info = os.stat(here / "n")
    assert stat.S_IFMT(info.st_mode) == kind
    assert (os.major(info.st_rdev), os.minor(info.st_rdev)) == (major, minor)
    assert stat.S_IMODE(info.st_mode) == 0o640


def test_mknod_of_a_plain_file(here: Path) -> None:
    os.mknod(here / "n", stat.S_IFREG | 0o604)
    assert (here / "n").stat().st_mode == stat.S_IFREG | 0o604
    assert outcome(os.mknod, here / "n", stat.S_IFREG) == "EEXIST"


@pytest.mark.slow
@pytest.mark.limit(400)
def test_twenty_thousand_files(here: Path) -> None:
    big, count = here / "big", 20_000
    big.mkdir()
    fd = os.open(big, os.O_RDONLY)
    for number in range(count):
        os.close(os.open(f"file-{number}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    names = os.listdir(big)
    assert len(names) == count
    assert set(names) == {f"file-{n}" for n in range(count)}
    assert os.stat("file-17777", dir_fd=fd).st_size == 0
    assert big.stat().st_nlink == 2
    with raises(ENOTEMPTY):
        os.rmdir(big)
    with os.scandir(big) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(big) == []
    os.close(fd)
    big.rmdir()
