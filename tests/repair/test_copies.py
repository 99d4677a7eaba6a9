"""Copies of the index: format, writing, reading, refreshing, checking."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpifs.core.errors import DamageError, MpifsError
from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import INDEX_COPY_PIECE_BYTES
from mpifs.core.records import INODES, REFS, decode_ref, inode_key, ref_key
from mpifs.core.superblock import Role, Superblock
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.index.index import Index
from mpifs.pagefile import PageFile
from mpifs.repair.check_copies import check_copies
from mpifs.repair.copies import (
    COPY_INODE,
    Manifest,
    decode_manifest,
    encode_manifest,
    find_copies,
)
from mpifs.repair.copy_reader import CopyRows, fetch_newest
from mpifs.repair.copy_writer import CopyStoppedError, CopyWriter, Pace, order_of_choice
from mpifs.repair.findings import DAMAGE, LEFTOVER, Finding, Progress
from mpifs.repair.index_copier import IndexCopier
from tests.repair.copy_world import CopyWorld, all_rows, fill, grow

GOLDEN = bytes.fromhex(
    "6d7069667343505901000200000010000700000000000000 00b9556900000000"
    "01001000000000000200000000000000 01000200000000000000000000000000"
    "6d70696673564f4c0100010000000000 000102030405060708090a0b0c0d0e0f"
    "000102030405060708090a0b0c0d0e0f 00000000000010000200010000b95569"
    "00000000000000000000000000000000 00000000000000000000000000000000"
    "00000000000000000000000000000000 0000000000000000f3ba5b7f2a89b419"
    "11111111111111111111111111111111 22222222222222222222222222222222"
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[CopyWorld]:
    made = CopyWorld(tmp_path / "volume")
    made.serve()
    yield made
    made.close()


@pytest.fixture
def index(world: CopyWorld) -> Iterator[Index]:
    opened = Index.open(world.index_folder, sync="relaxed", preallocate=False)
    yield opened
    opened.close()


def write(world: CopyWorld, index: Index, pace: Pace | None = None) -> Manifest:
    generation = index.next_generation()
    return CopyWriter(world.stores).write(index.copy_to, index.geometry, generation, pace=pace)


def fetched_rows(world: CopyWorld, tmp_path: Path) -> dict[str, dict[bytes, bytes]] | None:
    folder = tmp_path / f"fetched-{time.monotonic_ns()}"
    folder.mkdir()
    if fetch_newest(world.stores, os.fspath(folder), Progress()) is None:
        return None
    return all_rows(os.fspath(folder))


def findings(world: CopyWorld, index: Index, **options: bool) -> list[Finding]:
    copier = IndexCopier(index, world.stores)
    return list(check_copies(world.stores, copier, Progress(), **options))


def flip(place: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[place] ^= 0x10

    return change


# The manifest.


def example() -> Manifest:
    volume = bytes(range(16))
    block = Superblock(
        Role.INDEX, volume, volume, 0, 1 << 20, 2, ChecksumKind.XXH3_128, 1_767_225_600
    )
    sums = (b"\x11" * 16, b"\x22" * 16)
    return Manifest(7, 1_767_225_600, (1 << 20) + 1, (1, 2), block, sums)


def test_manifest_golden_bytes() -> None:
    assert encode_manifest(example()) == GOLDEN
    assert decode_manifest(GOLDEN, 7) == example()


def test_manifest_refuses_what_it_is_not() -> None:
    with pytest.raises(DamageError):
        decode_manifest(GOLDEN, 8)
    for length in range(len(GOLDEN)):
        with pytest.raises(DamageError):
            decode_manifest(GOLDEN[:length], 7)


def test_manifest_takes_any_bytes() -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(3000):
        data = bytearray(GOLDEN)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            decode_manifest(bytes(data[: chance.randrange(150, len(data) + 1)]), 7)
        except DamageError:
            continue


# Writing and reading.


def test_copy_is_the_index(world: CopyWorld, index: Index, tmp_path: Path) -> None:
    fill(index, 500)
    manifest = write(world, index)
    assert manifest.holders == (1, 2)
    assert manifest.geometry == world.block
    assert fetched_rows(world, tmp_path) == all_index_rows(index)


def all_index_rows(index: Index) -> dict[str, dict[bytes, bytes]]:
    from mpifs.core import records

    with index._env.read() as transaction:
        return {
            name: {bytes(key): bytes(value) for key, value in transaction.scan(name)}
            for name in records.DATABASES
        }


def test_copy_of_several_pieces(world: CopyWorld, index: Index, tmp_path: Path) -> None:
    grow(index)
    manifest = write(world, index)
    assert manifest.pieces > 2
    assert manifest.size_bytes > INDEX_COPY_PIECE_BYTES * 2
    assert sorted(world.pieces(1)) == [(n, manifest.generation) for n in range(manifest.pieces + 1)]
    assert world.pieces(1) == world.pieces(2)
    assert world.pieces(3) == []
    assert fetched_rows(world, tmp_path) == all_index_rows(index)


def test_new_copy_replaces_the_old(world: CopyWorld, index: Index) -> None:
    grow(index)
    write(world, index)
    for number in range(70):
        index.set_xattr(index.inode(number + 2), b"user.long", b"", now_ns=number)
    index.sync()
    second = write(world, index)
    for store in (1, 2):
        assert {generation for _, generation in world.pieces(store)} == {second.generation}
        assert len(world.pieces(store)) == second.pieces + 1


def test_copy_is_one_consistent_state_while_the_index_changes(
    world: CopyWorld, index: Index, tmp_path: Path
) -> None:
    """Every commit of the writer keeps: inodes = dentries + root, and each has its ref."""
    fill(index, 20_000)
    stop = threading.Event()

    def change() -> None:
        number = 20_000
        while not stop.is_set():
            fill(index, 50, number)
            index.unlink(index.inode(1), b"f%d" % (number - 20_000), 1)
            number += 50

    writer = threading.Thread(target=change)
    writer.start()
    try:
        for _ in range(3):
            before = index.counters().files
            write(world, index)
            after = index.counters().files
            rows = fetched_rows(world, tmp_path)
            assert rows is not None
            refs = {key[:8] for key in rows[REFS]}
            inodes = set(rows[INODES]) - {inode_key(1)}
            assert before - 100 <= len(inodes) <= after + 100  # counters are ahead of commits
            assert refs <= inodes
            assert len(rows["dentries"]) + len(rows["orphans"]) == len(inodes)
            for key, value in rows[REFS].items():
                decode_ref(key, value)
    finally:
        stop.set()
        writer.join(20)


def test_volume_with_one_store_and_small_chunks(tmp_path: Path) -> None:
    world = CopyWorld(tmp_path / "volume", workers=1, chunk_size=4096)
    world.serve()
    index = Index.open(world.index_folder, sync="relaxed", preallocate=False)
    grow(index)
    assert write(world, index).holders == (1,)
    assert fetched_rows(world, tmp_path) == all_index_rows(index)
    index.close()
    world.close()


def test_interrupted_copy_is_never_taken(world: CopyWorld, index: Index, tmp_path: Path) -> None:
    grow(index)
    first = write(world, index)
    rows = fetched_rows(world, tmp_path)
    grow(index, 70)
    pieces = first.pieces
    for stop_at in (1, pieces, 2 * pieces - 2):
        stopping = Pace()
        sent = 0

        class Stopping(Pace):
            def step(self, size: int, stop_at: int = stop_at, pace: Pace = stopping) -> None:
                nonlocal sent
                if sent >= stop_at:
                    pace.stop.set()
                sent += 1
                pace.step(size)

        with pytest.raises(CopyStoppedError):
            write(world, index, Stopping())
        assert find_copies(world.stores)[0].manifest.generation == first.generation
        assert fetched_rows(world, tmp_path) == rows
    last = write(world, index)
    assert {generation for _, generation in world.pieces(1)} == {last.generation}
    assert {generation for _, generation in world.pieces(2)} == {last.generation}


def test_store_that_fails_is_replaced(world: CopyWorld, index: Index, tmp_path: Path) -> None:
    grow(index)
    real = world.client.start
    sent = []

    def start(rank: int, kind: object, **options: object) -> object:
        if rank == 1 and options.get("body") is not None:
            sent.append(rank)
            if len(sent) > 1:
                raise MpifsError("the disk of worker 1 is full")
        return real(rank, kind, **options)  # type: ignore[arg-type]

    world.client.start = start  # type: ignore[method-assign,assignment]
    manifest = write(world, index)
    assert manifest.holders == (2, 3)
    assert len(world.pieces(3)) == manifest.pieces + 1
    world.live = [3]
    assert fetched_rows(world, tmp_path) == all_index_rows(index)


def test_no_store_takes_it(world: CopyWorld, index: Index) -> None:
    world.live = []
    with pytest.raises(MpifsError, match="no worker"):
        write(world, index)


def test_copies_are_on_different_disks(world: CopyWorld, index: Index) -> None:
    world.disk_of.update({1: "a", 2: "a", 3: "b"})
    assert write(world, index).holders == (1, 3)
    assert order_of_choice([4, 2, 1], {4: "a", 2: "a"}) == [4, 1, 2]


def test_damaged_piece_is_taken_from_the_other_store(
    world: CopyWorld, index: Index, tmp_path: Path
) -> None:
    grow(index)
    manifest = write(world, index)

    def damage() -> None:
        for piece in range(manifest.pieces + 1):  # every piece is bad on one of the two
            key = ChunkKey(COPY_INODE, piece, manifest.generation)
            place = IMAGE_HEADER_BYTES + 40 if piece % 3 else 20
            world.change_piece(1 + piece % 2, key, flip(place) if piece % 4 else None)

    world.while_closed(damage)
    assert fetched_rows(world, tmp_path) == all_index_rows(index)


def test_newest_good_copy_wins(world: CopyWorld, index: Index, tmp_path: Path) -> None:
    fill(index, 10)
    world.live = [3]
    first = write(world, index)
    rows = fetched_rows(world, tmp_path)
    fill(index, 10, 10)
    world.live = [1, 2]
    second = write(world, index)
    world.live = [1, 2, 3]
    assert [copy.manifest for copy in world.copies()] == [second, first]
    assert fetched_rows(world, tmp_path) == all_index_rows(index)

    def damage() -> None:
        for store in (1, 2):
            world.change_piece(store, ChunkKey(COPY_INODE, 1, second.generation), flip(5000))

    world.while_closed(damage)
    assert fetched_rows(world, tmp_path) == rows


def test_rows_of_the_copy(world: CopyWorld, index: Index, tmp_path: Path) -> None:
    folder = os.fspath(tmp_path / "copy-rows")
    nothing = CopyRows(world.stores, folder, Progress())
    assert nothing.row(INODES, inode_key(1)) is None
    nothing.close()
    fill(index, 10)
    write(world, index)
    expected = all_index_rows(index)
    index.unlink(index.inode(1), b"f3", 1)
    index.sync()
    rows = CopyRows(world.stores, folder, Progress())
    for key in (inode_key(1), inode_key(5)):
        assert rows.row(INODES, key) == expected[INODES][key]
    assert rows.row(REFS, ref_key(5, 0)) == expected[REFS][ref_key(5, 0)]
    assert rows.row(REFS, ref_key(5, 1)) is None
    rows.close()
    assert not os.path.exists(folder)


# The copier.


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_copier_copies_only_what_has_changed(world: CopyWorld, index: Index) -> None:
    clock = Clock()
    copier = IndexCopier(index, world.stores, interval_s=60, clock=clock)
    assert copier.tick() == 60
    assert world.copies() == []
    clock.now += 60
    assert copier.tick() == 60
    first = world.copies()[0].manifest
    clock.now += 60
    copier.tick()
    assert world.copies()[0].manifest == first
    fill(index, 5)
    clock.now += 59
    copier.tick()
    assert world.copies()[0].manifest == first
    clock.now += 1
    copier.tick()
    assert world.copies()[0].manifest.generation > first.generation


def test_copier_rests_after_a_slow_copy(world: CopyWorld, index: Index) -> None:
    clock = Clock()
    real = index.copy_to

    def slow(write: Callable[[memoryview | bytes], None]) -> int:
        clock.now += 10
        return real(write)

    index.copy_to = slow  # type: ignore[method-assign]
    copier = IndexCopier(index, world.stores, interval_s=60, clock=clock)
    clock.now += 60
    assert copier.tick() == 200


def test_unchanged_session_writes_no_copy(world: CopyWorld) -> None:
    def session(changes: int) -> int:
        index = Index.open(world.index_folder, sync="relaxed", preallocate=False)
        copier = IndexCopier(index, world.stores)
        fill(index, changes, session.made)  # type: ignore[attr-defined]
        session.made += changes  # type: ignore[attr-defined]
        assert copier.finish()
        index.close()
        return world.copies()[0].manifest.generation

    session.made = 0  # type: ignore[attr-defined]
    first = session(3)
    assert session(0) == first
    assert session(0) == first
    second = session(1)
    assert second > first
    index = Index.open(world.index_folder, sync="relaxed", preallocate=False)
    fill(index, 1, 10)
    index.abandon()  # as a crash: the copy is older than the index, which nothing tells but this
    assert session(0) > second


def test_finish_gives_up_the_copy_under_way(world: CopyWorld, index: Index) -> None:
    grow(index)
    copier = IndexCopier(index, world.stores, interval_s=0.0)
    slow = threading.Event()
    real = index.copy_to
    times = []

    def copy_to(write: Callable[[memoryview | bytes], None]) -> int:
        times.append(1)
        if len(times) > 1:
            return real(write)
        slow.set()

        def slowly(data: memoryview | bytes) -> None:
            time.sleep(0.2)
            write(data)

        return real(slowly)

    index.copy_to = copy_to  # type: ignore[method-assign]
    copier.start()
    assert slow.wait(10)
    started_s = time.monotonic()
    assert copier.finish(20)
    assert time.monotonic() - started_s < 10
    assert len(times) == 2
    assert world.copies()[0].is_whole


def test_finish_keeps_its_deadline(
    world: CopyWorld, index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    grow(index)
    copier = IndexCopier(index, world.stores)
    real = index.copy_to

    def slow(write: Callable[[memoryview | bytes], None]) -> int:
        def slowly(data: memoryview | bytes) -> None:
            time.sleep(0.3)
            write(data)

        return real(slowly)

    index.copy_to = slow  # type: ignore[method-assign]
    started_s = time.monotonic()
    assert not copier.finish(0.5)
    assert time.monotonic() - started_s < 3
    assert "could not be copied" in caplog.text
    assert world.copies() == []


def test_damaged_index_does_not_replace_a_good_copy(
    world: CopyWorld, index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    fill(index, 10)
    copier = IndexCopier(index, world.stores)
    good = copier.refresh()
    with index._env.write() as transaction:
        value = bytearray(transaction.get(INODES, inode_key(5)) or b"")
        value[20] ^= 1
        transaction.put(INODES, inode_key(5), value)
    with pytest.raises(DamageError, match="damaged record"):
        copier.refresh()
    assert not copier.finish()
    assert "run mpifs fsck" in caplog.text
    assert [copy.manifest for copy in world.copies()] == [good]


# The check.


def test_whole_copies_and_none_are_no_finding(world: CopyWorld, index: Index) -> None:
    assert findings(world, index) == []
    grow(index)
    write(world, index)
    assert findings(world, index) == []


@pytest.mark.parametrize("place", [20, IMAGE_HEADER_BYTES + 1000, None])
@pytest.mark.parametrize("piece", [0, 1, 3])
def test_damaged_piece_is_one_finding(
    world: CopyWorld, index: Index, piece: int, place: int | None, tmp_path: Path
) -> None:
    grow(index)
    manifest = write(world, index)
    key = ChunkKey(COPY_INODE, piece, manifest.generation)
    if piece == 0 and place is not None:
        place = min(place, IMAGE_HEADER_BYTES + 100)
    change = None if place is None else flip(place)
    world.while_closed(lambda: world.change_piece(2, key, change))
    found = findings(world, index)
    assert [(one.severity, one.worker) for one in found] == [(DAMAGE, 2)]
    assert ("its manifest" if piece == 0 else str(piece)) in found[0].detail
    assert found[0].remedy is not None
    assert found[0].remedy()
    assert findings(world, index) == []
    assert fetched_rows(world, tmp_path) == all_index_rows(index)
    assert len(world.pieces(2)) == world.copies()[0].manifest.pieces + 1


def test_copy_gone_with_its_store(world: CopyWorld, index: Index) -> None:
    fill(index, 10)
    write(world, index)
    world.live = [2, 3]
    found = findings(world, index)
    assert [(one.severity, one.worker) for one in found] == [(DAMAGE, 1)]
    assert found[0].remedy is not None
    assert found[0].remedy()
    assert findings(world, index) == []
    assert world.copies()[0].manifest.holders == (2, 3)


def test_emptied_store(world: CopyWorld, index: Index) -> None:
    fill(index, 10)
    manifest = write(world, index)

    def damage() -> None:
        for piece in (0, 1):
            world.change_piece(1, ChunkKey(COPY_INODE, piece, manifest.generation), None)

    world.while_closed(damage)
    found = findings(world, index)
    assert [(one.severity, one.worker) for one in found] == [(DAMAGE, 1)]
    assert "missing" in found[0].detail


def test_pieces_left_over(world: CopyWorld, index: Index) -> None:
    grow(index)
    write(world, index)
    stopping = Pace()
    real = stopping.step

    class Stopping(Pace):
        def step(self, size: int) -> None:
            real(size)
            stopping.stop.set()

    with pytest.raises(CopyStoppedError):
        write(world, index, Stopping())
    found = findings(world, index)
    assert [(one.severity, one.worker) for one in found] == [(LEFTOVER, 1), (LEFTOVER, 2)]
    for one in found:
        assert one.remedy is not None
        assert one.remedy()
    assert findings(world, index) == []


def test_both_damaged_in_the_same_piece(world: CopyWorld, index: Index) -> None:
    grow(index)
    manifest = write(world, index)

    def damage() -> None:
        for store in (1, 2):
            world.change_piece(store, ChunkKey(COPY_INODE, 2, manifest.generation), flip(9000))

    world.while_closed(damage)
    found = findings(world, index)
    assert [(one.severity, one.worker) for one in found] == [(DAMAGE, 1), (DAMAGE, 2)]
    assert all("cannot be used" in one.detail for one in found)
    assert all(one.remedy is not None and one.remedy() for one in found)
    assert findings(world, index) == []
    with PageFile(world.index_folder) as pages:
        assert list(pages.problems()) == []
