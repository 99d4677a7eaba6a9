"""Volumes for the index tests: a fresh one on disk, opened and thrown away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.index.index import Index
from tests.index.volumes import make_volume, open_volume


@pytest.fixture
def path(tmp_path: Path) -> str:
    return make_volume(tmp_path)


@pytest.fixture
def index(path: str) -> Iterator[Index]:
    index = open_volume(path)
    yield index
    index.abandon()
