"""When the pages of a value are asked for before it is searched."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpifs.core.image import encode_key
from mpifs.core.limits import COLD_GET_S, COLD_QUIET_S
from mpifs.core.types import ChunkKey
from mpifs.kv import Environment
from mpifs.store import cold as cold_module
from mpifs.store.cold import ColdGets


class Rig:
    """Gets that take `took_s`, and how many of them were prepared."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.took_s = 0.0
        self.asked = 0
        self.environment = Environment(str(path), ("chunks",), create=True)
        with self.environment.write() as transaction:
            transaction.put("chunks", encode_key(ChunkKey(1, 0, 1)), b"found")
        self.gets = ColdGets(str(path))
        monkeypatch.setattr(cold_module, "bring_in", self._bring_in)
        monkeypatch.setattr(cold_module.time, "monotonic", self._monotonic)

    def _bring_in(self, path: str, database: str, key: bytes) -> None:
        self.asked += 1

    def _monotonic(self) -> float:
        self.now += self.took_s
        return self.now

    def get(self, chunk: int, *, inode: int = 1, took_s: float = 0.0) -> bool:
        """Whether the get was prepared."""
        before, self.took_s = self.asked, took_s
        with self.environment.read() as transaction:
            value = self.gets.get(transaction, ChunkKey(inode, chunk, 1))
            assert (value is not None and bytes(value) == b"found") == (inode == 1 and chunk == 0)
        return self.asked > before


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rig = Rig(tmp_path, monkeypatch)
    yield rig
    rig.environment.close()


def test_the_first_get_after_a_rest_is_prepared_and_those_from_memory_are_not(rig: Rig) -> None:
    assert rig.get(0)
    assert not rig.get(100)
    assert not rig.get(0)
    rig.now += COLD_QUIET_S + 0.1
    assert rig.get(4)


def test_gets_anywhere_are_prepared_as_long_as_they_are_slow(rig: Rig) -> None:
    rig.get(0, took_s=2 * COLD_GET_S)
    assert rig.get(100, took_s=2 * COLD_GET_S)
    assert rig.get(50)
    assert not rig.get(200)


def test_who_reads_in_order_is_left_to_the_kernel(rig: Rig) -> None:
    rig.get(0, took_s=2 * COLD_GET_S)
    for chunk in range(4, 100, 4):
        assert not rig.get(chunk, took_s=2 * COLD_GET_S)
    assert not rig.get(0, inode=2, took_s=2 * COLD_GET_S)
    assert rig.get(20, inode=2, took_s=2 * COLD_GET_S)  # a step as wide as there are stores:
    assert not rig.get(40, inode=2, took_s=2 * COLD_GET_S)
