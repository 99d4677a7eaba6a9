"""The pages of one value are asked for, exactly; whatever the file's bytes are, nothing is raised."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mpifs.core.tree_page import HEADER_BYTES
from mpifs.datafile import DATA_NAME
from mpifs.kv import Environment
from mpifs.valuepages import bring_in

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
