"""Files through mappings, with direct I/O and read-ahead; large sparse ones."""

from __future__ import annotations

import mmap
import os
from errno import EINVAL
from pathlib import Path

import pytest

from tests.mount.calls import (
    cold,
    forked,
    opened,
    pattern,
    put,
    read_all,
)

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


def test_shared_mapping_is_coherent_with_read_and_write(here: Path, chunk: int) -> None:
    size = 2 * chunk + 4096
    put(here / "f", pattern(size))
    model = bytearray(pattern(size))
    with opened(here / "f") as fd, opened(here / "f") as other, mmap.mmap(fd, size) as view:
        assert view[:] == model
        for number, offset in enumerate((0, 4095, chunk - 2, chunk, 2 * chunk - 3, size - 5)):
            data = bytes([number + 65]) * 5
            view[offset : offset + 5] = data
            model[offset : offset + 5] = data
            assert read_all(other, 5, offset) == data, "read() after a store into the mapping"
            data = bytes([number + 97]) * 4
            os.pwrite(other, data, offset)
            model[offset : offset + 4] = data
            assert view[offset : offset + 4] == data, "mapping after write()"
        view.flush()
        assert read_all(other, size) == model
        view[100:104] = b"last"
        model[100:104] = b"last"
    with opened(here / "f") as fd:
        cold(fd)
        assert read_all(fd, size) == model


def test_private_and_read_only_mappings(here: Path) -> None:
    data = pattern(10_000)
    put(here / "f", data)
    with opened(here / "f") as fd, mmap.mmap(fd, 0, mmap.MAP_PRIVATE) as view:
        view[0:4] = b"mine"
        assert view[:8] == b"mine" + data[4:8]
        assert os.pread(fd, 8, 0) == data[:8]
    with opened(here / "f", os.O_RDONLY) as fd:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
            assert view[:] == data
            os.unlink(here / "f")
            assert view[5000:6000] == data[5000:6000]
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 0, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def test_mapping_between_processes(here: Path) -> None:
    put(here / "f", bytes(8192))

    def child() -> bytes:
        with opened(here / "f") as fd, mmap.mmap(fd, 8192) as view:
            view[4096:4100] = b"ping"
            view.flush()
            while view[0:4] != b"pong":
                pass
            return view[4096:4104]

    with opened(here / "f") as fd, mmap.mmap(fd, 8192) as view:
        wait = forked(child)
        while view[4096:4100] != b"ping":
            pass
        view[4100:4104] = b"more"
        view[0:4] = b"pong"
        assert wait() == b"pingmore"


def test_mapping_survives_truncate(here: Path) -> None:
    put(here / "f", b"a" * 12_288)
    with opened(here / "f") as fd, mmap.mmap(fd, 12_288) as view:
        os.ftruncate(fd, 100)
        os.ftruncate(fd, 12_288)
        assert view[:] == b"a" * 100 + bytes(12_188)


def test_direct_io(here: Path, chunk: int) -> None:
    size = 2 * chunk
    buffer = mmap.mmap(-1, size)
    buffer[:] = pattern(size)
    try:
        fd = os.open(here / "f", NEW | os.O_DIRECT)
    except OSError as error:
        if error.errno == EINVAL:
            pytest.skip("no O_DIRECT here")
        raise
    assert os.pwritev(fd, [buffer], 0) == size
    back = mmap.mmap(-1, size)
    assert os.preadv(fd, [back], 0) == size
    os.close(fd)
    assert back[:] == buffer[:] == (here / "f").read_bytes()


@pytest.mark.limit(120)
def test_sparse_file_of_8_gib(here: Path) -> None:
    size = 8 << 30
    spots = [0, (1 << 30) - 3, (4 << 30) - 1, (5 << 30) + 12_345, size - 9]
    with opened(here / "f", NEW) as fd:
        os.ftruncate(fd, size)
        for spot in spots:
            os.pwrite(fd, b"%09d" % (spot % 10**9), spot)
        cold(fd)
        for spot in spots:
            assert os.pread(fd, 9, spot) == b"%09d" % (spot % 10**9)
        assert os.pread(fd, 4096, 3 << 30) == bytes(4096)
        info = os.fstat(fd)
        assert info.st_size == size
        assert info.st_blocks * 512 < 64 << 20
        os.ftruncate(fd, 1 << 30)
        assert os.pread(fd, 9, (1 << 30) - 3) == (b"%09d" % (((1 << 30) - 3) % 10**9))[:3]


def test_readahead_and_advice(here: Path, chunk: int) -> None:
    data = pattern(9 * chunk + 3)
    put(here / "f", data)
    for advice in (os.POSIX_FADV_SEQUENTIAL, os.POSIX_FADV_RANDOM, os.POSIX_FADV_WILLNEED):
        with opened(here / "f") as fd:
            cold(fd)
            os.posix_fadvise(fd, 0, 0, advice)
            parts = []
            while part := os.read(fd, 5003):
                parts.append(part)
            assert b"".join(parts) == data
            for offset in range(len(data) - 100, 0, -chunk // 2):
                assert os.pread(fd, 100, offset) == data[offset : offset + 100]
