"""The notifier, against a device that is a pipe."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from mpifs.fuse.notifier import Notifier


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    source, sink = os.pipe()
    yield source, sink
    os.close(source)
    os.close(sink)


def test_what_the_kernel_is_told(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    notifier = Notifier(sink)
    notifier.start()
    notifier.changed([7, 8], [(1, b"name")])
    assert notifier.settle()
    told = os.read(source, 4096)
    first = struct.pack("=IiQ", 40, 2, 0) + struct.pack("=Qqq", 7, 0, 0)
    second = struct.pack("=IiQ", 40, 2, 0) + struct.pack("=Qqq", 8, 0, 0)
    third = struct.pack("=IiQ", 16 + 16 + 5, 3, 0) + struct.pack("=QII", 1, 4, 0) + b"name\0"
    assert told == first + second + third
    notifier.stop()


def test_a_kernel_that_does_not_answer_keeps_nobody_for_ever(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    notifier = Notifier(sink)
    notifier.start()
    count = 4096
    notifier.changed(range(1, count + 1))  # more than a pipe holds
    assert not notifier.settle(0.3)
    while len(os.read(source, 1 << 20)) > 0 and not notifier.settle(0.01):
        pass
    notifier.stop()


def test_after_the_end_nothing_waits(pipe: tuple[int, int]) -> None:
    notifier = Notifier(pipe[1])
    notifier.start()
    notifier.stop()
    notifier.changed([1])
    assert notifier.settle()
