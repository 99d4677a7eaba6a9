"""Many files: one directory of 200,000, opened again and removed.  Bounded by sanity, not timed."""

from __future__ import annotations

from stat import S_IFREG

import pytest

from tests.index.volumes import open_volume

COUNT = 200_000


@pytest.mark.timeout(240)
def test_two_hundred_thousand_files(path: str) -> None:
    index = open_volume(path)
    root = index.inode(1)
    for i in range(COUNT):
        index.create(root, b"file%06d" % (i * 7919 % COUNT), S_IFREG, 0, 0, now_ns=i)
        if i % 20_000 == 0:
            index.sync()
    assert root.size == COUNT
    assert [name for name, _, _ in index.entries(1, b"file100000", 3)] == [
        b"file%06d" % i for i in range(100_001, 100_004)
    ]
    index.close()

    index = open_volume(path)
    assert len(index._cache) == 1  # opening reads nothing else
    seen: list[bytes] = []
    while page := index.entries(1, seen[-1] if seen else b"", 4096):
        seen += [name for name, _, _ in page]
    assert seen == [b"file%06d" % i for i in range(COUNT)]
    assert index.counters().files == COUNT
    assert index.lookup(1, b"file123456")
    root = index.inode(1)
    for count, name in enumerate(seen):
        index.reap(index.unlink(root, name, 1))
        if count % 20_000 == 0:
            index.sync()
            assert index.entries(1, limit=1)[0][0] == seen[count + 1]
    index.close()
    index = open_volume(path)
    assert index.counters() == (0, 1, 0, 0)
    assert index.is_empty(1)
    assert index.entries(1) == []
    index.close()
