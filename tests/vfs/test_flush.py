"""Many small files that become durable together travel in few messages, and stay in the cache."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mpifs.core.kinds import Kind
from mpifs.core.limits import FLUSH_COUNT
from mpifs.core.types import Caller
from mpifs.transport.client import Client, Pending
from mpifs.vfs.facade import Vfs
from mpifs.vfs.file_data import FileData

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


def write_whole(vfs: Vfs, name: bytes, data: bytes) -> int:
    """A file by a writer that goes past the kernel's cache; its handle."""
    handle = vfs.create(name, 0o644, os.O_RDWR, ROOT)
    vfs.write(handle, memoryview(data), 0)
    inode_data = vfs._handles.file(handle).inode.data
    assert isinstance(inode_data, FileData)
    inode_data.is_past_cache = True
    vfs.sync()
    return handle


@pytest.mark.parametrize("size", [1, 4096, 4097, 20_000])
def test_what_was_written_small_stays_in_the_cache(vfs: Vfs, size: int) -> None:
    """In the buffer where it was, if that is not much too large; later writes leave it alone."""
    data = os.urandom(size)
    cache = vfs.reader.cache
    before = cache.bytes_used
    handle = write_whole(vfs, b"/first", data)
    assert size < cache.bytes_used - before <= max(4096, 2 * size) + 64
    for number in range(20):  # these take the buffers that are free
        vfs.release(write_whole(vfs, b"/other%d" % number, os.urandom(size)))
    into = bytearray(size)
    misses = cache.misses
    assert vfs.read(handle, memoryview(into), 0) == size
    assert into == data
    assert cache.misses == misses
    vfs.write(handle, memoryview(b"x" * size), 0)
    vfs.sync()
    assert vfs.read(handle, memoryview(into), 0) == size
    assert into == b"x" * size
    vfs.release(handle)
