"""Two names of one file are one node: they never show different things."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import pytest

from tests.fuse.conftest import Mounted
from tests.threads import all_at_once


@pytest.fixture(
    params=["", "attr_timeout=30,entry_timeout=30,writeback"], ids=["default", "long-writeback"]
)
def linked(mount_with: Callable[[str], Mounted], request: pytest.FixtureRequest) -> Mounted:
    mounted = mount_with(request.param)
    (mounted.path / "a").write_bytes(b"A" * 10_000)
    os.link(mounted.path / "a", mounted.path / "b")
    return mounted


def test_contents_with_both_open_and_cached(linked: Mounted) -> None:
    one = os.open(linked.path / "a", os.O_RDWR)
    two = os.open(linked.path / "b", os.O_RDWR)
    for round_ in range(200):
        for writer, reader in ((one, two), (two, one)):
            text = b"%08d" % (round_ * 2 + (writer == two))
            assert len(os.pread(reader, 10_000, 0)) == 10_000
            os.pwrite(writer, text, 4092)
            assert os.pread(reader, 8, 4092) == text
            assert os.pread(writer, 8, 4092) == text
    os.close(one)
    os.close(two)


def test_mapped_pages(linked: Mounted) -> None:
    with (linked.path / "a").open("rb+") as one, (linked.path / "b").open("rb+") as two:
        seen = mmap.mmap(two.fileno(), 10_000, prot=mmap.PROT_READ)
        assert seen[0:4] == b"AAAA"
        os.pwrite(one.fileno(), b"BBBB", 0)
        assert seen[0:4] == b"BBBB"
        changed = mmap.mmap(two.fileno(), 10_000)
        changed[0:4] = b"CCCC"
        changed.flush()
        assert os.pread(one.fileno(), 4, 0) == b"CCCC"
        changed[4096:4100] = b"DDDD"  # dirty while the other name is written
        os.pwrite(one.fileno(), b"EEEE", 4200)
        changed.flush()
        assert os.pread(one.fileno(), 4, 4096) == b"DDDD"
        assert os.pread(two.fileno(), 4, 4200) == b"EEEE"
        changed.close()
        seen.close()


def test_sizes_and_attributes(linked: Mounted) -> None:
    a, b = linked.path / "a", linked.path / "b"
    assert a.stat().st_nlink == b.stat().st_nlink == 2
    with a.open("rb+") as one, b.open("rb+") as two:
        one.truncate(100)
        assert os.fstat(two.fileno()).st_size == b.stat().st_size == 100
        assert two.read() == b"A" * 100
        os.pwrite(one.fileno(), b"Z", 4999)
        assert b.stat().st_size == 5000
        assert os.pread(two.fileno(), 10, 4990) == b"\0" * 9 + b"Z"
        assert os.lseek(two.fileno(), 0, os.SEEK_END) == 5000
    a.chmod(0o600)
    assert b.stat().st_mode & 0o777 == 0o600
    os.utime(a, ns=(1, 2))
    assert b.stat().st_mtime_ns == 2
    os.truncate(a, 7)
    assert b.stat().st_size == 7
    assert b.read_bytes() == b"A" * 7
    a.write_bytes(b"shorter")
    assert b.read_bytes() == b"shorter"


def test_link_counts(linked: Mounted) -> None:
    a, b, c = (linked.path / name for name in "abc")
    assert b.stat().st_nlink == 2
    os.link(b, c)
    assert [path.stat().st_nlink for path in (a, b, c)] == [3, 3, 3]
    a.unlink()
    assert [path.stat().st_nlink for path in (b, c)] == [2, 2]
    c.rename(a)
    assert [path.stat().st_nlink for path in (a, b)] == [2, 2]
    (linked.path / "other").write_text("o")
    (linked.path / "other").rename(a)
    assert b.stat().st_nlink == 1
    assert a.stat().st_nlink == 1


def test_removed_name_that_is_still_open(linked: Mounted) -> None:
    """The name is gone, its pages and its handle are not."""
    one = os.open(linked.path / "a", os.O_RDWR)
    two = os.open(linked.path / "b", os.O_RDWR)
    assert os.pread(one, 10_000, 0) == os.pread(two, 10_000, 0)
    (linked.path / "a").unlink()
    assert os.fstat(one).st_nlink == os.fstat(two).st_nlink == 1
    os.pwrite(two, b"via b", 0)
    assert os.pread(one, 5, 0) == b"via b"
    os.pwrite(one, b"via a", 0)
    assert os.pread(two, 5, 0) == b"via a"
    (linked.path / "b").unlink()
    os.pwrite(two, b"again", 0)
    assert os.pread(one, 5, 0) == b"again"
    os.ftruncate(two, 3)
    assert os.fstat(one).st_size == 3
    os.close(one)
    os.close(two)


def test_renamed_while_open(linked: Mounted) -> None:
    one = os.open(linked.path / "a", os.O_RDWR)
    two = os.open(linked.path / "b", os.O_RDWR)
    (linked.path / "d").mkdir()
    (linked.path / "b").rename(linked.path / "d" / "c")
    (linked.path / "d").rename(linked.path / "e")
    for text in (b"1111", b"2222"):
        os.pread(one, 100, 0), os.pread(two, 100, 0)
        os.pwrite(one, text, 0)
        assert os.pread(two, 4, 0) == text
        os.pwrite(two, text[::-1] + b"x", 0)
        assert os.pread(one, 5, 0) == text[::-1] + b"x"
    os.close(one)
    os.close(two)


def test_changes_that_do_not_come_through_the_kernel(mounted: Mounted) -> None:
    path = mounted.path / "f"
    path.write_text("before")
    with path.open("rb") as file:
        assert file.read() == b"before"
        assert mounted.ask("put f after") == "done"
        assert os.pread(file.fileno(), 10, 0) == b"after"
        assert path.stat().st_size == 5
        assert path.read_text() == "after"


def test_names_made_and_replaced_past_the_kernel(mount_with: Callable[[str], Mounted]) -> None:
    """Also names that a program has looked for before, with the longest time-outs."""
    mounted = mount_with("attr_timeout=3600,entry_timeout=3600")
    path = mounted.path / "new"
    assert not path.exists()
    assert os.listdir(mounted.path) == []
    assert mounted.ask("make new text") == "done"
    assert path.read_text() == "text"
    assert os.listdir(mounted.path) == ["new"]


def test_writers_of_both_names_do_not_stall(linked: Mounted) -> None:
    """Each write wants the other name's pages dropped while that name has a write under way."""
    handles = [os.open(linked.path / name, os.O_RDWR) for name in "ab"]
    rounds = 300

    def write(number: int) -> None:
        for count in range(rounds):
            os.pwrite(handles[number], b"%d" % number * 5000, 0)
            os.pread(handles[number], 5000, 0)
            os.pwrite(handles[number], b"%05d" % count, 6000 + number * 100)

    all_at_once(write, (0, 1))
    assert os.pread(handles[0], 10_000, 0) == os.pread(handles[1], 10_000, 0)
    assert os.pread(handles[1], 5, 6000) == os.pread(handles[0], 5, 6100) == b"%05d" % (rounds - 1)
    for handle in handles:
        os.close(handle)
