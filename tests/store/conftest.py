"""Fixtures of the worker's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.test_service import Worker


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """A worker that runs and serves no store yet; its folder is the test's."""
    made = Worker(str(tmp_path))
    yield made
    made.service.close()
    made.thread.join(10)
    assert not made.thread.is_alive()
