"""Small reads at random of a real mount: right bytes from parts of chunks, EIO for damaged ones."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from errno import EIO

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
