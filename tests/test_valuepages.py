"""The pages of one value are found, and asked for, exactly; whatever the file's bytes are, nothing
is raised."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.tree_page import HEADER_BYTES
from mpifs.datafile import DATA_NAME
from mpifs.kv import Environment
from mpifs.valuepages import bring_in, place_of

COUNT = 700  # two levels of pages.


def _key(number: int) -> bytes:
    return number.to_bytes(28, "big")


def _value(number: int) -> bytes:
    return number.to_bytes(4, "big") * (1000 + number)


@pytest.fixture
def data_file(tmp_path: Path) -> str:
    environment = Environment(str(tmp_path), ("chunks", "headers"), create=True)
    for first in (0, 1):
        with environment.write() as transaction:
            for number in range(first, COUNT, 2):
                transaction.put("chunks", _key(number), _value(number))
                transaction.put("headers", _key(number), bytes(64))
    environment.close()
    return str(tmp_path / DATA_NAME)


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Ranges (offset, length) that the kernel was told will be needed."""
    ranges: list[tuple[int, int]] = []

    def note(fd: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            ranges.append((offset, length))

    monkeypatch.setattr(os, "posix_fadvise", note)
    return ranges


def test_the_pages_of_each_value_are_asked_for(data_file: str, wanted: list) -> None:
    whole = Path(data_file).read_bytes()
    for number in range(COUNT):
        bring_in(data_file, "chunks", _key(number))
        ((offset, length),) = wanted
        assert whole[offset + HEADER_BYTES : offset + length] == _value(number)
        wanted.clear()


def test_what_is_not_there_is_not_asked_for(data_file: str, wanted: list) -> None:
    bring_in(data_file, "chunks", _key(COUNT))
    bring_in(data_file, "chunks", b"")
    bring_in(data_file, "headers", _key(1))  # so short that it stands in the tree
    bring_in(data_file, "nothing", _key(1))
    bring_in(data_file + "-", "chunks", _key(1))
    assert not wanted


def test_no_bytes_of_the_file_make_it_raise(data_file: str, wanted: list) -> None:
    whole = Path(data_file).read_bytes()
    source = random.Random(1)
    for size in (0, 1, 100, 4096, 8191, 8192, 20_000):
        Path(data_file).write_bytes(whole[:size])
        bring_in(data_file, "chunks", _key(7))
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(40):
            damaged[source.randrange(source.choice((8192, 100_000)))] = source.randrange(256)
        Path(data_file).write_bytes(damaged)
        bring_in(data_file, "chunks", _key(source.randrange(COUNT)))


@pytest.fixture
def fd(data_file: str) -> Iterator[int]:
    opened = os.open(data_file, os.O_RDWR)
    yield opened
    os.close(opened)


def _at(fd: int, number: int) -> bytes | None:
    """What stands at the place of a value, as long as that."""
    place = place_of(fd, "chunks", _key(number))
    return None if place is None else os.pread(fd, len(_value(number)), place)


def test_the_place_of_each_value(fd: int) -> None:
    for number in range(COUNT):
        assert _at(fd, number) == _value(number)


def test_what_has_no_pages_of_its_own_has_no_place(fd: int, tmp_path: Path) -> None:
    for key in (_key(COUNT), b"", _key(1)[:-1], _key(1) + b"0", b"\xff" * 28):
        assert place_of(fd, "chunks", key) is None
    assert place_of(fd, "headers", _key(1)) is None
    assert place_of(fd, "nothing", _key(1)) is None
    assert place_of(fd, "", _key(1)) is None
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as empty:
        assert place_of(empty.fileno(), "chunks", _key(1)) is None


@pytest.mark.parametrize("size", [0, 1, 1000, 2000, 2100, 4096, 20_000])
def test_values_around_the_longest_that_stands_in_the_tree(tmp_path: Path, size: int) -> None:
    """Right bytes, or no place; a long one has one."""
    environment = Environment(str(tmp_path / "e"), ("chunks",), create=True)
    value = random.Random(size).randbytes(size)
    with environment.write() as transaction:
        for number in range(40):
            transaction.put("chunks", _key(number), value)
    with (tmp_path / "e" / DATA_NAME).open("rb") as file:
        for number in range(40):
            place = place_of(file.fileno(), "chunks", _key(number))
            assert (place is None) is (size < 2050)
            if place is not None:
                assert os.pread(file.fileno(), size, place) == value
    environment.close()


def test_a_value_stays_in_its_place(data_file: str, fd: int) -> None:
    """Through all commits that do not concern it; what is replaced or deleted is found elsewhere,
    or not at all."""
    environment = Environment(str(Path(data_file).parent), ("chunks", "headers"))
    stay = range(0, COUNT, 50)
    places = {number: place_of(fd, "chunks", _key(number)) for number in stay}
    chance = random.Random(3)
    gone: set[int] = set()
    for turn in range(60):
        with environment.write() as transaction:
            for _ in range(5):
                number = chance.randrange(COUNT)
                if number in stay:
                    continue
                gone.discard(number)
                if turn % 2:
                    transaction.put("chunks", _key(number), _value(number))
                else:
                    transaction.delete("chunks", _key(number))
                    gone.add(number)
        for number in stay:
            assert place_of(fd, "chunks", _key(number)) == places[number]
            assert _at(fd, number) == _value(number)
    assert gone
    for number in range(COUNT):
        assert _at(fd, number) == (None if number in gone else _value(number))
    environment.close()


def test_no_bytes_of_the_file_make_place_of_raise(fd: int) -> None:
    whole = os.pread(fd, 1 << 30, 0)
    source = random.Random(2)
    for size in (0, 1, 100, 4096, 8191, 8192, 20_000):
        os.ftruncate(fd, 0)
        os.pwrite(fd, whole[:size], 0)
        assert place_of(fd, "chunks", _key(7)) is None
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(40):
            damaged[source.randrange(source.choice((8192, 100_000)))] = source.randrange(256)
        os.pwrite(fd, damaged, 0)
        place = place_of(fd, "chunks", _key(source.randrange(COUNT)))
        assert place is None or place >= 0
