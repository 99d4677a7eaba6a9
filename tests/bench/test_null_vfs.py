"""The null file system: names and sizes are kept, bytes are not."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from mpifs.bench.null_vfs import NullVfs

from mpifs.core.types import Caller

ME = Caller(1, 2, 3)


def test_names_sizes_and_listings():
    vfs = NullVfs()
    vfs.mkdir(b"/d", 0o755, ME)
    fh = vfs.create(b"/d/f", 0o600, os.O_WRONLY, ME)
    assert vfs.write(fh, memoryview(b"abc"), 10, ME) == 3
    assert vfs.getattr(b"/d/f").size == 13
    into = memoryview(bytearray(b"\0" * 20))
    assert vfs.read(fh, into, 3) == 10
    assert bytes(into[:10]) != bytes(10), "answered from memory"
    assert vfs.read(fh, into, 13) == 0
    vfs.release(fh)
    vfs.rename(b"/d/f", b"/d/g")
    listing = vfs.opendir(b"/d")
    rows = list(vfs.readdir(listing, 0))
    assert [row[0] for row in rows] == [b".", b"..", b"g"]
    assert [row[0] for row in vfs.readdir(listing, rows[1][2])] == [b"g"]
    vfs.releasedir(listing)
    vfs.unlink(b"/d/g")
    vfs.rmdir(b"/d")
    assert stat.S_ISDIR(vfs.getattr(b"/").mode)


@pytest.mark.parametrize("path", [b"/none", b"/none/f"])
def test_what_is_not_there(path: bytes):
    vfs = NullVfs()
    for call in (vfs.getattr, vfs.unlink, vfs.opendir):
        with pytest.raises(OSError, match="No such file") as caught:
            call(path)
        assert caught.value.errno == errno.ENOENT
