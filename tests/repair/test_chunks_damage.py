"""Each kind of damage of chunks alone, mixtures of them, and repairs that are killed: real stores
and a real index over the loopback transport."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from mpifs import faultpoint
from tests.repair.chunk_faults import CHUNK_KINDS, left_of, rows_of, state, troubles, twin
from tests.repair.chunk_world import ChunkWorld, told
from tools.planting.kinds import KINDS, plant
from tools.planting.volume import NothingLeftError, RestingVolume

SEED = int(os.environ.get("MPIFS_TEST_SEED", "0")) or random.randrange(1 << 30)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ChunkWorld]:
    """A sound volume for each number of replicas."""
    made = {}
    for replicas in (1, 2):
        folder = tmp_path_factory.mktemp(f"replicas{replicas}") / "v"
        world = ChunkWorld(folder, workers=4, replicas=replicas)
        world.fill(replicas, files=16)
        assert told(world.check()) == []
        made[replicas] = world
    return made


def do_plant(world: ChunkWorld, names: list[str], seed: int) -> list[str] | None:
    """None if the volume has no place for them."""
    rows = rows_of(world)
    resting = RestingVolume(str(world.folder), seed)
    try:
        planted = plant(resting, names)
    except NothingLeftError:
        return None
    return troubles(world, resting, planted, rows)


@pytest.mark.parametrize("name", CHUNK_KINDS)
def test_each_kind_alone(worlds: dict[int, ChunkWorld], tmp_path: Path, name: str) -> None:
    print("seed", SEED)
    tried = 0
    for replicas in (1, 2):
        if KINDS[name].replicas <= replicas:
            world = twin(worlds[replicas], tmp_path / f"v{replicas}")
            bad = do_plant(world, [name], SEED)
            tried += bad is not None
            assert not bad, "\n".join(bad)
    assert tried


@pytest.mark.parametrize("number", range(12))
def test_mixtures(worlds: dict[int, ChunkWorld], tmp_path: Path, number: int) -> None:
    seed = SEED + number
    print("seed", SEED)
    chance = random.Random(seed)
    replicas = chance.choice((1, 2))
    names = [n for n in CHUNK_KINDS if KINDS[n].replicas <= replicas]
    world = twin(worlds[replicas], tmp_path / "v")
    bad = do_plant(world, chance.sample(names, chance.randrange(3, 9)), seed)
    assert not bad, "\n".join(bad)


class KilledError(BaseException):
    """Stands for the kill of the process."""


class Countdown:
    """Ends the run at the nth step of its repair."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
        self.left = steps
        self._thread = threading.current_thread()
        monkeypatch.setattr(faultpoint, "reach", self.reach)

    def reach(self, name: str) -> None:
        if name == "repair.commit" and threading.current_thread() is self._thread:
            self.left -= 1
            if not self.left:
                raise KilledError


@pytest.mark.parametrize("number", range(4))
def test_a_killed_repair_ends_as_a_whole_one(
    worlds: dict[int, ChunkWorld],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    seed = SEED + number
    print("seed", SEED)
    chance = random.Random(seed)
    replicas = 1 + number % 2
    names = [n for n in CHUNK_KINDS if KINDS[n].replicas <= replicas]
    world = twin(worlds[replicas], tmp_path / "v")
    rows = rows_of(world)
    # Some kinds take no step, the others often share one; this one takes three.
    planted = {*chance.sample(names, 7), "garbage-value-bit"}
    plant(RestingVolume(str(world.folder), seed), sorted(planted))
    whole = twin(world, tmp_path / "whole")
    many = 1 << 20
    count = Countdown(monkeypatch, many)
    left = told(left_of(whole.check(repair=True, copy_row=rows)))
    wanted = state(whole)
    steps = many - count.left
    assert steps > 2
    for step in range(1, steps + 1):
        killed = twin(world, tmp_path / f"killed-{step}")
        Countdown(monkeypatch, step)
        with pytest.raises(KilledError):
            killed.check(repair=True, copy_row=rows)
        Countdown(monkeypatch, many)
        again = killed.check(repair=True, copy_row=rows)
        assert told(left_of(again)) == left
        assert state(killed) == wanted, f"killed at step {step} of {steps}"
