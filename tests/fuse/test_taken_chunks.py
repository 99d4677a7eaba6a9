"""Whole chunks through the mount: they stay in the memory in which their requests came."""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mpifs.core.limits import KIB, MIB
from tests.fuse.conftest import Mounted
from tests.threads import all_at_once

WRITERS = 3
ROUNDS = 6


@pytest.fixture
def mounted(mount_with: Callable[..., Mounted]) -> Mounted:
    return mount_with("", chunk_size=MIB)


def write_all(path: Path, mode: int, blocks: list[tuple[int, bytes]], sync: bool) -> None:
    """From memory that begins with a page: as one request each, where the kernel lets them be."""
    memory = mmap.mmap(-1, MIB)
    fd = os.open(path, mode)
    try:
        for offset, data in blocks:
            memory[: len(data)] = data
            assert os.pwrite(fd, memoryview(memory)[: len(data)], offset) == len(data)
            if sync:
                os.fdatasync(fd)
    finally:
        os.close(fd)


def write_at_once(
    path: Path, mode: int, shift: int, chance: random.Random, model: bytearray, sync: bool = False
) -> None:
    """Each writer its own places of one file, next to those of the others."""
    shares: list[list[tuple[int, bytes]]] = [[] for _ in range(WRITERS)]
    for number in range(WRITERS * ROUNDS):
        offset, data = number * MIB + shift, chance.randbytes(MIB)
        shares[number % WRITERS].append((offset, data))
        model[offset : offset + MIB] = data
    failed: list[BaseException] = []

    def work(blocks: list[tuple[int, bytes]]) -> None:
        try:
            write_all(path, mode, blocks, sync)
        except (OSError, AssertionError) as error:
            failed.append(error)

    all_at_once(work, shares)
    assert not failed


def compare(path: Path, model: bytearray) -> None:
    """By bytes, not by a picture of 19 MiB."""
    found = path.read_bytes()
    assert len(found) == len(model)
    for at in range(0, len(model), 64 * KIB):
        assert found[at : at + 64 * KIB] == model[at : at + 64 * KIB], at


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("mode", [os.O_WRONLY, os.O_RDWR], ids=["past the cache", "page cache"])
def test_three_writers_of_one_file(mounted: Mounted, mode: int, seed: int) -> None:
    """Aligned, with an odd shift, and aligned over what is dirty or on its way from before."""
    path, chance, model = mounted.path / "file", random.Random(seed), bytearray()
    path.touch()
    shifts = [0, 0, 512 * KIB, 0, chance.randrange(1, MIB), 4096, 0]
    for shift in shifts:
        model.extend(bytes(max(0, shift + WRITERS * ROUNDS * MIB - len(model))))
        write_at_once(path, mode, shift, chance, model)
        if chance.random() < 0.7:
            compare(path, model)
    os.sync()
    compare(path, model)
    assert mounted.calls()["take"] >= WRITERS * ROUNDS


@pytest.mark.parametrize("sync", [False, True])
def test_whole_chunks_are_taken(mounted: Mounted, sync: bool) -> None:
    path, model = mounted.path / "file", bytearray(WRITERS * ROUNDS * MIB)
    path.touch()
    mounted.calls()
    write_at_once(path, os.O_WRONLY, 0, random.Random(3), model, sync)
    calls = mounted.calls()
    assert (calls["take"], calls.get("write", 0)) == (WRITERS * ROUNDS, 0)
    compare(path, model)


def test_others_write_small_things_meanwhile(mounted: Mounted) -> None:
    """Requests of all kinds come in memory that was a chunk's buffer before."""
    path, model = mounted.path / "file", bytearray(WRITERS * ROUNDS * MIB)
    path.touch()
    is_over = threading.Event()
    written: dict[str, bytes] = {}

    def work() -> None:
        number = 0
        while not is_over.is_set():
            name, data = f"{'n' * (number % 200)}{number}", b"%d " % number * (number % 3000)
            (mounted.path / name).write_bytes(data)
            written[name] = data
            number += 1

    other = threading.Thread(target=work)
    other.start()
    try:
        for seed in (4, 5):
            write_at_once(path, os.O_WRONLY, 0, random.Random(seed), model)
            compare(path, model)
    finally:
        is_over.set()
        other.join(60)
    assert written
    assert set(os.listdir(mounted.path)) == {"file", *written}
    for name, data in written.items():
        assert (mounted.path / name).read_bytes() == data
