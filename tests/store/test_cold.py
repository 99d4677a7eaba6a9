"""When the pages of a value are asked for before it is searched."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpifs.core.image import encode_key
from mpifs.core.limits import COLD_QUIET_S
from mpifs.core.types import ChunkKey
from mpifs.kv import Environment
from mpifs.store import cold as cold_module
from mpifs.store.cold import ColdGets


def test_the_first_get_after_a_rest_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str, bytes]] = []
    monkeypatch.setattr(cold_module, "bring_in", lambda *words: asked.append(words))
    keys = [encode_key(ChunkKey(1, chunk, 1)) for chunk in range(3)]
    environment = Environment(str(tmp_path), ("chunks",), create=True)
    try:
        with environment.write() as transaction:
            transaction.put("chunks", keys[0], b"found")
        gets = ColdGets(str(tmp_path))
        with environment.read() as transaction:
            for chunk in range(2):
                value = gets.get(transaction, keys[chunk])
                assert (None if value is None else bytes(value)) == (None if chunk else b"found")
            gets._last_s -= COLD_QUIET_S + 0.1
            assert gets.get(transaction, keys[2]) is None
            del value
    finally:
        environment.close()
    assert [(words[1], words[2]) for words in asked] == [("chunks", keys[0]), ("chunks", keys[2])]
    assert {words[0] for words in asked} == {str(tmp_path / "data.mdb")}
