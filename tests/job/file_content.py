"""Making and reading files in any place, for the tests of the file protocol."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from mpifs.job.files_protocol import Files

CHUNK = 64 * 1024
STRANGE = b"\xff\xfe new\nline \xc3\xa4 '\"\\"


def make(files: Files, path: bytes, data: bytes = b"", at: int = 0) -> None:
    """A regular file."""
    with contextlib.closing(files.create(path, 0o644)) as file:
        if data:
            file.write(data, at)


def content(files: Files, path: bytes) -> bytes:
    """All bytes of a file."""
    out, piece = b"", memoryview(bytearray(1 << 20))
    with contextlib.closing(files.open(path)) as file:
        while count := file.read_into(piece, len(out)):
            out += piece[:count]
    return out


def raises(code: int) -> Any:
    """A context that expects an OSError with that errno."""
    return pytest.raises(OSError, check=lambda error: error.errno == code)
