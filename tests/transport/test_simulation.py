"""The simulation of many workers (tools/simulate.py), small: virtual time passes as it should."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import simulate
from simulate import MIB, PAGE, WORK, Rig
from simulated_world import Costs


@pytest.fixture(autouse=True)
def no_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate.client_module, "SPIN_S", 0.0)


@pytest.mark.parametrize("is_near", [True, False])
def test_every_phase_with_few_workers(is_near: bool) -> None:
    found = simulate.measure(3, Costs(is_near=is_near), 48)
    assert set(found) == {"write", "read", "get", "create", "ping"}
    for name, figure in found.items():
        assert 0 < figure.python_s <= figure.seconds * 1.001, name
    assert found["create"].each > 2


def test_a_fetch_takes_latency_disk_and_link() -> None:
    costs = Costs(latency_s=0.005, bytes_per_s=100 * MIB, is_near=True)
    rig = Rig(1, costs, MIB)
    try:
        figure = simulate.read(rig, 10, 1, 0.0)
    finally:
        rig.world.close()
    least = 2 * 0.005 + MIB / costs.bytes_per_s + MIB / WORK.disk_read
    assert least < figure.seconds / 10 < least + 0.002


def test_readers_wait_side_by_side() -> None:
    rates = []
    for readers in (1, 8):
        rig = Rig(4, Costs(latency_s=0.02, is_near=True), PAGE)
        try:
            rates.append(simulate.read(rig, 80, readers, 0.0).rate)
        finally:
            rig.world.close()
    assert 6 < rates[1] / rates[0] <= 8.1


def test_a_wide_volume_packs_less() -> None:
    each = []
    for workers in (2, 32):
        rig = Rig(workers, Costs(), PAGE)
        try:
            each.append(simulate.create(rig, 400).each)
        finally:
            rig.world.close()
    assert each[0] > 2 * each[1]
