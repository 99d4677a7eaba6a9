"""put, get, ls, cat, rm and layout as users type them, on a volume at rest and on a mounted one."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.harness import TOKEN, Volume, processes_of

pytestmark = pytest.mark.limit(150)
STRANGE = os.fsdecode(b"\xff\xfe new\nline \xc3\xa4 '\"\\")
CHUNK = 64 * 1024


@pytest.fixture(params=["at rest", "mounted"])
def served(request: pytest.FixtureRequest, volume: Callable[..., Volume]) -> Volume:
    """A volume in both states."""
    return volume(mounted=request.param == "mounted", workers=3, mkfs=("--chunk-size", str(CHUNK)))


@pytest.fixture
def rest(volume: Callable[..., Volume]) -> Volume:
    """A volume that is not mounted."""
    return volume(mounted=False, workers=2, mkfs=("--chunk-size", str(CHUNK)))


def plant(root: Path) -> Path:
    """A tree with one of everything that put and get keep."""
    top = root / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "big").write_bytes(random.Random(1).randbytes(3 * (1 << 20) + 7))
    (top / "empty").touch()
    (top / STRANGE).write_bytes(b"strange")
    os.link(top / "big", top / "sub" / "same")
    os.symlink("../nowhere", top / "sub" / "link")
    os.mkfifo(top / "fifo", 0o600)
    with open(top / "sparse", "wb") as file:
        file.seek(50 * CHUNK)
        file.write(b"end")
        file.truncate(90 * CHUNK)
    os.setxattr(top / "big", "user.note", b"\0\xff")
    os.chmod(top / "big", 0o751)
    os.utime(top / "big", ns=(1, 123_456_789_123_456_789))
    os.utime(top / "sub" / "link", ns=(1, 77), follow_symlinks=False)
    os.chmod(top / "sub", 0o1770)
    os.utime(top / "sub", ns=(1, 99))
    return top


def shape(top: Path) -> dict[str, Any]:
    """What must be the same after put and get."""
    found: dict[str, Any] = {}
    first: dict[int, str] = {}
    for folder, folders, names in os.walk(top):
        for name in [*folders, *names]:
            path = Path(folder, name)
            entry = path.lstat()
            row: list[Any] = [entry.st_mode, entry.st_uid, entry.st_gid, entry.st_mtime_ns]
            relative = str(path.relative_to(top))
            if stat.S_ISLNK(entry.st_mode):
                row.append(os.readlink(path))
            elif not stat.S_ISDIR(entry.st_mode):
                row += [first.setdefault(entry.st_ino, relative), entry.st_nlink, entry.st_size]
            if stat.S_ISREG(entry.st_mode):
                row += [path.read_bytes(), os.listxattr(path)]
            found[relative] = row
    return found


def one_line(done: subprocess.CompletedProcess[bytes], code: int, words: bytes) -> None:
    """A failure as DESIGN section 7 wants it."""
    assert done.returncode == code
    assert words in done.stderr
    assert len(said(done.stderr)) == 1, done.stderr
    assert b"Traceback" not in done.stderr


def said(errors: bytes) -> list[bytes]:
    """Lines of a command's standard error but those of progress, which a slow run prints."""
    return [line for line in errors.splitlines() if not line.endswith(b"B/s")]


def test_tree_goes_in_and_comes_out_the_same(served: Volume, tmp_path: Path) -> None:
    top = plant(tmp_path)
    done = json.loads(served.mpifs("put", top, f"{served.store}:/", "--json").stdout)
    assert done["errors"] == []
    assert (done["files"], done["folders"]) == (7, 2)
    (tmp_path / "out").mkdir()
    quiet = served.mpifs("get", f"{served.store}:tree", tmp_path / "out")
    assert (quiet.stdout, said(quiet.stderr)) == (b"", [])
    assert shape(tmp_path / "out" / "tree") == shape(top)
    out = tmp_path / "out" / "tree"
    assert os.getxattr(out / "big", "user.note") == b"\0\xff"
    assert (out / "sparse").stat().st_blocks * 512 < 10 * CHUNK
    # Again into the same names, and as a new name.
    served.mpifs("put", top, f"{served.store}:/")
    served.mpifs("get", f"{served.store}:/tree", tmp_path / "fresh")
    assert shape(tmp_path / "fresh") == shape(top)


def test_what_put_wrote_is_in_the_mount_and_back(
    volume: Callable[..., Volume], tmp_path: Path
) -> None:
    one = volume(mounted=False, workers=3, mkfs=("--chunk-size", str(CHUNK)))
    top = plant(tmp_path)
    one.mpifs("put", top, f"{one.store}:")
    one.mount()
    assert shape(one.mnt / "tree") == shape(top)
    (one.mnt / "made here").write_bytes(b"in the mount")
    one.mpifs("put", top / "big", f"{one.mnt}:made here")
    assert (one.mnt / "made here").read_bytes() == (top / "big").read_bytes()
    one.umount()
    assert one.mpifs("cat", f"{one.store}:made here").stdout == (top / "big").read_bytes()


@pytest.mark.long_variant("at rest")
def test_ls(served: Volume, tmp_path: Path) -> None:
    top = plant(tmp_path)
    served.mpifs("put", top, f"{served.store}:/")
    names = served.mpifs("ls", f"{served.store}:tree").stdout
    wanted = sorted(os.fsencode(name) for name in os.listdir(top))
    assert names == b"".join(name + b"\n" for name in wanted)
    rows = json.loads(served.mpifs("ls", "-R", "--json", f"{served.store}:/").stdout)
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == 1 + len(shape(top))
    assert by_path["/tree/big"]["size"] == 3 * (1 << 20) + 7
    assert by_path["/tree/big"]["mode"] == "0751"
    assert by_path["/tree/sub/link"]["target"] == "../nowhere"
    assert by_path[f"/tree/{STRANGE}"]["type"] == "file"
    text = served.mpifs("ls", "-l", f"{served.store}:tree/sub").stdout.decode()
    assert "link -> ../nowhere" in text
    assert text.startswith("lrwxrwxrwx 1 ")
    one_line(served.mpifs("ls", f"{served.store}:none", check=False), 1, b"No such file")


@pytest.mark.long_variant("at rest")
def test_streams_and_cat(served: Volume, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(1_500_000)
    served.mpifs("put", "-", f"{served.store}:s", stdin=data)
    assert served.mpifs("cat", f"{served.store}:s", f"{served.store}:/s").stdout == data + data
    assert served.mpifs("get", f"{served.store}:s", "-").stdout == data
    one_line(served.mpifs("put", "-", f"{served.store}:/", check=False), 1, b"name")
    one_line(served.mpifs("cat", f"{served.store}:/", check=False), 1, b"folder")


@pytest.mark.long_variant("at rest")
def test_rm(served: Volume, tmp_path: Path) -> None:
    top = plant(tmp_path)
    served.mpifs("put", top, f"{served.store}:/")
    place = f"{served.store}:tree"
    one_line(served.mpifs("rm", place, check=False), 1, b"rm -r")
    one_line(served.mpifs("rm", "-r", f"{served.store}:/", check=False), 1, b"root")
    one_line(served.mpifs("rm", f"{place}/none", check=False), 1, b"No such file")
    served.mpifs("rm", "-f", f"{place}/none")
    served.mpifs("rm", f"{place}/{STRANGE}", f"{place}/sub/link")
    served.mpifs("rm", "-r", place)
    assert served.mpifs("ls", f"{served.store}:/").stdout == b""


@pytest.mark.long_variant("at rest")
def test_one_failure_does_not_stop_the_others(served: Volume, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    sources = [tmp_path / "a", tmp_path / "none", tmp_path / "b"]
    one_line(served.mpifs("put", *sources, f"{served.store}:/", check=False), 1, b"none")
    assert served.mpifs("ls", f"{served.store}:/").stdout == b"a\nb\n"
    done = served.mpifs("put", *sources, f"{served.store}:/", "--json", check=False)
    assert done.returncode == 1
    assert [error["path"] for error in json.loads(done.stdout)["errors"]] == [str(sources[1])]
    same = served.mpifs("put", sources[0], tmp_path / "." / "a", f"{served.store}:/", check=False)
    one_line(same, 1, b"another source")


def test_layout(served: Volume, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(random.Random(3).randbytes(10 * CHUNK + 1))
    served.mpifs("put", tmp_path / "f", f"{served.store}:/")
    names = [f"{served.store}:f"]
    if served.is_alive():
        names.append(str(served.mnt / "f"))
    documents = json.loads(served.mpifs("layout", "--json", *names).stdout)
    assert [document.pop("path") for document in documents] == names
    assert all(document == documents[0] for document in documents)
    (document, *_) = documents
    assert set(document) == {"size", "chunk_size", "replicas", "chunks"}
    assert (document["size"], document["chunk_size"]) == (10 * CHUNK + 1, CHUNK)
    chunks = document["chunks"]
    assert [chunk["index"] for chunk in chunks] == list(range(11))
    assert [chunk["length"] for chunk in chunks] == [CHUNK] * 10 + [1]
    start = chunks[0]["workers"][0] - 1
    assert [c["workers"] for c in chunks] == [[(start + i) % 3 + 1] for i in range(11)]
    assert all(set(c) == {"index", "length", "checksum", "workers"} for c in chunks)
    table = served.mpifs("layout", names[0]).stdout.decode().splitlines()
    assert len(table) == 2 + 11
    one_line(served.mpifs("layout", tmp_path / "f", check=False), 1, b"no mount")
    picture = served.mpifs("layout", f"{served.store}:/").stdout.decode().splitlines()
    assert any(line.startswith("f ") for line in picture)


def test_usage(rest: Volume, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for words in (
        ["put"],
        ["put", tmp_path / "f"],
        ["get", f"{rest.store}:f"],
        ["ls", "x"],
        ["rm"],
    ):
        done = rest.mpifs(*words, check=False)
        assert done.returncode == 2, words
        assert b"Traceback" not in done.stderr
    one_line(rest.mpifs("ls", f"{tmp_path}/no:f", check=False), 1, b"mkfs")
    one_line(rest.mpifs("put", "/none", f"{rest.store}:/", check=False), 1, b"No such file")


def test_no_process_is_left_and_names_with_colons(
    volume: Callable[..., Volume], tmp_path: Path
) -> None:
    one = volume(mounted=False, workers=1)
    other = tmp_path / "vol:with:colons"
    one.mpifs("mkfs", other, "--workers", "1")
    one.mpifs("put", "-", f"{other}:a:b", stdin=b"colons")
    assert one.mpifs("cat", f"{other}:a:b").stdout == b"colons"
    assert processes_of(other) == []


def test_two_commands_on_one_volume_take_turns(rest: Volume) -> None:
    command = [sys.executable, "-m", "mpifs", "put", "-"]
    environment = {**os.environ, TOKEN: str(rest.root)}
    both = [
        subprocess.Popen(
            [*command, f"{rest.store}:{name}"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        for name in ("a", "b")
    ]
    for process in both:  # either may have its turn first, and keeps it until its input has ended
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.close()
        process.stdin = None
    for process in both:
        _, errors = process.communicate(timeout=90)
        assert (process.returncode, said(errors)) == (0, [])
    assert rest.mpifs("ls", f"{rest.store}:/").stdout == b"a\nb\n"


@pytest.mark.long_variant("at rest")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_put_leaves_nothing(served: Volume, number: int) -> None:
    served.mpifs("put", "-", f"{served.store}:f", stdin=b"old")
    with subprocess.Popen(
        [sys.executable, "-m", "mpifs", "put", "-", f"{served.store}:f"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, TOKEN: str(served.root)},
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(os.urandom(5 << 20))  # returns when most of it has been read.
        process.stdin.flush()
        time.sleep(0.5)
        process.send_signal(number)
        process.wait(60)
        assert process.returncode == 1
        lines = process.stderr.read().splitlines()  # a slow run has told of its progress, too.
        assert lines[-1] == b"mpifs: interrupted"
        assert all(line.startswith(b"mpifs") for line in lines), lines
    assert served.mpifs("ls", f"{served.store}:/").stdout == b"f\n"
    assert served.mpifs("cat", f"{served.store}:f").stdout == b"old"


def test_reader_that_has_enough(served: Volume) -> None:
    served.mpifs("put", "-", f"{served.store}:f", stdin=bytes(5 << 20))
    with subprocess.Popen(
        [sys.executable, "-m", "mpifs", "cat", f"{served.store}:f"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, TOKEN: str(served.root)},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert said(process.stderr.read()) == []
        assert process.wait(60) == 1
