"""Files that are opened for writing alone are written past the kernel's page cache."""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

import pytest

from tests.fuse.conftest import Mounted
from tests.threads import all_at_once

SIZE = 200_000


@pytest.mark.parametrize("order", ["writer first", "reader first", "both ways"])
def test_what_was_written_is_read(mounted: Mounted, order: str) -> None:
    """By handles of all kinds, while others read the same places without a pause."""
    path = mounted.path / "f"
    path.write_bytes(bytes(SIZE))
    handles = []
    if order != "writer first":
        handles.append(os.open(path, os.O_RDONLY))
    writer = os.open(path, os.O_WRONLY)
    handles.append(os.open(path, os.O_RDONLY))
    handles.append(os.open(path, os.O_RDWR))
    if order == "both ways":
        os.close(handles.pop(0))
    is_over = threading.Event()

    def read_on() -> None:
        fd = os.open(path, os.O_RDONLY)
        while not is_over.is_set():
            os.pread(fd, SIZE, 0)
        os.close(fd)

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(300):
            text = b"%06d" % number
            place = number * 977 % (SIZE - 6)
            os.pwrite(writer, text, place)
            for fd in handles:
                assert os.pread(fd, 6, place) == text
            assert path.read_bytes()[place : place + 6] == text
    finally:
        is_over.set()
        for thread in threads:
            thread.join(30)
        for fd in [*handles, writer]:
            os.close(fd)


def test_a_file_that_is_being_written_can_be_mapped(mounted: Mounted) -> None:
    path = mounted.path / "f"
    path.write_bytes(b"a" * SIZE)
    writer = os.open(path, os.O_WRONLY)
    with path.open("rb") as reader:
        seen = mmap.mmap(reader.fileno(), SIZE, prot=mmap.PROT_READ)
        assert seen[:4] == b"aaaa"
        os.pwrite(writer, b"bbbb", 0)
        deadline = time.monotonic() + 5
        while seen[:4] != b"bbbb":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        seen.close()
    os.close(writer)


def test_appenders_do_not_write_over_each_other(mounted: Mounted) -> None:
    path = mounted.path / "log"

    def append(name: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in range(100):
            os.write(fd, b"%d %04d\n" % (name, number))
        os.close(fd)

    all_at_once(append, range(4))
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == [b"%d %04d" % (n, m) for n in range(4) for m in range(100)]


def test_odd_records_are_one_request_each(mounted: Mounted) -> None:
    path, count, size = mounted.path / "f", 50, 47_008
    record = mmap.mmap(-1, 49_152)
    mounted.calls()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    for number in range(count):
        record[:size] = bytes([number]) * size
        os.write(fd, memoryview(record)[:size])
    os.close(fd)
    assert mounted.calls()["write"] == count
    assert path.read_bytes() == b"".join(bytes([number]) * size for number in range(count))


def reads_of(mounted: Mounted, path: Path) -> int:
    mounted.calls()
    assert len(path.read_bytes()) == SIZE
    calls = mounted.calls()
    return calls.get("read", 0) + calls.get("lend", 0)


def test_afterwards_the_page_cache_serves(mounted: Mounted) -> None:
    path = mounted.path / "f"
    path.write_bytes(bytes(SIZE))
    time.sleep(0.2)  # the last close is told to a file system behind the closer's back
    assert reads_of(mounted, path) > 0
    assert reads_of(mounted, path) == 0
    with path.open("r+b") as both:
        both.write(b"x")
    assert reads_of(mounted, path) == 0
    writer = os.open(path, os.O_WRONLY)
    assert reads_of(mounted, path) > 0
    assert reads_of(mounted, path) > 0
    os.close(writer)
    time.sleep(0.2)
    assert reads_of(mounted, path) == 0  # its pages are still those of the file


def test_all_handles_are_counted_back(mounted: Mounted) -> None:
    """Whatever comes and goes, in whatever order: at the end readers use the page cache again."""
    path = mounted.path / "f"
    path.write_bytes(bytes(SIZE))
    modes = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY, os.O_RDONLY, os.O_RDWR]
    for shift in range(len(modes)):
        handles = [os.open(path, mode) for mode in modes[shift:] + modes[:shift]]
        for fd in handles[::2] + handles[1::2]:
            os.close(fd)
    time.sleep(0.2)  # the last close is told to a file system behind the closer's back
    reads_of(mounted, path)
    assert reads_of(mounted, path) == 0


def test_small_files_are_at_hand_after_their_writing(mounted: Mounted) -> None:
    """What is written past the page cache is in mpifs's own."""
    for number in range(50):
        (mounted.path / f"s{number}").write_bytes(b"%d" % number * 500)
    os.sync()
    time.sleep(0.5)
    before = int(mounted.ask("misses"))
    for number in range(50):
        assert (mounted.path / f"s{number}").read_bytes() == b"%d" % number * 500
    assert int(mounted.ask("misses")) == before
