"""Every single row of an index broken in turn, and random mixtures of broken rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mpifs.core.records import DENTRIES, GARBAGE, INODES, META, ORPHANS, REFS, XATTRS, InodeRecord
from tests.repair.index_faults import FAULTS, Fact, Planted
from tests.repair.index_world import Row, World, build, copy_of, facts

OURS = (META, INODES, DENTRIES, XATTRS, ORPHANS)
SEEDS = range(8)
APART = range(25)
MIXED = range(30)
KILLED = range(8)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("volume")
    return folder, build(folder)


@pytest.fixture
def world(volume: tuple[Path, dict[str, int]], tmp_path: Path) -> World:
    return copy_of(volume[0], tmp_path / "volume", volume[1])


def own_rows(rows: dict[Row, bytes]) -> list[Row]:
    return [row for row in rows if row[0] in OURS]


def restore(world: World, rows: dict[Row, bytes]) -> None:
    now = world.rows()
    changes: dict[Row, bytes | None] = {row: None for row in now if row not in rows}
    changes |= {row: value for row, value in rows.items() if now.get(row) != value}
    if changes:
        world.write(changes)


def flip(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :]


def test_a_flipped_bit_in_any_value_is_one_finding_and_undone(world: World) -> None:
    dice = random.Random(1)
    rows = world.rows()
    for row in own_rows(rows):
        world.write({row: flip(rows[row], dice)})
        assert len(world.check()) == 1, row
        found = world.repair()
        assert [f.repaired for f in found] == [True], (row, found)
        assert world.rows() == rows, row


def test_a_flipped_bit_in_any_key_is_one_finding_and_undone(world: World) -> None:
    dice = random.Random(2)
    rows = world.rows()
    for row in own_rows(rows):
        key = flip(row[1], dice)
        if (row[0], key) in rows:
            continue
        world.write({row: None, (row[0], key): rows[row]})
        found = world.check()
        assert len(found) == 1, (row, key, found)
        found = world.repair()
        assert [f.repaired for f in found] == [True], (row, found)
        assert world.rows() == rows, row


@pytest.mark.parametrize("has_copy", [False, True])
@pytest.mark.parametrize("is_dropped", [False, True])
def test_any_lost_row_is_found_and_repaired(world: World, is_dropped: bool, has_copy: bool) -> None:
    """Dropped, or damaged beyond correction.  One row of several attributes of an inode can go
    without a trace; nothing else can."""
    dice = random.Random(3)
    rows = world.rows()
    copy = rows if has_copy else None
    for row in own_rows(rows):
        several = sum(each[0] == XATTRS and each[1][:8] == row[1][:8] for each in rows) > 1
        world.write({row: None if is_dropped else flip(flip(flip(rows[row], dice), dice), dice)})
        broken = world.rows()
        if broken == rows:
            continue
        found = world.check(copy)
        if not (is_dropped and row[0] == XATTRS and several):
            assert found, row
        repaired = world.repair(copy)
        unmended = [f for f in repaired if not f.repaired]
        if row == (META, b"stores") and not has_copy:
            assert [f.check for f in unmended[:1]] == ["check_stores_table"]
        else:
            assert not unmended, (row, unmended)
            assert world.check(copy) == [], row
        kept = {each: rows[each] for each in rows if each[0] in (REFS, GARBAGE)}
        after = world.rows()
        assert {each: after.get(each) for each in kept} == kept
        restore(world, rows)


@pytest.mark.parametrize("seed", SEEDS)
def test_many_flipped_bits_are_as_many_findings(world: World, seed: int) -> None:
    """Up to half of all rows, in value or key."""
    dice = random.Random(seed)
    rows = world.rows()
    changes: dict[Row, bytes | None] = {}
    broken = dice.sample(own_rows(rows), dice.randrange(2, len(own_rows(rows)) // 2))
    for row in broken:
        if dice.random() < 0.5:
            changes[row] = flip(rows[row], dice)
            continue
        moved = row[0], flip(row[1], dice)
        if moved not in rows and moved not in changes:
            changes |= {row: None, moved: rows[row]}
    world.write(changes)
    count = sum(1 for row in changes if row in rows)
    found = world.check()
    assert len(found) == count, f"seed {seed}"
    assert len(set(facts(found))) == len({(f.check, f.path, f.inode) for f in found}), (
        f"seed {seed}"
    )
    repaired = world.repair()
    assert len(repaired) == count, f"seed {seed}"
    assert all(f.repaired for f in repaired), f"seed {seed}"
    assert world.rows() == rows, f"seed {seed}"


class Mixture:
    """Some faults of the catalogue on different rows; with `is_apart` on places that have nothing
    to do with each other, so that each gives its own findings."""

    def __init__(self, world: World, dice: random.Random, *, is_apart: bool) -> None:
        self.kinds: list[str] = []
        self.changes: dict[Row, bytes | None] = {}
        self.facts: list[Fact] = []
        self.copy: dict[Row, bytes] | None = None
        rows = world.rows()
        records_of = {ino: world.inode(ino) for ino in set(world.ino.values())}
        taken: set[object] = set()
        for kind in dice.sample(list(FAULTS), dice.randrange(2, 12)):
            planted = FAULTS[kind](world)
            area = set(planted.changes)
            if is_apart:
                area |= places(planted, records_of)
            if area & taken:
                continue
            taken |= area
            self.kinds.append(kind)
            self.changes |= planted.changes
            self.facts += planted.facts
            if planted.copy:  # a copy of the index that has just what this fault needs
                lost = {row: rows[row] for row in planted.changes if row in rows}
                self.copy = (self.copy or {}) | lost


def places(planted: Planted, records_of: dict[int, InodeRecord]) -> set[object]:
    """The inodes that a fault concerns: of its rows and findings, and the directories above."""
    inodes = {ino for _, _, ino in planted.facts if ino is not None}
    inodes |= {int.from_bytes(key[:8], "big") for name, key in planted.changes if name != META}
    above: set[int] = set()
    for ino in inodes:
        while ino > 1 and ino in records_of:
            ino = records_of[ino].parent
            above.add(ino)
    found: set[object] = inodes | (above - {1})
    if any(
        name in (META, ORPHANS) or check == "check_inodes_exist"
        for name, _ in planted.changes
        for check, _, _ in planted.facts
    ):
        found.add("totals")
    return found


@pytest.mark.parametrize("seed", APART)
def test_mixtures_of_faults_apart_give_exactly_their_findings(world: World, seed: int) -> None:
    mixture = Mixture(world, random.Random(seed), is_apart=True)
    copy = mixture.copy
    world.write(mixture.changes)
    assert facts(world.check(copy)) == sorted(mixture.facts, key=repr), (seed, mixture.kinds)
    repaired = world.repair(copy)
    assert facts(repaired) == sorted(mixture.facts, key=repr), (seed, mixture.kinds)
    assert all(f.repaired for f in repaired), (seed, mixture.kinds)
    assert world.check(copy) == [], (seed, mixture.kinds)


@pytest.mark.parametrize("seed", MIXED)
def test_any_mixture_is_repaired_and_loses_no_data(world: World, seed: int) -> None:
    dice = random.Random(seed)
    rows = world.rows()
    mixture = Mixture(world, dice, is_apart=False)
    copy = rows if dice.random() < 0.3 else mixture.copy
    world.write(mixture.changes)
    assert world.check(copy), (seed, mixture.kinds)
    repaired = world.repair(copy)
    assert all(f.repaired for f in repaired), (seed, mixture.kinds, repaired)
    assert world.check(copy) == [], (seed, mixture.kinds)
    after = world.rows()
    owners = {key[:8] for name, key in after if name == INODES}
    for row, value in rows.items():
        if row[0] == REFS:
            assert after.get(row) == value, (seed, mixture.kinds, row)
            assert row[1][:8] in owners, (seed, mixture.kinds, row)


@pytest.mark.parametrize("seed", KILLED)
def test_repair_killed_anywhere_ends_the_same(world: World, seed: int) -> None:
    """For each N: killed before its amendment N + 1, run again; all rows as uninterrupted."""
    mixture = Mixture(world, random.Random(1000 + seed), is_apart=False)
    kinds = mixture.kinds
    copy = mixture.copy
    world.write(mixture.changes)
    broken = world.rows()
    world.repair(copy)
    wanted = world.rows()
    killed = 0
    while True:
        restore(world, broken)
        was_killed = world.repair_until(killed, copy)
        world.repair(copy)
        after = world.rows()
        assert after == wanted, (seed, killed, kinds, difference(after, wanted))
        if not was_killed:
            break
        killed += 1
    assert killed >= len(kinds) - 2, (seed, kinds)


def difference(after: dict[Row, bytes], wanted: dict[Row, bytes]) -> list[Row]:
    return [row for row in after.keys() | wanted.keys() if after.get(row) != wanted.get(row)]
