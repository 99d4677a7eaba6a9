"""Reads without a copy: right bytes, None where they do not lie together, and never reused early."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.limits import KIB, MIB
from mpifs.core.types import Caller
from mpifs.job.assembly import VfsOptions
from mpifs.vfs.facade import Vfs
from tests.vfs.loopback import LoopbackVolume, harm

ME = Caller(0, 0)
CHUNK = 256 * KIB
DATA = random.Random(1).randbytes(6 * CHUNK + 1000)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LoopbackVolume]:
    made = LoopbackVolume(tmp_path / "volume", workers=2, chunk_size=CHUNK)
    yield made
    made.close()


def made_file(vfs: Vfs, data: bytes, path: bytes = b"/file") -> int:
    fh = vfs.create(path, 0o644, os.O_RDWR, ME)
    vfs.write(fh, memoryview(data), 0)
    vfs.fsync(fh)
    return fh


def lent(vfs: Vfs, fh: int, size: int, offset: int) -> bytes | None:
    loan = vfs.lend(fh, size, offset)
    if loan is None:
        return None
    with loan:
        return bytes(loan.payload)


def test_stored_bytes_of_one_chunk_are_lent(volume: LoopbackVolume) -> None:
    vfs = volume.open()
    fh = made_file(vfs, DATA)
    assert lent(vfs, fh, CHUNK, 0) == DATA[:CHUNK]
    assert lent(vfs, fh, 1000, CHUNK - 1000) == DATA[CHUNK - 1000 : CHUNK]
    assert lent(vfs, fh, CHUNK, 6 * CHUNK) == DATA[6 * CHUNK :]
    assert lent(vfs, fh, CHUNK, 6 * CHUNK + 999) == DATA[-1:]


def test_all_else_is_left_to_read(volume: LoopbackVolume) -> None:
    vfs = volume.open()
    fh = made_file(vfs, DATA)
    assert lent(vfs, fh, CHUNK, 1) is None  # of two chunks
    assert lent(vfs, fh, CHUNK, len(DATA)) is None  # behind the end
    vfs.truncate(b"/file", 9 * CHUNK, fh, ME)
    assert lent(vfs, fh, CHUNK, 8 * CHUNK) is None  # a hole
    assert lent(vfs, fh, CHUNK, 6 * CHUNK) is None  # partly one
    vfs.write(fh, memoryview(b"new"), 10)
    assert lent(vfs, fh, CHUNK, 0) is None  # not stored yet
    vfs.fsync(fh)
    assert lent(vfs, fh, 13, 0) == DATA[:10] + b"new"


def test_a_loan_outlives_its_place_in_the_cache(volume: LoopbackVolume) -> None:
    vfs = volume.open(VfsOptions(cache_bytes_max=MIB))
    fh = made_file(vfs, DATA)
    other = made_file(vfs, DATA[::-1] * 3, b"/other")
    loan = vfs.lend(fh, CHUNK, CHUNK)
    assert loan is not None
    with loan:
        for offset in range(0, 15 * CHUNK, CHUNK):
            lent(vfs, other, CHUNK, offset)
        vfs.reader.cache.clear()
        vfs.write(fh, memoryview(bytes(CHUNK)), CHUNK)
        vfs.fsync(fh)
        assert loan.payload == DATA[CHUNK : 2 * CHUNK]


def test_damage_is_never_lent(volume: LoopbackVolume) -> None:
    vfs = volume.open()
    fh = made_file(vfs, DATA)
    harm(volume, b"/file", 2, 5)
    vfs.reader.cache.clear()
    assert lent(vfs, fh, CHUNK, 2 * CHUNK) is None
    assert lent(vfs, fh, CHUNK, 3 * CHUNK) == DATA[3 * CHUNK : 4 * CHUNK]
