"""Chunks on the move: stores emptied and evened out while they are read and written, or killed."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from mpifs import faultpoint
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.repair.findings import LEFTOVER, Progress
from mpifs.repair.heal import Healing
from mpifs.repair.moves import Departure, Evening, Targets, refs_of_volume
from mpifs.repair.pace import HealPace
from mpifs.repair.shortfall import shortfall
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume import VolumeView
from mpifs.vfs.facade import Vfs
from tests.repair.chunk_world import ChunkWorld, told
from tests.repair.test_chunks_live import CHUNK, ME, SEED, Writer, check, mounted

GIB = 1 << 30


def targets(stores: StoreAccess, *without: int) -> Targets:
    live = sorted(stores.available)
    order = [store for store in live if store not in without]
    return Targets(order, dict.fromkeys(order, GIB), frozenset(live))


def used_bytes(view: VolumeView) -> dict[int, int]:
    nobody: frozenset[int] = frozenset()
    found = shortfall(view, lost=nobody, draining=nobody, placing=3, progress=Progress())
    return found.named_on((1, 2, 3))


def empty(view: VolumeView, stores: StoreAccess, store: int) -> Departure:
    """One pass; what it has seen."""
    view.settle()
    departure = Departure(frozenset((store,)), targets(stores, store))
    for cures in departure.plan(view, Progress()):
        Healing(view, stores).run(cures)
    return departure


def named(view: VolumeView) -> Counter[int]:
    """How many refs name each store."""
    view.settle()
    return Counter(
        store
        for refs in refs_of_volume(view, Progress())
        for _, ref in refs
        for store in ref.stores
    )


def make_files(vfs: Vfs, chance: random.Random, count: int = 12) -> dict[bytes, bytes]:
    contents = {}
    for n in range(count):
        path = b"/kept-%d" % n
        contents[path] = chance.randbytes(chance.choice((1, 700, CHUNK, 3 * CHUNK + 5, 9 * CHUNK)))
        fh = vfs.create(path, 0o644, os.O_RDWR, ME)
        vfs.write(fh, memoryview(contents[path]), 0)
        vfs.fsync(fh)
        vfs.release(fh)
    return contents


def read(vfs: Vfs, path: bytes) -> bytes:
    fh = vfs.open(path, os.O_RDONLY)
    try:
        size = vfs.getattr(path).size
        vfs.reader.cache.forget(vfs.getattr(path).ino)
        into = bytearray(size)
        at = 0
        while at < size:
            at += vfs.read(fh, memoryview(into)[at : at + 5000], at)
        return bytes(into)
    finally:
        vfs.release(fh)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_store_is_emptied_under_readers_and_writers(
    tmp_path: Path, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without any grace for readers that hold the old ref."""
    from mpifs.repair import heal

    print(f"seed {SEED}")
    monkeypatch.setattr(heal, "MOVED_GRACE_S", 0.0)
    with mounted(tmp_path / "v", replicas) as (volume, view, stores):
        vfs = volume.vfs
        assert vfs is not None
        contents = make_files(vfs, random.Random(SEED))
        stop, wrong = threading.Event(), list[str]()

        def reader() -> None:
            chance = random.Random(SEED)
            while not stop.is_set():
                path = chance.choice(sorted(contents))
                try:
                    if read(vfs, path) != contents[path]:
                        wrong.append(f"{path!r}: other bytes")
                except OSError as error:
                    wrong.append(f"{path!r}: {error}")

        thread = threading.Thread(target=reader)
        thread.start()
        try:
            with Writer(vfs, SEED):
                for store in (1, 2, 3, 1):  # what goes off one store comes to the others
                    before = named(view)
                    seen = empty(view, stores, store)
                    assert seen.chunks >= before[store] // 2 > 0 or replicas == 1
                    assert not seen.stuck
        finally:
            stop.set()
            thread.join(20)
        assert wrong == []
        # Nobody writes any more; here a store that is emptied still gets new chunks.
        vfs.committer.sync()
        empty(view, stores, 1)
        assert named(view)[1] == 0
        assert told(check(view, stores)) == []
        assert {path: read(vfs, path) for path in contents} == contents


class Killed(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize("strike", [1, 2, 4, 7])
def test_killed_at_any_step_it_goes_on_where_it_was(
    tmp_path: Path, strike: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ChunkWorld(tmp_path / "v", workers=3, replicas=2)
    world.fill(SEED, files=16)
    count = 0

    def reach(name: str) -> None:
        nonlocal count
        count += name == "repair.commit"
        if count == strike:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(faultpoint, "reach", reach)
        from mpifs.repair import moves

        patch.setattr(moves, "MOVE_BATCH_COUNT", 4)
        # in place of the delayed end of a copy, which `finally` would still bring about
        patch.setattr(Healing, "_drop_moved", lambda self: reach("repair.commit"))
        with world.at_rest() as (view, stores), pytest.raises(Killed):
            empty(view, stores, 2)
    left = world.check()
    assert {finding.severity for finding in left} <= {LEFTOVER}, told(left)
    assert world.wrong_bytes() == []
    with world.at_rest() as (view, stores):
        assert empty(view, stores, 2).stuck == 0
        assert named(view)[2] == 0
    world.check(repair=True)
    assert told(world.check()) == []
    assert world.read() == world.wanted()


def test_no_more_is_moved_than_evening_out_needs(tmp_path: Path) -> None:
    with mounted(tmp_path / "v", 1) as (volume, view, stores):
        vfs = volume.vfs
        assert vfs is not None
        contents = make_files(vfs, random.Random(SEED), 20)
        empty(view, stores, 1)
        used = used_bytes(view)
        evening = Evening(used, targets(stores), CHUNK // 2)
        excess = evening.excess()
        moved = 0
        for cures in evening.plan(view, Progress()):
            Healing(view, stores).run(cures)
            moved += sum(cure.ref.length for cure in cures)
        used = used_bytes(view)
        assert used == evening.used
        assert max(used.values()) - min(used.values()) <= 3 * CHUNK
        assert 0 < moved <= excess + 3 * CHUNK
        again = Evening(dict(used), targets(stores), CHUNK // 2)
        assert [cure for cures in again.plan(view, Progress()) for cure in cures] == []
        assert told(check(view, stores)) == []
        assert {path: read(vfs, path) for path in contents} == contents


def test_what_has_no_place_to_go_stays(tmp_path: Path) -> None:
    with mounted(tmp_path / "v", 3) as (volume, view, stores):
        vfs = volume.vfs
        assert vfs is not None
        make_files(vfs, random.Random(SEED), 4)
        before = named(view)
        seen = empty(view, stores, 2)
        assert seen.chunks == seen.stuck == before[2] > 0
        assert named(view) == before


def test_a_full_store_is_left_out() -> None:
    key, ref = ChunkKey(7, 0, 1), ChunkRef(1, 100, b"s" * 16, (1,))
    some = Targets([1, 2, 3], {1: 1000, 2: 1000, 3: 99}, frozenset((1,)))
    assert some.choose(key, ref) == 2
    assert some.move(key, ref, 1, 2).stores == (2,)
    assert some.free[2] == 900
    some.full.add(2)
    assert some.choose(key, ref) is None


def test_shortfall_counts_what_is_missing(tmp_path: Path) -> None:
    with mounted(tmp_path / "v", 2) as (volume, view, _):
        vfs = volume.vfs
        assert vfs is not None
        contents = make_files(vfs, random.Random(SEED))
        total = sum(map(len, contents.values()))
        view.settle()

        def count(lost: frozenset[int], draining: frozenset[int] = frozenset()):  # type: ignore[no-untyped-def]  # Shortfall
            return shortfall(view, lost=lost, draining=draining, placing=3, progress=Progress())

        nothing = count(frozenset())
        assert (nothing.missing, nothing.leaving, nothing.copies_max) == (0, 0, 2)
        assert sum(nothing.named.values()) == 2 * total
        assert count(frozenset((2,))).missing == nothing.named[2]
        assert count(frozenset(), frozenset((3,))).leaving == nothing.named[3]
        assert nothing.unfilled({1: nothing.named[1], 2: 0}) == nothing.named[2]


def test_the_pace_leaves_two_thirds_to_the_users() -> None:
    now, used, rests = [0.0], [0], list[float]()

    def rest(seconds: float) -> None:
        rests.append(seconds)
        now[0] += seconds

    pace = HealPace(lambda: used[0], rest, lambda: now[0])
    pace.begin()
    for _ in range(10):  # nobody is there
        now[0] += 0.1
        pace(1 << 20)
    assert rests == []
    assert pace.rate == pytest.approx(10 * (1 << 20), rel=0.01)
    for _ in range(10):
        now[0] += 0.1
        used[0] += 1
        pace(1 << 20)
    assert sum(rests) == pytest.approx(2.0)
    used[0] += 1
    now[0] += 100.0
    pace(1)
    assert max(rests) == 5.0
