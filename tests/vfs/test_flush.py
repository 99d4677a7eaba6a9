"""Many small files that become durable together travel in few messages."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mpifs.core.kinds import Kind
from mpifs.core.limits import FLUSH_COUNT
from mpifs.core.types import Caller
from mpifs.transport.client import Client, Pending
from mpifs.vfs.facade import Vfs

ROOT = Caller(0, 0)


def test_small_files_are_packed(vfs: Vfs, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 4 * FLUSH_COUNT
    puts: list[int] = []
    start = Client.start

    def counting(client: Client, rank: int, kind: Kind, **words: Any) -> Pending:
        if kind is Kind.PUT:
            puts.append(words["items"])
        return start(client, rank, kind, **words)

    vfs.sync()
    monkeypatch.setattr(Client, "start", counting)
    handles = [vfs.create(b"/small%d" % n, 0o644, os.O_RDWR, ROOT) for n in range(count)]
    for number, handle in enumerate(handles):
        assert vfs.write(handle, memoryview(b"%6d" % number * 100), 0) == 600
    vfs.sync()
    assert sum(puts) >= count - FLUSH_COUNT  # the clock may have flushed some of them before.
    assert len(puts) <= 2 * (count // FLUSH_COUNT + 1), puts  # of two stores.
    monkeypatch.undo()
    for number, handle in enumerate(handles):
        into = bytearray(1000)
        assert vfs.read(handle, memoryview(into), 0) == 600
        assert into[:600] == b"%6d" % number * 100
        vfs.release(handle)
