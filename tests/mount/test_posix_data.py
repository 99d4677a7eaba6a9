"""Bytes of files: reading, writing, truncating, holes, mappings."""

from __future__ import annotations

import os
import random
from errno import EBADF, EINVAL, EISDIR, ENODEV, ENXIO, EOPNOTSUPP, ESPIPE
from pathlib import Path

import pytest

from tests.mount.calls import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    cold,
    fallocate,
    forked,
    libc,
    opened,
    pattern,
    put,
    raises,
    read_all,
    write_all,
)

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL


def has_fallocate(fd: int) -> bool:
    """libfuse 2 through fusepy may not have it; then it must say so."""
    try:
        fallocate(fd, KEEP_SIZE, 0, 1)
    except OSError as error:
        if error.errno == EOPNOTSUPP:
            return False
        raise
    return True


@pytest.mark.parametrize("seed", range(3))
def test_random_reads_writes_truncates(here: Path, chunk: int, seed: int) -> None:
    """Odd offsets and lengths around chunk borders, against a bytearray."""
    rng = random.Random(seed)
    model = bytearray()
    limit = 5 * chunk

    def place() -> int:
        if rng.random() < 0.5:
            return rng.randrange(limit)
        return max(0, rng.randrange(6) * chunk + rng.randint(-9, 9))

    with opened(here / "f", NEW) as one, opened(here / "f") as two:
        for _ in range(250):
            fd = rng.choice((one, two))
            offset = place()
            match rng.randrange(8):
                case 0:
                    os.ftruncate(fd, offset)
                    model[offset:] = bytes(max(0, offset - len(model)))
                case 1:
                    os.fsync(fd)
                case 2:
                    cold(fd)
                case 3 | 4:
                    size = rng.choice((1, 13, 4096, chunk - 1, chunk, chunk + 1, 2 * chunk + 77))
                    assert read_all(fd, size, offset) == model[offset : offset + size]
                case _:
                    data = rng.randbytes(
                        rng.choice((1, 7, 100, 4095, 4096, chunk - 3, chunk, chunk + 5))
                    )
                    if offset > len(model):
                        model.extend(bytes(offset - len(model)))
                    write_all(fd, data, offset)
                    model[offset : offset + len(data)] = data
            assert os.fstat(one).st_size == len(model)
        cold(one)
        assert read_all(one, limit * 2) == model
    assert (here / "f").read_bytes() == model


def test_truncate_down_and_up_shows_zeros(here: Path, chunk: int) -> None:
    data = pattern(3 * chunk + 100)
    for cut in (0, 1, 4097, chunk - 1, chunk, chunk + 1, 3 * chunk, 3 * chunk + 99):
        for is_cold in (False, True):
            with opened(here / f"{cut}{is_cold}", NEW) as fd:
                write_all(fd, data, 0)
                if is_cold:
                    cold(fd)
                os.ftruncate(fd, cut)
                if is_cold:
                    cold(fd)
                os.truncate(here / f"{cut}{is_cold}", 4 * chunk)
                assert read_all(fd, 5 * chunk) == data[:cut] + bytes(4 * chunk - cut), (
                    cut,
                    is_cold,
                )
                cold(fd)
                assert read_all(fd, 5 * chunk) == data[:cut] + bytes(4 * chunk - cut), (
                    cut,
                    is_cold,
                    "cold",
                )


def test_write_after_a_shrink_does_not_bring_old_bytes_back(here: Path, chunk: int) -> None:
    with opened(here / "f", NEW) as fd:
        write_all(fd, b"\xee" * (2 * chunk), 0)
        cold(fd)
        os.ftruncate(fd, chunk // 2)
        os.pwrite(fd, b"new", chunk + 10)
        want = b"\xee" * (chunk // 2) + bytes(chunk // 2 + 10) + b"new"
        assert read_all(fd, 9 * chunk) == want
        cold(fd)
        assert read_all(fd, 9 * chunk) == want


def test_append_from_two_processes(here: Path) -> None:
    """Every record arrives whole and once."""
    count = 400

    def writer(mark: str) -> None:
        with opened(here / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT) as fd:
            for number in range(count):
                line = f"{mark}{number:06}".ljust(36, mark).encode() + b"\n"
                assert os.write(fd, line) == len(line)

    waits = [forked(writer, mark) for mark in "ab"]
    for wait in waits:
        wait()
    lines = (here / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{m}{n:06}".ljust(36, m) for m in "ab" for n in range(count))
    assert [x for x in lines if x[0] == "a"] == sorted(x for x in lines if x[0] == "a")


def test_holes_read_as_zeros_and_are_not_stored(here: Path, chunk: int) -> None:
    end = 40 * chunk
    with opened(here / "f", NEW) as fd:
        os.pwrite(fd, b"data", 10 * chunk + 5)
        os.ftruncate(fd, end)
        os.fsync(fd)
        assert os.fstat(fd).st_blocks * 512 <= 4 * chunk
        assert read_all(fd, 20 * chunk) == bytes(10 * chunk + 5) + b"data" + bytes(10 * chunk - 9)
        segments, position = [], 0
        while position < end:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == ENXIO:
                    break
                raise
            position = os.lseek(fd, start, os.SEEK_HOLE)
            assert start < position <= end
            segments.append((start, position))
        assert any(start <= 10 * chunk + 5 and stop >= 10 * chunk + 9 for start, stop in segments)
        assert os.lseek(fd, end - 1, os.SEEK_HOLE) in {end - 1, end}
        with raises(ENXIO):
            os.lseek(fd, end, os.SEEK_DATA)
        with raises(ENXIO):
            os.lseek(fd, end, os.SEEK_HOLE)
        assert sum(stop - start for start, stop in segments) <= chunk


def test_blocks_count_what_is_stored(here: Path, chunk: int) -> None:
    with opened(here / "f", NEW) as fd:
        write_all(fd, pattern(5 * chunk), 0)
        os.fsync(fd)
        assert 5 * chunk <= os.stat(here / "f").st_blocks * 512 <= 7 * chunk
        os.ftruncate(fd, chunk)
        os.fsync(fd)
        assert os.stat(here / "f").st_blocks * 512 <= 2 * chunk
        os.ftruncate(fd, 0)
        assert os.fstat(fd).st_blocks == 0
    os.mkdir(here / "d")
    assert os.stat(here / "f").st_blksize >= 512


def test_fallocate(here: Path, chunk: int, variant: str) -> None:
    data = pattern(4 * chunk)
    with opened(here / "f", NEW) as fd:
        write_all(fd, data, 0)
        model = bytearray(data)

        def both(mode: int, offset: int, length: int, is_cold: bool) -> None:
            fallocate(fd, mode, offset, length)
            if not mode & KEEP_SIZE and offset + length > len(model):
                model.extend(bytes(offset + length - len(model)))
            if mode & (PUNCH_HOLE | ZERO_RANGE):
                stop = min(offset + length, len(model))
                model[offset:stop] = bytes(max(0, stop - offset))
            if is_cold:
                cold(fd)
            assert os.fstat(fd).st_size == len(model), (mode, offset, length)
            assert read_all(fd, 9 * chunk) == model, (mode, offset, length)

        for is_cold in (False, True):
            both(PUNCH_HOLE | KEEP_SIZE, 10, 20, is_cold)
            both(PUNCH_HOLE | KEEP_SIZE, chunk - 7, chunk + 20, is_cold)
            both(PUNCH_HOLE | KEEP_SIZE, 3 * chunk, 9 * chunk, is_cold)
            both(ZERO_RANGE, 5, 4096, is_cold)
            both(ZERO_RANGE | KEEP_SIZE, len(model) - 10, 100, is_cold)
            both(ZERO_RANGE, len(model) - 10, 200, is_cold)
            both(KEEP_SIZE, len(model), chunk, is_cold)
            both(0, 7, 9, is_cold)
            both(0, len(model) + 5, 1000, is_cold)
            write_all(fd, data[: 2 * chunk], chunk // 2)
            model[chunk // 2 : chunk // 2 + 2 * chunk] = data[: 2 * chunk]
        for mode, offset, length, number in (
            (0, -1, 1, EINVAL),
            (0, 0, 0, EINVAL),
            (0, 0, -1, EINVAL),
            (PUNCH_HOLE, 0, 1, EOPNOTSUPP),
            (512, 0, 1, EOPNOTSUPP),
        ):
            with raises(number):
                fallocate(fd, mode, offset, length)
        if variant != "plain":
            for mode in (COLLAPSE_RANGE, INSERT_RANGE):
                with raises(EOPNOTSUPP):
                    fallocate(fd, mode, 0, 4096)
        os.posix_fallocate(fd, 0, 10 * chunk)
        assert os.fstat(fd).st_size == 10 * chunk
    with raises(EBADF), opened(here / "f", os.O_RDONLY) as fd:
        fallocate(fd, 0, 0, 1)
    os.mkfifo(here / "p")
    with raises(ESPIPE, ENODEV), opened(here / "p") as fd:
        fallocate(fd, 0, 0, 1)
    with raises(EBADF, EISDIR, ENODEV), opened(here, os.O_RDONLY) as fd:
        fallocate(fd, 0, 0, 1)


def test_punched_chunks_are_not_stored(here: Path, chunk: int) -> None:
    with opened(here / "f", NEW) as fd:
        if not has_fallocate(fd):
            pytest.skip("libfuse 2 without fallocate")
        write_all(fd, pattern(8 * chunk), 0)
        os.fsync(fd)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, chunk, 6 * chunk)
        os.fsync(fd)
        assert os.stat(here / "f").st_blocks * 512 <= 3 * chunk


def test_vectors_and_syncs(here: Path) -> None:
    with opened(here / "f", NEW | os.O_SYNC) as fd:
        assert os.pwritev(fd, [b"one", b"", b"three"], 3) == 8
        parts = [bytearray(4), bytearray(100)]
        assert os.preadv(fd, parts, 0) == 11
        assert parts[0] + parts[1][:7] == b"\0\0\0onethree"
        os.fdatasync(fd)
        os.fsync(fd)
        libc.syncfs(fd)
    with opened(here, os.O_RDONLY) as fd:
        os.fsync(fd)
    with opened(here / "empty", NEW) as fd:
        assert os.read(fd, 100) == b""
        assert os.write(fd, b"") == 0
        assert os.fstat(fd).st_size == 0


def test_copy_file_range(here: Path, chunk: int) -> None:
    data = pattern(3 * chunk + 11)
    put(here / "a", data)
    with opened(here / "a") as source, opened(here / "b", NEW) as target:
        done = 0
        while done < len(data) - 5 and (
            n := os.copy_file_range(source, target, len(data), 5 + done, chunk - 1 + done)
        ):
            done += n
        assert read_all(target, 9 * chunk) == bytes(chunk - 1) + data[5:]
        assert os.copy_file_range(source, target, 10, len(data), 0) == 0
        with raises(EINVAL):
            os.copy_file_range(source, source, 100, 0, 50)
        assert os.copy_file_range(source, source, 100, 0, 200) == 100
        assert os.pread(source, 100, 200) == data[:100]
        with raises(EBADF), opened(here / "a", os.O_RDONLY) as fd:
            os.copy_file_range(source, fd, 10, 0, 0)
        with opened(here / "c", NEW) as fd:
            assert os.sendfile(fd, source, 0, chunk) > 0


def test_reader_sees_every_write_at_once(here: Path) -> None:
    """Two descriptors, two processes: no stale size, no stale byte."""
    with opened(here / "f", NEW) as fd:
        for number in range(60):
            os.pwrite(fd, b"%5d" % number, number * 997)
            want = (number * 997 + 5, b"%5d" % number)
            assert ((here / "f").stat().st_size, (here / "f").read_bytes()[-5:]) == want
        wait = forked((here / "f").read_bytes)
        assert len(wait()) == 59 * 997 + 5


def test_lseek_ends(here: Path) -> None:
    put(here / "f", bytes(1000))
    with opened(here / "f") as fd:
        assert os.lseek(fd, -10, os.SEEK_END) == 990
        assert os.lseek(fd, 5, os.SEEK_CUR) == 995
        assert os.lseek(fd, 2**40, os.SEEK_SET) == 2**40
        assert os.read(fd, 10) == b""
        assert os.fstat(fd).st_size == 1000
