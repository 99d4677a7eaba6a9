"""The null file system: names and sizes are kept, bytes are not."""

from __future__ import annotations

import os
import stat

from mpifs.bench.null_nodes import NullNodes
from mpifs.core.types import Caller
from mpifs.vfs.change import Change

ME = Caller(1, 2, 3)


def test_names_sizes_and_listings() -> None:
    nodes = NullNodes()
    folder = nodes.make(1, b"d", stat.S_IFDIR | 0o755, ME).ino
    made, fh, is_direct = nodes.create(folder, b"f", 0o600, os.O_WRONLY, ME)
    assert not is_direct
    assert nodes.write(fh, memoryview(b"abc"), 10) == 3
    assert nodes.lookup(folder, b"f").size == nodes.getattr(made.ino).size == 13
    into = memoryview(bytearray(b"\0" * 20))
    assert nodes.read(fh, into, 3) == 10
    assert bytes(into[:10]) != bytes(10), "answered from memory"
    assert nodes.read(fh, into, 13) == 0
    nodes.release(fh)
    assert nodes.setattr(made.ino, Change(mode=0o644, size=7)).size == 7
    nodes.rename(folder, b"f", 1, b"g")
    listing = nodes.opendir(1)
    rows = list(nodes.readdir(listing, 0))
    assert sorted(row[0] for row in rows) == [b".", b"..", b"d", b"g"]
    assert [row[0] for row in nodes.readdir(listing, rows[2][2])] == [rows[3][0]]
    nodes.releasedir(listing)
    nodes.unlink(1, b"g")
    nodes.forget(made.ino)
    nodes.rmdir(1, b"d")
    assert nodes.lookup(1, b"g") is None


def test_who_only_writes_goes_past_the_page_cache() -> None:
    nodes = NullNodes()
    nodes.use_direct_writers()
    made, _, is_direct = nodes.create(1, b"f", 0o600, os.O_WRONLY, ME)
    assert is_direct
    assert not nodes.open(made.ino, os.O_RDWR)[1]
