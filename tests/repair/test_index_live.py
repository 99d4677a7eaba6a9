"""Amendments of a live index, and the checks of one that serves a mount."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mpifs.core import records
from mpifs.core.errors import PosixError
from mpifs.core.records import DENTRIES, INODES, META, ORPHANS, REFS, inode_key, name_key
from mpifs.core.types import ChunkKey, StoreEntry, StoreId, StoreState
from mpifs.index.amendment import Amendment, RowKey
from mpifs.index.index import Index
from mpifs.repair.check_index import check_index
from mpifs.repair.findings import Progress
from mpifs.repair.volume_live import LiveVolume
from tests.index.volumes import open_volume
from tests.repair.index_faults import FAULTS
from tests.repair.index_world import FILE, FOLDER, Row, Tree, World, build, facts, repair


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, build(tmp_path))


@pytest.fixture
def index(world: World) -> Iterator[Index]:
    index = open_volume(world.path)
    yield index
    index.abandon()


def live(index: Index, amended: list[Amendment] | None = None) -> LiveVolume:
    told = None if amended is None else amended.append
    return LiveVolume(index, index.sync, on_amended=told)


def row_of(index: Index, row: RowKey) -> bytes | None:
    with index.snapshot() as transaction:
        value = transaction.get(*row)
        return None if value is None else bytes(value)


def inode_row(index: Index, ino: int, **fields: int) -> tuple[RowKey, bytes, bytes]:
    """Row, what it is, and what it is with other fields."""
    row = RowKey(INODES, inode_key(ino))
    old = row_of(index, row)
    assert old is not None
    record = records.decode_inode(row.key, old, records.InodeRecord)
    return row, old, records.encode_inode(replace(record, **fields))  # type: ignore[arg-type]


def test_a_live_inode_follows_and_stays_the_same_object(index: Index, world: World) -> None:
    inode = index.resolve(b"/a/file3")
    inode.size = inode.stable_size + 5  # written, not yet durable
    row, old, new = inode_row(index, inode.ino, nlink=7, uid=77)
    amended: list[Amendment] = []
    amendment = Amendment({row: new}, {row: old})
    assert live(index, amended).amend(amendment)
    assert amended == [amendment]
    assert index.resolve(b"/a/file3") is inode
    assert (inode.nlink, inode.uid, inode.size) == (7, 77, inode.stable_size + 5)
    assert row_of(index, row) == new
    index.abandon()
    assert world.inode(inode.ino).nlink == 7, "durable without a commit"


def test_an_evicted_object_follows_too(index: Index) -> None:
    inode = index.resolve(b"/a/file3")
    index._evicted[inode.ino] = index._cache.pop(inode.ino)
    row, old, new = inode_row(index, inode.ino, gid=5)
    assert index.amend(Amendment({row: new}, {row: old}))
    assert index.inode(inode.ino) is inode
    assert inode.gid == 5


def test_other_rows_than_expected_change_nothing(index: Index) -> None:
    row, old, new = inode_row(index, index.resolve(b"/a/file3").ino, nlink=7)
    other = RowKey(DENTRIES, name_key(1, b"new"))
    before = index.counters()
    for expected in ({row: new}, {row: None}, {row: old, other: b"x"}):
        amendment = Amendment({row: new, other: b"y"}, expected, files=3)
        assert not live(index).amend(amendment)
    assert row_of(index, row) == old
    assert row_of(index, other) is None
    assert index.counters() == before


def test_rows_with_uncommitted_changes_wait_for_a_commit(index: Index, world: World) -> None:
    tree = Tree(index)
    tree.ino = dict(world.ino)
    made = tree.make("/a/new", chunks=1)
    index.set_xattr(made, b"user.n", b"v", now_ns=1)
    index.add_garbage(ChunkKey(1, 2, 3), (1,))
    tree.unlink("/d/many")
    index.set_stores([StoreEntry(StoreId(1), b"1" * 16, StoreState.ACTIVE)])
    rows = [
        RowKey(INODES, inode_key(made.ino)),
        RowKey(DENTRIES, name_key(world.ino["/a"], b"new")),
        RowKey(REFS, records.ref_key(made.ino, 0)),
        RowKey(records.XATTRS, name_key(made.ino, b"user.n")),
        RowKey(ORPHANS, inode_key(world.ino["/d/many"])),
        RowKey(records.GARBAGE, records.garbage_key(ChunkKey(1, 2, 3))),
        RowKey(META, records.KEY_STORES),
    ]
    batch = None
    for state in ("in the top layer", "sealed"):
        for row in rows:
            assert not index.amend(Amendment({}, {row: None})), (row, state)
            assert not index.amend(Amendment({row: b"x"})), (row, state)
        batch = batch or index.seal()
    assert batch is not None
    index.commit(batch)
    for row in rows:
        assert not index.amend(Amendment({}, {row: None})), row
        assert index.amend(Amendment({}, {row: row_of(index, row)})), row


def test_a_dirty_row_that_is_still_as_expected_is_amended_after_a_commit(index: Index) -> None:
    inode = index.resolve(b"/a/file3")
    row, old, new = inode_row(index, inode.ino, nlink=7)
    index.touch(inode)
    assert not index.amend(Amendment({row: new}, {row: old}))
    assert live(index).amend(Amendment({row: new}, {row: old}))
    assert inode.nlink == 7


def test_totals_are_right_in_memory_in_a_sealed_batch_and_on_disk(
    index: Index, world: World
) -> None:
    before = index.counters()
    tree = Tree(index)
    tree.ino = dict(world.ino)
    tree.make("/a/new")
    batch = index.seal()
    assert batch is not None
    index._reserve(index._generations)
    tree.make("/a/newer")
    assert index.amend(Amendment({}, files=10, directories=20, payload_bytes=30, orphans=2))
    assert index.counters() == (
        before.files + 12,
        before.directories + 20,
        before.payload_bytes + 30,
        before.orphans + 2,
    )
    index.commit(batch)
    index.abandon()
    stored = records.decode_counters(world.rows()[META, records.KEY_COUNTERS])
    assert stored == (
        before.files + 11,
        before.directories + 20,
        before.payload_bytes + 30,
        before.orphans + 2,
    )


def test_a_counters_row_is_written_from_memory(index: Index) -> None:
    row = RowKey(META, records.KEY_COUNTERS)
    with index._env.write() as transaction:
        transaction.put(META, records.KEY_COUNTERS, b"damaged")
    assert live(index).amend(Amendment({row: b"whatever"}, {row: b"damaged"}))
    stored = row_of(index, row)
    assert stored is not None
    assert records.decode_counters(stored) == index.counters()


def test_numbers_go_on_behind_a_limit_that_was_amended(index: Index, world: World) -> None:
    row = RowKey(META, records.KEY_INODE_LIMIT)
    old = row_of(index, row)
    assert old is not None
    limit = records.decode_number(row.key, old)
    amendment = Amendment({row: records.encode_number(row.key, limit + 1)}, {row: old})
    assert live(index).amend(amendment)
    tree = Tree(index)
    tree.ino = dict(world.ino)
    made = {tree.make(f"/a/n{n}").ino for n in range(3000)}
    assert len(made) == 3000
    assert min(made) == limit + 1, "the number below the limit is the amendment's"
    index.close()
    assert world.check() == []


def test_a_removed_name_is_not_remembered(index: Index, world: World) -> None:
    index.resolve(b"/d/e/third")
    row = RowKey(DENTRIES, name_key(world.ino["/d/e"], b"third"))
    assert live(index).amend(Amendment({row: None}))
    with pytest.raises(PosixError):
        index.resolve(b"/d/e/third")


def test_a_deleted_inode_is_gone(index: Index, world: World) -> None:
    inode = index.resolve(b"/d/fifo")
    row = RowKey(INODES, inode_key(inode.ino))
    assert live(index).amend(Amendment({row: None}))
    assert inode.reaped
    with pytest.raises(PosixError):
        index.inode(inode.ino)


def test_the_table_of_stores_follows(index: Index) -> None:
    table = [StoreEntry(StoreId(9), b"9" * 16, StoreState.ACTIVE)]
    row = RowKey(META, records.KEY_STORES)
    assert live(index).amend(Amendment({row: records.encode_stores(table)}))
    assert index.stores() == table
    assert live(index).stores() == table


def test_current_state_has_what_is_not_committed(index: Index, world: World) -> None:
    view = live(index)
    tree = Tree(index)
    tree.ino = dict(world.ino)
    made = tree.make("/a/new", chunks=2)
    ref = view.current_ref(made.ino, 1)
    assert ref is not None
    assert ref.length == 1000 + made.ino
    assert view.current_ref(made.ino, 2) is None
    assert view.current_size(made.ino) == made.size
    assert view.current_size(99999) is None
    key = ChunkKey(made.ino, 1, ref.generation)
    assert not view.current_garbage(key)
    index.drop_refs(made, 1)
    assert view.current_ref(made.ino, 1) is None
    assert view.current_garbage(key)
    view.settle()
    assert view.current_garbage(key)
    index.forget_garbage([key])
    assert not view.current_garbage(key)
    assert view.next_generation() > ref.generation


LIVE_FAULTS = [
    kind
    for kind in FAULTS
    # What of `meta` an open index has in memory, it never reads again.
    if not kind.startswith(("meta", "counters", "limit", "file without a trace"))
    and "copy" not in kind
]


@pytest.mark.parametrize("kind", LIVE_FAULTS)
def test_a_fault_under_a_live_index_is_repaired(index: Index, world: World, kind: str) -> None:
    remembered = {ino: index.remembered_inode(ino) for ino in set(world.ino.values())}
    assert not any(remembered[ino] for ino in remembered if ino != 1)
    planted = FAULTS[kind](_Shadow(index, world))
    with index._env.write() as transaction:
        for (database, key), value in planted.changes.items():
            if value is None:
                transaction.delete(database, key)
            else:
                transaction.put(database, key, value)
    view = live(index)
    found = list(check_index(view, Progress()))
    assert facts(found) == sorted(planted.facts, key=repr)
    repaired = repair(view)
    assert all(f.repaired for f in repaired), repaired
    assert list(check_index(view, Progress())) == []
    tree = Tree(index)
    tree.ino = {"/": 1}
    tree.make("/afterwards")
    index.close()
    assert world.check() == []


class _Shadow(World):
    """A world whose rows are those of an open index."""

    def __init__(self, index: Index, world: World) -> None:
        self.path = world.path
        self.ino = world.ino
        with index.snapshot() as transaction:
            self._rows = {
                (database, bytes(key)): bytes(value)
                for database in records.DATABASES
                for key, value in transaction.scan(database)
            }

    def rows(self) -> dict[Row, bytes]:
        return self._rows


def test_memory_knows_a_record_that_the_disk_has_lost(index: Index, world: World) -> None:
    inode = index.resolve(b"/a/file3")
    with index._env.write() as transaction:
        transaction.delete(INODES, inode_key(inode.ino))
    (finding,) = list(check_index(live(index), Progress()))
    assert finding.remedy is not None
    assert finding.remedy()
    assert (inode.uid, inode.gid, inode.mode) == (1000, 100, FILE)
    index.close()
    assert world.check() == []


def test_a_busy_index_has_no_findings(index: Index, world: World) -> None:
    """Names come, move and go in two threads while the committer commits and the checks run."""
    seed = time.time_ns() % 10**6
    print("seed", seed)
    ends = threading.Event()
    trouble: list[BaseException] = []

    def guarded(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001
            trouble.append(error)
            ends.set()

    def commit() -> None:
        while not ends.is_set():
            index.sync()
            time.sleep(0.002)

    def play(number: int) -> None:
        dice = random.Random(seed + number)
        parents = [index.resolve(path) for path in (b"/a", b"/a/b", b"/d", b"/d/e")]
        while not ends.is_set():
            _move_something(index, dice, parents, b"%d-%d" % (number, dice.randrange(30)))

    threads = [threading.Thread(target=guarded, args=(commit,))]
    threads += [
        threading.Thread(target=guarded, args=(lambda n=number: play(n),)) for number in (1, 2)
    ]
    for thread in threads:
        thread.start()
    view = LiveVolume(index, lambda: time.sleep(0.01))
    until = time.monotonic() + 3
    rounds = 0
    try:
        while time.monotonic() < until:
            assert list(check_index(view, Progress())) == [], f"seed {seed}"
            rounds += 1
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert not trouble
    assert rounds > 3
    index.close()
    found = {finding.check for finding in world.check()}
    assert found <= {"check_orphans"}, f"seed {seed}"


def _move_something(index: Index, dice: random.Random, parents: list, name: bytes) -> None:
    above, other = dice.choice(parents), dice.choice(parents)
    try:
        what = dice.randrange(7)
        if what < 2:
            index.create(above, name, FILE if what else FOLDER, 0, 0, now_ns=1)
        elif what == 2:
            removed = index.unlink(above, name, 2)
            with index.lock:
                if not removed.nlink and dice.random() < 0.7:
                    index.reap(removed)
        elif what == 3:
            index.rmdir(above, name, 3)
        elif what == 4:
            inode = index.inode(index.lookup(above.ino, name) or 10**9)
            index.link(inode, other, name + b"l", 4)
        elif what == 5:
            index.rename(above, name, other, name, dice.choice((0, 0, 1, 2)), 5)
        else:
            inode = index.inode(index.lookup(above.ino, name) or 10**9)
            if not inode.nlink or inode.is_directory:
                return
            index.set_xattr(inode, b"user.a", b"v", now_ns=6)
    except PosixError:
        pass
