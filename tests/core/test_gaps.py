"""Whether spinning pays, by the gaps between requests: bounded in both directions."""

from __future__ import annotations

import random

import pytest

from mpifs.core.gaps import Gaps

SPIN_S = 100e-6
SHORT, LONG = SPIN_S / 2, SPIN_S * 2


def noted(*waits: float) -> Gaps:
    gaps = Gaps(SPIN_S)
    for waited in waits:
        gaps.note(waited)
    return gaps


def test_some_short_gaps_in_a_row_are_dense() -> None:
    assert not noted().is_dense
    assert not noted(*[SHORT] * 4).is_dense
    assert noted(*[SHORT] * 5).is_dense
    assert noted(*[0.0] * 1000).is_dense
    assert not noted(*[SPIN_S] * 1000).is_dense, "spinning would have ended just before"


def test_two_long_gaps_end_it_however_long_it_was_dense() -> None:
    for count in (8, 100, 10_000):
        assert noted(*[SHORT] * count, LONG).is_dense
        assert not noted(*[SHORT] * count, LONG, LONG).is_dense
    assert not noted(*[SHORT] * 5, LONG).is_dense


def test_a_long_sleep_is_not_held_against_it() -> None:
    for count in (1, 10, 1000):
        assert not noted(*[LONG] * count, *[SHORT] * 4).is_dense
        assert noted(*[3600.0] * count, *[SHORT] * 5).is_dense


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_share_of_short_gaps_decides(seed: int) -> None:
    """One long gap costs three short ones: below three quarters it seldom spins."""

    def share(of_short: float) -> float:
        chance, gaps, dense = random.Random(seed), Gaps(SPIN_S), 0
        for _ in range(5000):
            gaps.note(SHORT if chance.random() < of_short else LONG)
            dense += gaps.is_dense
        return dense / 5000

    assert share(0.98) > 0.95
    assert share(0.6) < 0.3
    assert share(0.4) < 0.03
