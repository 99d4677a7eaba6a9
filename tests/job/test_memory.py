"""Pages of a mapped file leave the process once they are many, and its readers notice nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mpifs.core.limits import INDEX_RESIDENT_BYTES_MAX, MIB
from mpifs.job import memory
from mpifs.job.memory import MemoryWatch
from mpifs.kv import Environment

VALUE = bytes(range(256)) * 12


def mapped_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0])


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_pages_of_the_index_are_given_back(tmp_path: Path, share: float) -> None:
    environment = Environment(os.fspath(tmp_path / "index"), ["rows"], create=True)
    count = int(INDEX_RESIDENT_BYTES_MAX * share) // 4096
    with environment.write() as transaction:
        for number in range(count):
            transaction.put("rows", number.to_bytes(8, "big"), VALUE)
    watch = MemoryWatch(str(tmp_path / "index" / "data.mdb"))
    before = mapped_kib()
    with environment.read() as reading:
        assert all(value == VALUE for _, value in reading.scan("rows"))
        rows = reading.scan("rows")
        first = next(rows)[1]
        full = mapped_kib()
        assert full - before > INDEX_RESIDENT_BYTES_MAX * share / 1024 * 0.8
        watch.look()
        is_dropped = mapped_kib() < before + 4 * MIB // 1024
        assert is_dropped == (share > 1)
        assert first == VALUE  # a page that was given back comes again
        assert sum(1 for _ in rows) == count - 1
    environment.close()


def test_a_limit_of_the_process_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0's main thread looks: what it raised would end the volume."""
    watch = MemoryWatch(str(tmp_path))

    def out_of_files() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(memory, "_resident", out_of_files)
    watch.look()
