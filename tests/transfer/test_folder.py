"""Nothing outside a rank's folder is ever opened."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mpifs.core.errors import PosixError
from mpifs.transfer.folder import LocalFolder, is_part, leads_out, part_name, parts_of


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    (tmp_path / "secret").write_text("secret")
    made = LocalFolder(str(tmp_path / "rank-1"))
    inside = tmp_path / "rank-1"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "b" / "file").write_text("good")
    (inside / "out").symlink_to(tmp_path)
    (inside / "in").symlink_to("a")
    (inside / "secret").symlink_to("../secret")
    os.mkfifo(inside / "fifo")
    return made


def refused(folder: LocalFolder, name: bytes) -> int:
    with pytest.raises(PosixError) as found, folder.reading(name):
        pass
    assert str(found.value)
    return found.value.errno or 0


def test_what_climbs_out_is_refused(folder: LocalFolder) -> None:
    for name in (b"/etc/passwd", b"..", b"../secret", b"a/../../secret", b"a/b/.."):
        assert refused(folder, name) == errno.EPERM, name
    for name in (b"out/secret", b"secret", b"in/b/file"):
        assert refused(folder, name) == errno.ELOOP, name
    assert refused(folder, b"a/\0") == errno.EINVAL
    assert refused(folder, b"a/" + b"n" * 256) == errno.ENAMETOOLONG
    assert refused(folder, b"/".join([b"d"] * 2000)) == errno.ENAMETOOLONG


def test_what_is_no_file_is_refused_and_keeps_nobody_waiting(folder: LocalFolder) -> None:
    assert refused(folder, b"fifo") == errno.EINVAL
    assert refused(folder, b"nothing") == errno.ENOENT
    assert refused(folder, b"a/b/file/x") == errno.ENOTDIR
    assert refused(folder, b"") == errno.EISDIR


def test_a_name_inside_is_opened(folder: LocalFolder) -> None:
    with folder.reading(b"./a//b/file") as descriptor:
        assert os.read(descriptor, 100) == b"good"
    assert folder.look(b"a/b/file").size == 4
    entries, is_end = folder.entries(b"a", b"", 10)
    assert [entry.path for entry in entries] == [b"a/b"]
    assert is_end
    assert parts_of(b"./a//b/") == [b"a", b"b"]


def test_nothing_is_made_through_a_link(folder: LocalFolder, tmp_path: Path) -> None:
    with pytest.raises(PosixError), folder.place(b"out/new/file", make=True):
        pass
    assert not (tmp_path / "new").exists()


def test_links_that_lead_out_are_known() -> None:
    for path, target in ((b"l", b"/a"), (b"l", b".."), (b"a/l", b"../.."), (b"l", b"a/../../b")):
        assert leads_out(path, target), (path, target)
    for path, target in ((b"l", b"a"), (b"a/l", b".."), (b"a/l", b"../b"), (b"l", b"a/..")):
        assert not leads_out(path, target), (path, target)


def test_every_name_has_a_part_that_fits(folder: LocalFolder) -> None:
    names = {part_name(b"n" * length) for length in (1, 200, 244, 245, 255)}
    assert len(names) == 5
    assert all(len(name) <= 255 and is_part(name) for name in names)
    assert not is_part(b"file.part")
