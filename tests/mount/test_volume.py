"""A volume from outside: striping, remounts, damage, refusals, crashes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from errno import EROFS
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import pytest
import xxhash

from tests.mount.calls import (
    KEEP_SIZE,
    PUNCH_HOLE,
    describe,
    fallocate,
    make_zoo,
    needs_root,
    opened,
    pattern,
    put,
    raises,
)
from tests.mount.harness import Volume, poll, refused

pytestmark = pytest.mark.limit(150)
KEY = struct.Struct(">QQQ")
HEADER = struct.Struct("<4sBBHQQQI4x16sQ")
KIB = 1024
CHUNK = 64 * KIB
SMALL_CHUNKS = ("--chunk-size", str(CHUNK))
Make = Callable[..., Volume]


class Stored(NamedTuple):
    """One chunk as found in a store."""

    generation: int
    length: int
    checksum: str
    payload: bytes


def stored_chunks(store: Path) -> dict[tuple[int, int, int], list[Stored]]:
    """(worker, inode, chunk) → what plain py-lmdb finds in the stores, oldest first."""
    found: dict[tuple[int, int, int], list[Stored]] = {}
    for folder in sorted(store.glob("worker-*")):
        for name in ("small", "large"):
            with (
                lmdb.open(str(folder / name), readonly=True, lock=False, max_dbs=4) as env,
                env.begin() as txn,
            ):
                for key, value in txn.cursor(env.open_db(b"chunks", txn, create=False)):
                    inode, chunk, generation = KEY.unpack(key)
                    magic, version, _, _, *inside, length, checksum, _ = HEADER.unpack_from(value)
                    assert (magic, version, inside) == (b"mpCH", 1, [inode, chunk, generation])
                    assert len(value) >= 64 + length
                    entry = Stored(generation, length, checksum.hex(), value[64 : 64 + length])
                    found.setdefault((int(folder.name.partition("-")[2]), inode, chunk), []).append(
                        entry
                    )
    return found


@pytest.mark.parametrize(("workers", "replicas"), [(4, 1), (3, 2)])
def test_striping_is_what_layout_says(volume: Make, workers: int, replicas: int) -> None:
    one = volume(workers=workers, mkfs=(*SMALL_CHUNKS, "--replicas", str(replicas)))
    sizes = {
        "large": 11 * CHUNK + 5,
        "border": 2 * CHUNK,
        "tiny": 3,
        "empty": 0,
        **{f"small{n}": 100 + n for n in range(8)},
    }
    data = {name: pattern(size, size) for name, size in sizes.items()}
    for name, content in data.items():
        put(one / name, content)
    with opened(one / "sparse", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 20 * CHUNK)
        os.pwrite(fd, b"x" * CHUNK, 9 * CHUNK)
    with opened(one / "large") as fd:
        os.fsync(fd)
    os.sync()
    names = [*data, "sparse"]
    layouts = dict(zip(names, one.layout(*(one / name for name in names)), strict=True))
    inodes = {name: (one / name).stat().st_ino for name in names}
    status = one.status()
    one.umount()
    found = stored_chunks(one.store)
    listed = {
        (worker, inodes[name], chunk["index"]): chunk
        for name in names
        for chunk in layouts[name]["chunks"]
        for worker in chunk["workers"]
    }
    assert set(found) == set(listed)
    for place, chunk in listed.items():
        last = found[place][-1]
        assert (last.length, last.checksum) == (chunk["length"], chunk["checksum"]), place
        assert xxhash.xxh3_128_hexdigest(last.payload) == chunk["checksum"], place
    for name, layout in layouts.items():
        chunks = layout["chunks"]
        assert (layout["size"], layout["chunk_size"], layout["replicas"]) == (
            (one.workers and (20 * CHUNK if name == "sparse" else sizes[name])),
            CHUNK,
            replicas,
        )
        assert [c["index"] for c in chunks] == (
            [9] if name == "sparse" else list(range(-(-sizes[name] // CHUNK)))
        )
        for chunk in chunks:
            assert len(set(chunk["workers"])) == replicas
            assert all(1 <= w <= workers for w in chunk["workers"])
        for before, after in itertools.pairwise(chunks):
            assert (after["workers"][0] - before["workers"][0]) % workers == 1, "round-robin"
        if name in data and len(chunks) == 12:
            whole = b"".join(
                found[c["workers"][-1], inodes[name], c["index"]][-1].payload for c in chunks
            )
            assert whole == data[name]
    starts = [layouts[f"small{n}"]["chunks"][0]["workers"][0] for n in range(8)]
    assert len(set(starts)) == workers, "small files must spread over the workers"
    assert sum(w["chunks"] for w in status["workers"]) == len(listed)
    assert sum(w["bytes"] for w in status["workers"]) == sum(c["length"] for c in listed.values())
    assert status["files"] >= len(names)


@needs_root
@pytest.mark.parametrize(
    ("binding", "extra"), [("fuse3", ()), ("fuse2", ()), ("fuse3", ("--mpi", "mpich"))]
)
def test_everything_is_there_after_remounts(
    volume: Make, binding: str, extra: tuple[str, ...]
) -> None:
    if (
        extra
        and not any(Path(sys.prefix).glob("**/bin/mpichversion"))
        and not shutil.which("mpichversion")
    ):
        pytest.skip("MPICH is not installed")
    one = volume(binding=binding, mkfs=SMALL_CHUNKS, arguments=extra)
    make_zoo(one / "zoo")
    for name, value in (("user.a", b"1"), ("user.b", pattern(4000))):
        os.setxattr(one / "zoo/sub", name, value)
    with opened(one / "zoo/sub/deeper/large") as fd:
        os.pwrite(fd, b"again", CHUNK - 2)
        os.utime(fd, ns=(7, 123_456_789_123_456_789))
    os.unlink(one / "zoo/hard link")
    os.link(one / "zoo/sub/deeper/large", one / "zoo/other link")
    os.chmod(one / "zoo", 0o1755)
    os.utime(one / "zoo", ns=(1, -1_000_000_001))
    os.utime(one / "zoo/sub/deeper", ns=(1, 4_300_000_000_000_000_001))
    want, root = describe(one.mnt), one.mnt.stat()
    inodes = {p: p.lstat().st_ino for p in one.mnt.rglob("*")}
    blocks = (one / "zoo/sparse").stat().st_blocks
    for _ in range(2):
        one.remount()
        assert describe(one.mnt) == want
        assert {p: p.lstat().st_ino for p in one.mnt.rglob("*")} == inodes
        assert (one.mnt.stat().st_mode, one.mnt.stat().st_nlink, one.mnt.stat().st_mtime_ns) == (
            root.st_mode,
            root.st_nlink,
            root.st_mtime_ns,
        )
        assert (one / "zoo/sparse").stat().st_blocks == blocks < 1_000
    put(one / "late", b"new")
    assert (one / "late").stat().st_ino not in inodes.values()
    shutil.rmtree(one / "zoo")
    one.remount()
    assert os.listdir(one.mnt) == ["late"]


def test_overwritten_and_deleted_bytes_leave_the_stores(volume: Make) -> None:
    one = volume(mkfs=SMALL_CHUNKS)
    for number in range(6):
        put(one / "f", pattern(8 * CHUNK, number))
    put(one / "gone", pattern(8 * CHUNK))
    os.sync()
    os.unlink(one / "gone")
    with opened(one / "open", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, pattern(4 * CHUNK))
        os.fsync(fd)
        os.unlink(one / "open")
    poll(
        lambda: (
            one.status()["bytes"] == 8 * CHUNK
            and sum(w["chunks"] for w in one.status()["workers"]) == 8
        ),
        15,
        "garbage is deleted",
        0.3,
    )
    one.umount()
    assert sum(len(entries) for entries in stored_chunks(one.store).values()) == 8


def test_chunk_size_and_replicas_by_attribute(volume: Make) -> None:
    one = volume(workers=3)
    folder = one / "d"
    folder.mkdir()
    os.setxattr(folder, "user.mpifs.chunk_size", b"4096")
    os.setxattr(folder, "user.mpifs.replicas", b"2")
    (folder / "sub").mkdir()
    for path in (
        put(folder / "f", pattern(10_000)),
        put(folder / "sub/f", pattern(10_000)),
        put(one / "plain", pattern(10_000)),
    ):
        os.sync()
        (layout,) = one.layout(path)
        inherits = path.parent != one.mnt
        assert (layout["chunk_size"], layout["replicas"]) == (
            (4096, 2) if inherits else (1024 * KIB, 1)
        )
        assert [c["length"] for c in layout["chunks"]] == (
            [4096, 4096, 1808] if inherits else [10_000]
        )
        assert os.getxattr(path, "user.mpifs.layout")
        with pytest.raises(OSError):
            os.setxattr(path, "user.mpifs.chunk_size", b"8192")  # not empty any more
        assert path.read_bytes() == pattern(10_000)


def test_read_only_mount(volume: Make) -> None:
    one = volume(mkfs=SMALL_CHUNKS)
    put(one / "f", b"text")
    (one / "d").mkdir()
    os.symlink("f", one / "s")
    os.setxattr(one / "f", "user.x", b"1")
    one.remount("ro")
    f, new = one / "f", one / "new"
    calls: dict[str, Callable[[], Any]] = {
        "open": lambda: os.open(f, os.O_RDWR), "append": lambda: os.open(f, os.O_WRONLY | os.O_APPEND), "trunc": lambda: os.open(f, os.O_RDONLY | os.O_TRUNC),
        "create": lambda: os.open(new, os.O_RDWR | os.O_CREAT), "mkdir": new.mkdir, "unlink": lambda: os.unlink(f), "rmdir": (one / "d").rmdir,
        "rename": lambda: os.rename(f, new), "link": lambda: os.link(f, new), "symlink": lambda: os.symlink("f", new), "mkfifo": lambda: os.mkfifo(new),
        "chmod": lambda: os.chmod(f, 0o600), "chown": lambda: os.chown(f, 0, 0), "utime": lambda: os.utime(f, (1, 1)), "truncate": lambda: os.truncate(f, 0),
        "setxattr": lambda: os.setxattr(f, "user.y", b""), "removexattr": lambda: os.removexattr(f, "user.x"),
    }  # fmt: skip
    for name, call in calls.items():
        try:
            with raises(EROFS):
                call()
        except (AssertionError, pytest.fail.Exception) as error:
            pytest.fail(f"{name}: {error}")
    assert f.read_bytes() == b"text"
    assert os.statvfs(one.mnt).f_flag & os.ST_RDONLY
    before = describe(one.mnt)
    one.remount()
    assert describe(one.mnt) == before
    put(new)


def test_errors_and_json_of_the_commands(volume: Make, tmp_path: Path) -> None:
    one = volume(mkfs=SMALL_CHUNKS, workers=2)
    put(one / "f", pattern(1000))
    status = one.status()
    assert set(status) >= {"volume", "mount", "workers", "files", "bytes"}
    assert set(status["volume"]) >= {"uuid", "chunk_size", "replicas", "checksum", "workers"}
    assert set(status["mount"]) >= {"mountpoint", "pid", "state"}
    assert [w["id"] for w in status["workers"]] == [1, 2]
    assert all(
        set(w) >= {"id", "state", "pid", "host", "chunks", "bytes", "free"}
        for w in status["workers"]
    )
    assert (
        status["volume"]["chunk_size"],
        status["volume"]["workers"],
        status["mount"]["mountpoint"],
    ) == (CHUNK, 2, str(one.mnt))
    assert one.mpifs("status", one.mnt).stdout
    assert json.loads(one.mpifs("status", "--json", one.store).stdout)["volume"] == status["volume"]
    for arguments in (
        ("layout", one / "none"),
        ("layout", "/etc/passwd"),
        ("status", tmp_path),
        ("umount", tmp_path),
    ):
        refused(one.mpifs(*arguments, check=False))
    for place in (one.store, one.store / "index", one.store / "worker-1", one.store / "run"):
        assert place.stat().st_mode & 0o077 == 0, place


@pytest.mark.parametrize("is_mounted", [True, False])
def test_put_get_ls_cat_rm(volume: Make, tmp_path: Path, is_mounted: bool) -> None:
    one = volume(mkfs=SMALL_CHUNKS, mounted=is_mounted)
    place = one.mnt if is_mounted else one.store
    data = pattern(3 * CHUNK + 7)
    (tmp_path / "tree/sub").mkdir(parents=True)
    put(tmp_path / "tree/sub/file", data)
    put(tmp_path / "tree/small", b"small\n")
    one.mpifs("put", tmp_path / "tree", f"{place}:/")
    assert one.mpifs("ls", f"{place}:/tree").stdout.split() == [b"small", b"sub"]
    assert one.mpifs("cat", f"{place}:/tree/sub/file").stdout == data
    one.mpifs("get", f"{place}:/tree", tmp_path / "back")
    back = tmp_path / "back" / ("tree" if (tmp_path / "back/tree").exists() else "")
    assert (back / "sub/file").read_bytes() == data
    refused(one.mpifs("cat", f"{place}:/none", check=False))
    one.mpifs("rm", f"{place}:/tree/small")
    assert one.mpifs("ls", f"{place}:/tree").stdout.split() == [b"sub"]
    if not is_mounted:
        one.wait_gone(10)


def test_several_clients_at_once_under_small_chunks(volume: Make) -> None:
    """4 KiB chunks, three replicas: many messages; punch, truncate and rewrite between remounts."""
    one = volume(
        workers=3, mkfs=("--chunk-size", "4096", "--replicas", "3", "--checksum", "blake3")
    )
    model = bytearray(pattern(400_001))
    put(one / "f", model)
    with opened(one / "f") as fd:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 10_000, 50_000)
        model[10_000:60_000] = bytes(50_000)
        for offset in range(3, 400_000, 7_777):
            os.pwrite(fd, b"patch", offset)
            model[offset : offset + 5] = b"patch"
        os.ftruncate(fd, 300_003)
        del model[300_003:]
    one.remount()
    assert (one / "f").read_bytes() == model
    (layout,) = one.layout(one / "f")
    assert all(len(set(c["workers"])) == 3 for c in layout["chunks"])
    assert sum(w["chunks"] for w in one.status()["workers"]) >= 3 * len(layout["chunks"])
