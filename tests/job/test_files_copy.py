"""Copying and removing trees, between this machine and a volume over the control socket.

A logic test; see conftest.py.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.cli.progress import Progress
from mpifs.core.errors import PosixError
from mpifs.job.files_copy import Copier, stream_out
from mpifs.job.files_local import LocalFiles
from mpifs.job.files_protocol import Attributes, Files, Wanted
from mpifs.job.files_remote import RemoteFiles
from mpifs.job.files_tree import measure, remove_tree
from tests.job.file_content import CHUNK, STRANGE, content, make, raises


def tree(files: Files, path: bytes = b"/") -> dict[bytes, object]:
    """Everything below a folder that a copy must keep."""
    found: dict[bytes, object] = {}
    inodes: dict[int, bytes] = {}
    todo = [path]
    while todo:
        folder = todo.pop()
        for name, entry in sorted(files.scan(folder)):
            full = folder.rstrip(b"/") + b"/" + name
            row: list[object] = [entry.mode, entry.uid, entry.gid, entry.mtime_ns]
            if entry.is_folder:
                todo.append(full)
            elif entry.is_symlink:
                row.append(files.readlink(full))
            else:
                first = inodes.setdefault(entry.ino, full)
                row += [first[len(path) :], entry.nlink, entry.size, entry.rdev]
                if entry.is_regular:
                    row.append(content(files, full))
            found[full[len(path) :]] = row
    return found


def plant(files: Files) -> None:
    """A tree with one of everything below /t."""
    files.mkdir(b"/t", 0o750)
    make(files, b"/t/big", os.urandom(2 * (1 << 20) + 5))
    make(files, b"/t/empty")
    make(files, b"/t/" + STRANGE, b"strange")
    files.mkdir(b"/t/sub", 0o700)
    files.link(b"/t/big", b"/t/sub/same")
    files.symlink(b"../nowhere", b"/t/sub/link")
    files.mknod(b"/t/fifo", stat.S_IFIFO | 0o600, 0)
    make(files, b"/t/sparse", b"end", 50 * CHUNK)
    make(files, b"/t/hole")
    make(files, b"/t/readonly", b"x")
    files.set_attributes(b"/t/readonly", Wanted(0o444))
    files.set_attributes(b"/t/big", Wanted(0o6755, (7, 8), (1, 123_456_789_123_456_789)))
    files.set_attributes(b"/t/sub/link", Wanted(None, (9, 9), (1, 77)))
    files.set_attributes(b"/t/sub", Wanted(0o1777, (5, 5), (1, 99)))


class TestCopy:
    """Copier between the two kinds of places."""

    @pytest.fixture
    def ends(self, local: LocalFiles, remote: RemoteFiles) -> tuple[Files, Files]:
        return local, remote

    @pytest.mark.parametrize("turn", [1, -1])
    def test_tree_is_the_same(self, ends: tuple[Files, Files], turn: int) -> None:
        source, target = ends[::turn]
        plant(source)
        progress = Progress("test", is_quiet=True)
        for _ in range(2):  # the second time everything is there and is replaced.
            Copier(source, target, progress, keeps_owner=True).copy(b"/t", b"/u")
        assert progress.errors == []
        assert tree(source, b"/t") == tree(target, b"/u")
        assert target.stat(b"/u").mtime_ns == source.stat(b"/t").mtime_ns
        assert target.stat(b"/u/sparse").blocks * 512 <= 4 * CHUNK
        assert (progress.files, progress.folders) == (2 * 9, 2 * 2)
        assert measure(source, [b"/t"]).files == 9

    def test_failed_copy_leaves_no_half_file(self, local: LocalFiles, remote: RemoteFiles) -> None:
        make(local, b"/a", b"new" * 1000)
        make(remote, b"/a", b"old")

        class Full(RemoteFiles):
            def set_attributes(self, path: bytes, wanted: Wanted) -> None:
                raise PosixError(errno.ENOSPC)

        progress = Progress("test", is_quiet=True)
        full = Full(remote._client)
        Copier(local, full, progress, keeps_owner=False).copy(b"/a", b"/a")
        assert len(progress.errors) == 1
        assert content(remote, b"/a") == b"old"
        assert [name for name, _ in remote.scan(b"/")] == [b"a"]

    def test_others_go_on_after_an_error(self, local: LocalFiles, remote: RemoteFiles) -> None:
        local.mkdir(b"/t", 0o755)
        for name in (b"a", b"b", b"c"):
            make(local, b"/t/" + name, name)
        remote.mkdir(b"/t", 0o755)
        remote.mkdir(b"/t/b", 0o755)
        progress = Progress("test", is_quiet=True)
        Copier(local, remote, progress, keeps_owner=False).copy(b"/t", b"/t")
        (found,) = progress.errors
        assert found["path"] == "/t/b"
        assert [name for name, _ in sorted(remote.scan(b"/t"))] == [b"a", b"b", b"c"]
        assert content(remote, b"/t/c") == b"c"

    def test_lost_connection_ends_the_work(self, local: LocalFiles, remote: RemoteFiles) -> None:
        make(local, b"/a")
        remote._client.close()
        progress = Progress("test", is_quiet=True)
        with raises(errno.ENOTCONN):
            Copier(local, remote, progress, keeps_owner=False).copy(b"/a", b"/a")

    def test_folder_into_itself(self, local: LocalFiles) -> None:
        local.mkdir(b"/t", 0o755)
        make(local, b"/t/a")
        progress = Progress("test", is_quiet=True)
        copier = Copier(local, local, progress, keeps_owner=False)
        copier.copy(b"/t", b"/t/t")
        assert {name for name, _ in local.scan(b"/t/t")} == {b"a"}
        copier.copy(b"/t", b"/t")
        assert "same folder" in progress.errors[-1]["error"]

    def test_growing_and_sizeless_files(self, tmp_path: Path, remote: RemoteFiles) -> None:
        progress = Progress("test", is_quiet=True)
        copier = Copier(LocalFiles(), remote, progress, keeps_owner=False)
        copier.copy(b"/proc/self/status", b"/status")
        assert progress.errors == []
        assert b"VmRSS" in content(remote, b"/status")

    def test_streams(self, local: LocalFiles, remote: RemoteFiles, tmp_path: Path) -> None:
        data = os.urandom(2_500_000)
        (tmp_path / "in").write_bytes(data)
        progress = Progress("test", is_quiet=True)
        with open(tmp_path / "in", "rb") as stream:
            copier = Copier(local, remote, progress, keeps_owner=False)
            assert copier.write_stream(stream.fileno(), b"/s", 0o640) == len(data)
        assert stat.S_IMODE(remote.stat(b"/s").mode) == 0o640
        remote.symlink(b"s", b"/l")
        with open(tmp_path / "out", "wb") as stream:
            stream_out(remote, b"/l", stream.fileno(), progress)
        assert (tmp_path / "out").read_bytes() == data


def test_remove_tree(files: Files) -> None:
    plant(files)
    files.symlink(b"t", b"/keep")
    progress = Progress("test", is_quiet=True)
    remove_tree(files, b"/t", progress)
    assert progress.errors == []
    assert [name for name, _ in files.scan(b"/")] == [b"keep"]
    assert (progress.files, progress.folders) == (9, 2)


def test_remove_tree_keeps_what_cannot_go() -> None:
    class Stubborn(LocalFiles):
        def stat(self, path: bytes, *, follow: bool = False) -> Attributes:
            kind = stat.S_IFDIR if path in (b"/t", b"/t/d") else stat.S_IFREG
            return Attributes(0, 1, kind, 1, 0, 0, 0, 0, 0, 0, 0, 0)

        def scan(self, path: bytes) -> Iterator[tuple[bytes, Attributes]]:
            inner = {b"/t": [b"d", b"a"], b"/t/d": [b"x", b"y"]}[path]
            return iter([(name, self.stat(path + b"/" + name)) for name in inner])

        def unlink(self, path: bytes) -> None:
            if path == b"/t/d/x":
                raise PermissionError(errno.EACCES, "no")

        def rmdir(self, path: bytes) -> None:
            raise AssertionError("its content is not gone")

    progress = Progress("test", is_quiet=True)
    remove_tree(Stubborn(), b"/t", progress)
    assert [error["path"] for error in progress.errors] == ["/t/d/x"]
    assert progress.files == 2
