"""Each kind of broken index record, alone: exactly the right finding, then repaired, then clean."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.repair.index_faults import FAULTS
from tests.repair.index_world import World, build, copy_of, facts


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("volume")
    return folder, build(folder)


@pytest.fixture
def world(volume: tuple[Path, dict[str, int]], tmp_path: Path) -> World:
    return copy_of(volume[0], tmp_path / "volume", volume[1])


def test_a_sound_volume_has_no_findings_and_is_not_changed(world: World) -> None:
    before = (Path(world.path) / "data.mdb").read_bytes()
    assert world.check() == []
    assert (Path(world.path) / "data.mdb").read_bytes() == before


@pytest.mark.parametrize("kind", FAULTS)
def test_one_fault_gives_its_finding_and_is_repaired(world: World, kind: str) -> None:
    before = world.rows()
    planted = FAULTS[kind](world)
    copy = before if planted.copy else None
    world.write(planted.changes)
    broken = world.rows()
    found = world.check(copy)
    assert facts(found) == sorted(planted.facts, key=repr)
    assert world.rows() == broken, "a check changes nothing"
    assert all(f.remedy is not None for f in found)
    repaired = world.repair(copy)
    assert all(f.repaired for f in repaired), repaired
    assert facts(repaired) == sorted(planted.facts, key=repr)
    assert world.check(copy) == []
    if planted.exact:
        after = world.rows()
        assert {k: v for k, v in after.items() if before.get(k) != v} == {}
        assert before.keys() == after.keys()
