"""Damage, refusals, crashes and ends of a volume, from outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from errno import ECONNABORTED, EIO, ENOTCONN
from pathlib import Path

import pytest

from tests.mount.calls import (
    opened,
    pattern,
    put,
    raises,
    read_all,
)
from tests.mount.harness import Volume, fuse_mounts, poll, refused

pytestmark = pytest.mark.limit(150)
KIB = 1024
CHUNK = 64 * KIB
SMALL_CHUNKS = ("--chunk-size", str(CHUNK))
Make = Callable[..., Volume]


def flip(store: Path, worker: int, payload: bytes) -> None:
    """Flips a byte in the middle of a chunk, wherever the store's files hold it."""
    needle, hits = payload[1000:1064], 0
    for path in (store / f"worker-{worker}").glob("*/data.mdb"):
        content = path.read_bytes()
        position = -1
        while (position := content.find(needle, position + 1)) >= 0:
            with opened(path) as fd:
                os.pwrite(fd, bytes([needle[5] ^ 0x10]), position + 5)
            hits += 1
    assert hits, "the chunk was not found in the store's files"


@pytest.mark.parametrize("replicas", [2, 1])
def test_flipped_byte(volume: Make, replicas: int) -> None:
    """With a second copy the right bytes come, without one EIO: never the wrong bytes."""
    one = volume(workers=3, mkfs=(*SMALL_CHUNKS, "--replicas", str(replicas)))
    count = 6 if replicas == 1 else 40  # which copy is asked first is drawn by chance: be sure
    data = pattern(count * CHUNK + 9)
    put(one / "file", data)
    put(one / "other", data[::-1])
    os.sync()
    chunks = one.layout(one / "file")[0]["chunks"][:count]
    worker = chunks[3]["workers"][0]
    # with two replicas all copies of one worker: some chunk will be asked of it first
    harmed = [3] if replicas == 1 else [c["index"] for c in chunks if worker in c["workers"]]
    one.umount()
    for index in harmed:
        flip(one.store, worker, data[index * CHUNK : (index + 1) * CHUNK])
    one.mount()
    if replicas == 2:
        assert (one / "file").read_bytes() == data
    else:
        with opened(one / "file") as fd:
            with raises(EIO):
                read_all(fd, CHUNK, 3 * CHUNK)
            assert read_all(fd, 3 * CHUNK) == data[: 3 * CHUNK]
            assert read_all(fd, 9 * CHUNK, 4 * CHUNK) == data[4 * CHUNK :]
            with raises(EIO):
                os.pwrite(fd, b"x", 3 * CHUNK + 5)
                os.fsync(fd)
                read_all(fd, CHUNK, 3 * CHUNK)
    assert (one / "other").read_bytes() == data[::-1]
    lines = [
        line
        for line in one.log().splitlines()
        if "file" in line
        and re.search(rf"worker.{{0,3}}{worker}\b", line)
        and re.search(rf"\b({'|'.join(map(str, harmed))})\b", line)
    ]
    assert lines, one.log_tail()


def test_refusals(volume: Make, tmp_path: Path) -> None:
    one = volume(mkfs=SMALL_CHUNKS, workers=2)
    put(one / "f", b"text")
    second = tmp_path / "mnt2"
    second.mkdir()
    refused(one.mpifs("mount", one.store, second, check=False), "use", "mounted", "serv")
    refused(one.mpifs("mkfs", one.store, check=False), "already", "volume")
    assert not fuse_mounts(tmp_path)
    one.umount()
    refused(one.mpifs("mount", one.store, second, "-w", "3", check=False), "worker")
    refused(one.mpifs("umount", second, check=False))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    put(foreign / "thesis.txt", b"mine")
    refused(one.mpifs("mkfs", foreign, check=False))
    refused(one.mpifs("mount", foreign, second, check=False))
    assert os.listdir(foreign) == ["thesis.txt"]
    refused(one.mpifs("mount", one.store, tmp_path / "none", check=False))
    for arguments in (
        ("--workers", "0"),
        ("--chunk-size", "5000"),
        ("--chunk-size", "128MiB"),
        ("--replicas", "0"),
        ("--checksum", "md5"),
        ("--replicas", "3", "--workers", "2"),
    ):
        refused(one.mpifs("mkfs", tmp_path / "new", *arguments, check=False))
    assert not (tmp_path / "new").exists() or not os.listdir(tmp_path / "new")
    one.mount()
    assert (one / "f").read_bytes() == b"text"


def test_swapped_stores_are_refused(volume: Make) -> None:
    one = volume(mkfs=SMALL_CHUNKS, workers=2)
    put(one / "f", pattern(3 * CHUNK))
    one.umount()
    first, second, aside = one.store / "worker-1", one.store / "worker-2", one.store / "aside"
    for _ in range(2):
        first.rename(aside)
        second.rename(first)
        aside.rename(second)
        if _ == 0:
            refused(one.mount(check=False))
            assert not fuse_mounts(one.folder)
            one.wait_gone(15)
    one.mount()
    assert (one / "f").read_bytes() == pattern(3 * CHUNK)


@pytest.mark.parametrize("harm", ["foreign", "missing", "damaged superblock", "newer version"])
def test_a_wrong_store_is_never_used(volume: Make, harm: str) -> None:
    """The volume is mounted without it: EIO for exactly what lies there, and a warning."""
    one = volume(mkfs=SMALL_CHUNKS, workers=2)
    put(one / "f", pattern(3 * CHUNK))
    layout = json.loads(one.mpifs("layout", one / "f", "--json").stdout)[0]["chunks"]
    one.umount()
    first, aside = one.store / "worker-1", one.store / "aside"
    block = first / "superblock"
    original = block.read_bytes()
    match harm:
        case "foreign":
            other = volume(mkfs=SMALL_CHUNKS, workers=2)
            other.umount()
            first.rename(aside)
            shutil.copytree(other.store / "worker-1", first)
        case "missing":
            first.rename(aside)
        case "damaged superblock":
            block.write_bytes(original[:40] + bytes([original[40] ^ 1]) + original[41:])
        case "newer version":
            block.write_bytes(original[:8] + b"\x63" + original[9:])
    told = one.mount().stderr.decode()
    assert "worker 1 is lost" in told
    assert [w["state"] for w in one.status()["workers"]] == ["lost", "serving"]
    with open(one / "f", "rb") as file:
        for chunk in layout:
            if chunk["workers"] == [1]:
                with pytest.raises(OSError, match="Input/output error"):
                    os.pread(file.fileno(), 1, chunk["index"] * CHUNK)
            else:
                start = chunk["index"] * CHUNK
                assert os.pread(file.fileno(), CHUNK, start) == pattern(3 * CHUNK)[start:][:CHUNK]
    put(one / "g", pattern(2 * CHUNK))
    assert (one / "g").read_bytes() == pattern(2 * CHUNK)
    one.umount()
    match harm:
        case "foreign" | "missing":
            shutil.rmtree(first, ignore_errors=True)
            aside.rename(first)
        case _:
            block.write_bytes(original)
    one.mount()
    assert (one / "f").read_bytes() == pattern(3 * CHUNK)
    assert (one / "g").read_bytes() == pattern(2 * CHUNK)


def test_dead_mount_is_cleared_and_synced_data_is_there(volume: Make) -> None:
    one = volume(mkfs=SMALL_CHUNKS)
    data = pattern(9 * CHUNK + 1)
    with opened(one / "synced", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, data)
        os.fsync(fd)
    put(one / "old", b"old content")
    os.sync()
    os.rename(put(one / "new", b"new content, longer"), one / "old")
    fd = os.open(one / "orphan", os.O_RDWR | os.O_CREAT)
    os.write(fd, data)
    os.fsync(fd)
    os.unlink(one / "orphan")
    os.fsync(fd)
    with opened(one.mnt, os.O_RDONLY) as folder:
        os.fsync(folder)
    one.kill()
    with raises(ENOTCONN, ECONNABORTED):
        os.listdir(one.mnt)
    with raises(ENOTCONN, ECONNABORTED):
        os.close(fd)
    one.mount()
    assert (one / "synced").read_bytes() == data
    assert (one / "old").read_bytes() in {b"old content", b"new content, longer"}
    assert not (one / "orphan").exists()
    assert not [name for name in os.listdir(one.mnt) if name.startswith(".fuse_hidden")]
    one.kill()
    one.mpifs("umount", one.mnt, check=False)
    assert not fuse_mounts(one.folder)
    one.mount()
    poll(
        lambda: sum(w["chunks"] for w in one.status()["workers"]) <= 12,
        15,
        "the orphan's chunks are deleted",
        0.3,
    )
    assert (one / "synced").read_bytes() == data


@pytest.mark.parametrize("way", ["fusermount", "SIGTERM", "SIGINT", "umount command"])
def test_every_way_to_end_is_clean(volume: Make, way: str) -> None:
    one = volume(mkfs=SMALL_CHUNKS)
    data = pattern(5 * CHUNK + 3)
    put(one / "f", data)
    match way:
        case "fusermount":
            assert os.spawnlp(os.P_WAIT, "fusermount3", "fusermount3", "-u", str(one.mnt)) == 0
        case "umount command":
            assert os.spawnlp(os.P_WAIT, "umount", "umount", str(one.mnt)) == 0
        case _:
            os.kill(one.status()["mount"]["pid"], getattr(signal, way))
    poll(lambda: not fuse_mounts(one.folder), 20, "unmounted")
    one.wait_gone(25)
    one.mount()
    assert (one / "f").read_bytes() == data


def test_dead_worker_loses_nothing_that_is_written(volume: Make) -> None:
    """SIGKILL of a worker amid writes: they go on without an error, and every byte is there."""
    one = volume(mkfs=SMALL_CHUNKS, workers=3)
    files = {f"f{n}": pattern(CHUNK * (n % 5) + 777 + n) for n in range(60)}
    for number, (name, data) in enumerate(files.items()):
        if number == 20:
            os.kill(one.status()["workers"][1]["pid"], signal.SIGKILL)
        put(one / name, data)
    with opened(one.mnt, os.O_RDONLY) as fd:
        os.fsync(fd)
    poll(lambda: one.status()["workers"][1]["state"] == "serving", 10, "the replacement")
    put(one / "later", files["f7"])
    one.remount()
    for name, data in files.items():
        assert (one / name).read_bytes() == data, name
    assert (one / "later").read_bytes() == files["f7"]


def test_mount_at_once_after_everything_was_killed(volume: Make) -> None:
    """The kernel still answers stat of the dead mount from its cache: that is no living mount."""
    one = volume(mkfs=SMALL_CHUNKS)
    put(one / "file", b"content")
    with opened(one / "file") as fd:
        os.fsync(fd)
    for _ in range(3):
        pids = one.pids()
        os.stat(one.mnt)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        one.mount()
        assert (one / "file").read_bytes() == b"content"
