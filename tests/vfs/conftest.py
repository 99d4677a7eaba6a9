"""An open volume with an open file, for tests that need no other kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.limits import KIB
from mpifs.core.types import Caller
from mpifs.vfs.facade import Vfs
from tests.vfs.loopback import LoopbackVolume


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LoopbackVolume]:
    """Two workers, chunks of 64 KiB."""
    made = LoopbackVolume(tmp_path / "volume", workers=2, chunk_size=64 * KIB)
    made.open()
    yield made
    made.close()


@pytest.fixture
def vfs(volume: LoopbackVolume) -> Vfs:
    assert volume.vfs is not None
    return volume.vfs


@pytest.fixture
def fh(vfs: Vfs) -> int:
    """Of `/file`, for reading and writing."""
    return vfs.create(b"/file", 0o644, os.O_RDWR, Caller(0, 0))
