"""Random mixtures of damage; the seed is printed and repeats them.

MPIFS_FAULTS=long takes more of them; MPIFS_FAULTS_SEED=N begins elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.faults.cycle import IS_LONG, whole_way
from tests.faults.volumes import Sample
from tools.planting.mixtures import mixture

Make = Callable[..., Sample]
pytestmark = [pytest.mark.limit(150), pytest.mark.timeout(300)]
FIRST = int(os.environ.get("MPIFS_FAULTS_SEED", "1"))
COUNT = 60 if IS_LONG else 2


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_a_mixture_is_found_and_mended(sample: Make, seed: int) -> None:
    one = sample(1 + seed % 2)
    names = mixture(one.before, 4 + seed % 9, seed)
    one.plant(names, seed, skips=True)
    whole_way(one)
