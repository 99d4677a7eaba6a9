"""Sound volumes, made once, and copies of them to be damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.volumes import Sample, Template, make_template

_counter = iter(range(1 << 30))


@pytest.fixture(scope="session")
def templates(mount_root: Path) -> Callable[[int], Template]:
    """A sound volume with so many replicas."""
    made: dict[int, Template] = {}

    def get(replicas: int) -> Template:
        if replicas not in made:
            made[replicas] = make_template(mount_root, f"template-{replicas}", replicas)
        return made[replicas]

    return get


@pytest.fixture
def sample(
    templates: Callable[[int], Template], mount_root: Path, guarded: None
) -> Iterator[Callable[..., Sample]]:
    """A factory of volumes that may be damaged."""
    made: list[Sample] = []

    def make(replicas: int = 1) -> Sample:
        one = Sample(templates(replicas), mount_root / f"sample-{next(_counter)}", mount_root)
        made.append(one)
        return one

    yield make
    for one in made:
        shutil.rmtree(one.folder, ignore_errors=True)
