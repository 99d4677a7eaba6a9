"""Small reads at random of a real mount: right bytes from parts of chunks, EIO for damaged ones."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from errno import EIO, EOPNOTSUPP
from pathlib import Path

import pytest

from tests.mount.calls import opened, pattern, put, raises, read_all
from tests.mount.harness import Volume
from tests.mount.test_volume_harm import flip

pytestmark = pytest.mark.limit(150)
KIB = 1024
CHUNK = 512 * KIB
COUNT = 24
PAGE = 4 * KIB
Make = Callable[..., Volume]


def forget(fd: int) -> None:
    """The kernel forgets the file's pages."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("replicas", [1, 2])
def test_random_reads_and_a_flipped_byte(volume: Make, replicas: int) -> None:
    """Damaged while the mount runs, in a chunk that has been read before and in one that has not."""
    one = volume(
        workers=2,
        mkfs=("--chunk-size", str(CHUNK), "--replicas", str(replicas)),
        options=("cache=8MiB",),
    )
    data = pattern(COUNT * CHUNK + 777)
    put(one / "file", data)
    one.remount()
    chance = random.Random(6)
    known, fresh = 20, 22
    chunks = one.layout(one / "file")[0]["chunks"]
    with opened(one / "file") as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(60):
            at = chance.randrange(18 * CHUNK)
            assert read_all(fd, 2 * PAGE, at) == data[at : at + 2 * PAGE]
        assert (
            read_all(fd, PAGE, known * CHUNK + 9 * PAGE) == data[known * CHUNK + 9 * PAGE :][:PAGE]
        )
        with opened(one / "file") as other:  # takes the place of all that mpifs has cached
            os.posix_fadvise(other, 0, 0, os.POSIX_FADV_RANDOM)
            assert read_all(other, 17 * CHUNK) == data[: 17 * CHUNK]
        forget(fd)
        for chunk in (known, fresh):  # its byte 1005
            flip(one.store, chunks[chunk]["workers"][0], data[chunk * CHUNK : (chunk + 1) * CHUNK])
        for chunk in (known, fresh):
            assert read_all(fd, PAGE, 5 * CHUNK) == data[5 * CHUNK :][:PAGE]  # far away
            if replicas == 2:
                for _ in range(4):
                    assert read_all(fd, PAGE, chunk * CHUNK) == data[chunk * CHUNK :][:PAGE]
                    forget(fd)
            else:
                with raises(EIO):
                    read_all(fd, PAGE, chunk * CHUNK)
        for _ in range(60):
            at = chance.randrange(known * CHUNK - 2 * PAGE)
            assert read_all(fd, 2 * PAGE, at) == data[at : at + 2 * PAGE]
    assert "part of " in one.log(), one.log()
    if replicas == 1:
        assert f"chunk {known} " in one.log()
        for chunk in (known, fresh):
            flip_back(one, chunks[chunk]["workers"][0], data, chunk)
        with opened(one / "file") as fd:
            assert read_all(fd, PAGE, known * CHUNK) == data[known * CHUNK :][:PAGE]
    assert one.mpifs("fsck", "--repair", one.mnt, check=False).returncode in {0, 1}


def flip_back(one: Volume, worker: int, data: bytes, chunk: int) -> None:
    """The byte is right again: nothing that was wrong has been kept."""
    payload = bytearray(data[chunk * CHUNK : (chunk + 1) * CHUNK])
    payload[1005] ^= 0x10
    flip(one.store, worker, bytes(payload))


def local_bytes(one: Volume) -> int:
    """What rank 0 has read past its workers."""
    printed = one.mpifs("metrics", one.mnt).stdout
    (line,) = [x for x in printed.splitlines() if x.startswith(b"mpifs_local_read_bytes_total")]
    return int(float(line.split()[1]))


def tells_what_is_in_memory(folder: Path) -> bool:
    """Whether this file system knows RWF_NOWAIT; else every chunk is read by its worker."""
    (folder / "probe").write_bytes(b"x")
    with opened(folder / "probe", os.O_RDONLY) as fd:
        try:
            os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as error:
            return error.errno != EOPNOTSUPP
    return True


@pytest.mark.parametrize("reads", ["local", "mpi"])
def test_reads_past_the_workers(volume: Make, reads: str) -> None:
    """What is in memory comes from there, but for a page that the kernel has just taken away."""
    one = volume(
        workers=2, mkfs=("--chunk-size", str(CHUNK)), options=(f"reads={reads}", "cache=8MiB")
    )
    if not tells_what_is_in_memory(one.folder):
        pytest.skip("this file system does not know what is in memory")
    data = pattern(COUNT * CHUNK)
    put(one / "file", data)
    chance = random.Random(4)
    with opened(one / "file", os.O_RDONLY) as fd:
        forget(fd)
        assert read_all(fd, len(data)) == data
        forget(fd)
        for _ in range(100):
            at = chance.randrange(len(data) - PAGE)
            assert read_all(fd, PAGE, at) == data[at : at + PAGE]
    if reads == "mpi":
        assert local_bytes(one) == 0
    else:
        assert local_bytes(one) >= 0.9 * (len(data) - 8 * 1024 * KIB)
