"""Dropping a file's pages: whoever has it mapped reads the same bytes afterwards."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from mpifs.bench.cold import drop_file


def test_a_mapping_stays_readable(tmp_path: Path):
    data = os.urandom(1 << 20)
    path = tmp_path / "file"
    path.write_bytes(data)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == data
        drop_file(str(path), [os.getpid()])
        assert mapped[:] == data


def test_what_is_not_there_is_no_error(tmp_path: Path):
    drop_file(str(tmp_path / "none"), [os.getpid()])
    (tmp_path / "empty").touch()
    drop_file(str(tmp_path / "empty"), [2**22 + 1])
