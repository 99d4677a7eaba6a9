"""Small files read in name order: many come with one request, and none is ever another's."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpifs.core.errors import DamageError
from mpifs.core.kinds import Kind
from mpifs.core.limits import KIB
from mpifs.core.types import Caller
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs
from tests.vfs.loopback import LoopbackVolume, harm

ME = Caller(0, 0)
COUNT = 200


def name_of(number: int) -> bytes:
    return b"/d/%04d" % number


def content_of(number: int) -> bytes:
    return b"%d." % number * (number % 90 + 1)


class Tree:
    """A folder of small files, and how often its stores are asked for what."""

    def __init__(self, folder: Path) -> None:
        self.volume = LoopbackVolume(folder, workers=2, chunk_size=256 * KIB)
        self.vfs: Vfs = self.volume.open()
        self.asked: Counter[int] = Counter()
        self.vfs.mkdir(b"/d", 0o755, ME)
        for number in range(COUNT):
            self.put(number, content_of(number))
        self.vfs.sync()
        self.vfs.reader.cache.clear()

    def put(self, number: int, content: bytes) -> None:
        path = name_of(number)
        try:
            fh = self.vfs.open(path, os.O_WRONLY | os.O_TRUNC, ME)
        except OSError:
            fh = self.vfs.create(path, 0o644, os.O_WRONLY, ME)
        self.vfs.write(fh, memoryview(content), 0)
        self.vfs.release(fh)

    def get(self, number: int) -> bytes:
        fh = self.vfs.open(name_of(number), os.O_RDONLY, ME)
        try:
            into = bytearray(1000)
            return bytes(into[: self.vfs.read(fh, memoryview(into), 0)])
        finally:
            self.vfs.release(fh)

    def get_all(self, numbers: Any, pause_s: float = 0.002) -> None:
        for number in numbers:
            assert self.get(number) == content_of(number), number
            time.sleep(pause_s)  # whoever does something with a file leaves the thread its time


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    real = Client.start
    made = Tree(tmp_path / "volume")

    def start(client: Client, rank: int, kind: Kind, **words: Any) -> Any:
        made.asked[kind] += 1
        return real(client, rank, kind, **words)

    monkeypatch.setattr(Client, "start", start)
    yield made
    made.volume.close()


def test_files_in_name_order_cost_few_requests(tree: Tree) -> None:
    tree.get_all(range(COUNT))
    assert tree.asked[Kind.GET_MANY] >= 2
    assert tree.asked[Kind.GET] + tree.asked[Kind.GET_MANY] < COUNT // 4


def test_other_orders_fetch_nothing_ahead(tree: Tree) -> None:
    tree.get_all(reversed(range(COUNT)), 0)
    assert tree.asked[Kind.GET_MANY] == 0


def test_what_was_fetched_ahead_is_not_read_after_a_change(tree: Tree) -> None:
    tree.get_all(range(10))
    deadline = time.monotonic() + 10
    while not tree.asked[Kind.GET_MANY] and time.monotonic() < deadline:
        time.sleep(0.01)
    tree.put(20, b"new")
    tree.vfs.rename(name_of(21), name_of(22))
    assert tree.get(20) == b"new"
    assert tree.get(22) == content_of(21)
    tree.vfs.sync()
    assert tree.get(20) == b"new"


def test_a_damaged_one_is_refused_by_its_own_read_alone(tree: Tree) -> None:
    harm(tree.volume, name_of(30), 0, 0)
    tree.get_all(number for number in range(COUNT) if number != 30)
    with pytest.raises(DamageError):
        tree.get(30)
