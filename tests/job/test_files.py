"""The file protocol of commands, on this machine and on a volume over the control socket.

A logic test; see conftest.py.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mpifs.cli.progress import human_size, printable
from mpifs.cli.volume_path import parse_mounted, split, split_basename
from mpifs.core.limits import CONTROL_HANDLES_MAX, PAGE_ENTRIES
from mpifs.job.control import ControlClient
from mpifs.job.files_local import LocalFiles
from mpifs.job.files_protocol import Files, Wanted
from mpifs.job.files_remote import RemoteFiles
from mpifs.job.files_targets import targets
from tests.job.file_content import CHUNK, STRANGE, content, make, raises


class TestContract:
    """What LocalFiles and RemoteFiles both must do."""

    def test_bytes_come_back(self, files: Files) -> None:
        data = os.urandom(3 * (1 << 20) + 17)
        make(files, b"/a", data)
        assert files.stat(b"/a").size == len(data)
        assert content(files, b"/a") == data

    def test_names_of_any_bytes(self, files: Files) -> None:
        make(files, b"/" + STRANGE, b"x")
        assert [name for name, _ in files.scan(b"/")] == [STRANGE]
        files.rename(b"/" + STRANGE, b"/" + STRANGE[::-1])
        assert content(files, b"/" + STRANGE[::-1]) == b"x"

    def test_long_folder_comes_whole(self, files: Files) -> None:
        files.mkdir(b"/d", 0o755)
        names = {b"%05d" % n for n in range(PAGE_ENTRIES + 7)}
        for name in names:
            files.symlink(b"x", b"/d/" + name)
        found = list(files.scan(b"/d"))
        assert len(found) == len(names)
        assert {name for name, _ in found} == names
        assert all(entry.is_symlink for _, entry in found)

    def test_attributes(self, files: Files) -> None:
        make(files, b"/a")
        times = (1_000_000_001_000_000_001, 2_000_000_002_000_000_003)
        files.set_attributes(b"/a", Wanted(0o4751, (1, 2), times))
        found = files.stat(b"/a")
        assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o4751, 1, 2)
        assert (found.atime_ns, found.mtime_ns) == times
        files.symlink(b"a", b"/l")
        files.set_attributes(b"/l", Wanted(0o600, (3, 4), (5, 6)))
        assert files.stat(b"/a") == found._replace(ctime_ns=files.stat(b"/a").ctime_ns)
        assert (files.stat(b"/l").uid, files.stat(b"/l").mtime_ns) == (3, 6)

    def test_links(self, files: Files) -> None:
        make(files, b"/a", b"data")
        files.link(b"/a", b"/b")
        assert files.stat(b"/a").nlink == 2
        assert files.stat(b"/a").ino == files.stat(b"/b").ino
        files.symlink(b"a", b"/s")
        assert files.readlink(b"/s") == b"a"
        assert files.stat(b"/s").is_symlink
        assert files.stat(b"/s", follow=True).is_regular
        with raises(errno.ELOOP if isinstance(files, LocalFiles) else errno.EINVAL):
            files.open(b"/s")
        files.open(b"/s", follow=True).close()

    def test_symlinks_in_folders_are_followed(self, files: Files) -> None:
        files.mkdir(b"/d", 0o755)
        files.mkdir(b"/d/e", 0o755)
        files.symlink(b"d", b"/l")
        files.symlink(b"../l/./e", b"/d/m")
        make(files, b"/l/m/f", b"x")
        assert content(files, b"/d/e/f") == b"x"
        assert [name for name, _ in files.scan(b"/l/m")] == [b"f"]
        files.symlink(b"loop", b"/loop")
        with raises(errno.ELOOP):
            files.stat(b"/loop/x")
        with raises(errno.ELOOP):
            files.stat(b"/loop", follow=True)
        with raises(errno.ENOTDIR):
            files.stat(b"/d/e/f/g")

    def test_special_files(self, files: Files) -> None:
        files.mknod(b"/p", stat.S_IFIFO | 0o640, 0)
        assert stat.S_ISFIFO(files.stat(b"/p").mode)
        with raises(errno.EINVAL):
            files.open(b"/p")

    def test_xattrs(self, files: Files) -> None:
        make(files, b"/a")
        assert files.xattrs(b"/a") == {}
        try:
            files.set_xattr(b"/a", b"user.x", b"\0\xff")
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            pytest.skip("this place has no attributes")
        assert files.xattrs(b"/a") == {b"user.x": b"\0\xff"}

    def test_holes(self, files: Files) -> None:
        make(files, b"/a", b"x" * CHUNK, 10 * CHUNK)
        with contextlib.closing(files.create(b"/b", 0o644)) as file:
            file.truncate(5 * CHUNK)
            with raises(errno.ENXIO):
                file.seek(0, os.SEEK_DATA)
        with contextlib.closing(files.open(b"/a")) as file:
            assert file.seek(0, os.SEEK_DATA) == 10 * CHUNK
            assert file.seek(10 * CHUNK, os.SEEK_HOLE) == 11 * CHUNK

    def test_errors_have_their_errno_and_class(self, files: Files) -> None:
        files.mkdir(b"/d", 0o755)
        make(files, b"/a")
        with pytest.raises(FileNotFoundError):
            files.stat(b"/none")
        with pytest.raises(FileNotFoundError):
            list(files.scan(b"/none"))
        with pytest.raises(FileExistsError):
            files.create(b"/a", 0o644)
        with pytest.raises(FileExistsError):
            files.mkdir(b"/d", 0o755)
        with pytest.raises(IsADirectoryError):
            files.open(b"/d")
        with pytest.raises(IsADirectoryError):
            files.rename(b"/a", b"/d")
        with pytest.raises(NotADirectoryError):
            list(files.scan(b"/a"))
        make(files, b"/d/x")
        with raises(errno.ENOTEMPTY):
            files.rmdir(b"/d")
        with raises(errno.ENAMETOOLONG):
            files.mkdir(b"/" + b"n" * 256, 0o755)


class TestService:
    """What only the service must do."""

    def test_what_a_lost_client_had_open_is_closed(self, client: ControlClient) -> None:
        with ControlClient(client.path) as other:
            file = RemoteFiles(other).create(b"/a", 0o644)
            file.write(b"data", 0)
            next(RemoteFiles(other).scan(b"/"))
        files = RemoteFiles(client)
        assert content(files, b"/a") == b"data"
        files.unlink(b"/a")
        with raises(errno.EBADF):
            client.call("files.stat_open", handle=file._handle)  # type: ignore[attr-defined]

    def test_handles_are_the_clients_own_and_bounded(self, client: ControlClient) -> None:
        files = RemoteFiles(client)
        make(files, b"/a", b"secret")
        with ControlClient(client.path) as other:
            file: Any = RemoteFiles(other).open(b"/a")
            for call in ("files.stat_open", "files.close"):
                with raises(errno.EBADF):
                    client.call(call, handle=file._handle)
            with raises(errno.EBADF):
                client.call("files.read", handle=file._handle, offset=0, size=1)
            for _ in range(CONTROL_HANDLES_MAX - 1):
                RemoteFiles(other).open(b"/a")
            with raises(errno.EMFILE):
                RemoteFiles(other).open(b"/a")

    @pytest.mark.parametrize(
        ("call", "args", "code"),
        [
            ("stat", {}, errno.EPROTO),
            ("stat", {"path": "/text", "follow": False}, errno.EPROTO),
            ("stat", {"path": b"relative", "follow": False}, errno.EINVAL),
            ("stat", {"path": b"/nul\0", "follow": False}, errno.EINVAL),
            ("stat", {"path": b"/" + b"x/" * 3000, "follow": False}, errno.ENAMETOOLONG),
            ("read", {"handle": 99, "offset": 0, "size": 1}, errno.EBADF),
            ("read", {"handle": True, "offset": 0, "size": 1}, errno.EPROTO),
            ("list", {"handle": 99, "offset": 0}, errno.EBADF),
            ("mkdir", {"path": b"/d", "mode": -1}, errno.EINVAL),
            ("mknod", {"path": b"/d", "mode": stat.S_IFREG, "rdev": 0}, errno.EINVAL),
            ("set_attributes", {"path": b"/", "owner": [1]}, errno.EPROTO),
            ("set_attributes", {"path": b"/", "times_ns": ["a", 1]}, errno.EPROTO),
            ("layout", {"path": b"/", "first": 0}, errno.EINVAL),
        ],
    )
    def test_hostile_arguments(
        self, client: ControlClient, call: str, args: dict[str, Any], code: int
    ) -> None:
        with raises(code):
            client.call(f"files.{call}", **args)
        assert client.call("files.stat", path=b"/", follow=False)["stat"][0] == 1

    def test_layout_pages_are_one_list(
        self, client: ControlClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = RemoteFiles(client)
        make(files, b"/a", os.urandom(20 * CHUNK + 1))
        whole = files.layout(b"/a")
        assert [chunk["index"] for chunk in whole["chunks"]] == list(range(21))
        assert (whole["size"], whole["chunk_size"], whole["replicas"]) == (20 * CHUNK + 1, CHUNK, 1)
        workers = [chunk["workers"][0] for chunk in whole["chunks"]]
        assert all((b - a) % 3 == 1 for a, b in itertools.pairwise(workers))
        monkeypatch.setattr("mpifs.job.files.PAGE_ENTRIES", 4)
        assert files.layout(b"/a") == whole

    def test_sync(self, remote: RemoteFiles) -> None:
        make(remote, b"/a", b"x")
        remote.sync()


def test_targets_follow_cp(local: LocalFiles) -> None:
    local.mkdir(b"/d", 0o755)
    local.symlink(b"d", b"/l")
    make(local, b"/f")

    def one(place: bytes, *, wants_folder: bool = False, is_folder: bool = False) -> list[bytes]:
        return targets(local, place, [b"a"], wants_folder=wants_folder, is_folder=is_folder)

    assert one(b"/d") == [b"/d/a"]
    assert one(b"/l") == [b"/l/a"]
    assert one(b"/new") == [b"/new"]
    assert one(b"/f") == [b"/f"]
    assert one(b"/new", wants_folder=True, is_folder=True) == [b"/new"]
    assert targets(local, b"/d", [b"a", b""], wants_folder=False, is_folder=False) == [
        b"/d/a",
        b"/d",
    ]
    for place, wants_folder, is_folder in (
        (b"/new", True, False),
        (b"/f", True, False),
        (b"/f", False, True),
        (b"/none/new", False, False),
    ):
        with pytest.raises(OSError):
            one(place, wants_folder=wants_folder, is_folder=is_folder)
    with pytest.raises(OSError, match="several sources"):
        targets(local, b"/f", [b"a", b"b"], wants_folder=False, is_folder=False)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vol:a", ("vol", "a")),
        ("vol:/a:b", ("vol", "/a:b")),
        ("vol:x:/a", ("vol:x", "/a")),
        ("vol:x", ("vol:x", "")),
        ("vol:", ("vol", "")),
        ("vol", ("vol", "")),
        ("./m/:p", ("./m/", "p")),
        ("other:a", None),
        (":a", None),
        ("", None),
        ("a", None),
    ],
)
def test_longest_volume_wins(text: str, found: tuple[str, str] | None) -> None:
    assert split(text, lambda place: place in ("vol", "vol:x", "./m/")) == found


def test_names_of_sources() -> None:
    assert [split_basename(p) for p in ("a", "a/b/", "/", ".", "..", "a/.", "./a")] == [
        "a", "b", "", "", "", "", "a",
    ]  # fmt: skip


def test_file_outside_of_mounts(tmp_path: Path) -> None:
    assert parse_mounted(str(tmp_path)) is None


def test_words_for_people() -> None:
    assert [human_size(n) for n in (0, 1023, 1024, 3 << 30)] == [
        "0 B", "1023 B", "1.0 KiB", "3.0 GiB",
    ]  # fmt: skip
    assert printable("ä b".encode() + b"\xff\n\x1b[1m") == "ä b\\xff\\n\\x1b[1m"
