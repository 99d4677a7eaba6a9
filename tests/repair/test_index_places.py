"""Raw index, snapshots with planned rows, paths, lost+found, removals, and the bounds of it all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mpifs.core import limits, records
from mpifs.core.errors import DamageError, FormatError, InUseError
from mpifs.core.records import DENTRIES, GARBAGE, INODES, META, REFS, inode_key, name_key
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.index import raw
from mpifs.index.amendment import Amendment, RowKey
from mpifs.index.raw import RawIndex
from mpifs.kv import Environment
from mpifs.repair import census, check_names, check_records, removal
from mpifs.repair import snapshot as snapshot_module
from mpifs.repair.check_index import check_index
from mpifs.repair.findings import CancelledError, Progress
from mpifs.repair.lost_found import attach
from mpifs.repair.paths import path_of
from mpifs.repair.snapshot import Snapshot
from mpifs.repair.tree_edit import TreeEdit
from tests.index.volumes import STORES, make_volume, open_volume
from tests.repair.index_world import FILE, FOLDER, Tree, World, build, repair


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, build(tmp_path))


@pytest.fixture
def snapshot(world: World) -> Iterator[Snapshot]:
    with world.view() as view, view.snapshot() as transaction:
        yield Snapshot(transaction)


def flip(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


# The raw index.


def test_opening_changes_no_byte_and_keeps_others_out(world: World) -> None:
    data = os.path.join(world.path, "data.mdb")
    before = hashlib.sha256(Path(data).read_bytes()).digest()
    index = RawIndex.open(world.path)
    assert index.geometry.chunk_size == 1 << 20
    with pytest.raises(InUseError):
        RawIndex.open(world.path)
    with index.snapshot() as transaction:
        assert transaction.count(INODES) > 20
    index.close()
    index.close()
    assert hashlib.sha256(Path(data).read_bytes()).digest() == before


def test_amendments_are_all_or_nothing_and_count(world: World) -> None:
    index = RawIndex.open(world.path)
    row, other = RowKey(META, b"x"), RowKey(META, b"y")
    assert index.amend(Amendment({row: b"1", other: b"2"}, {row: None}, files=3, orphans=-5))
    assert not index.amend(Amendment({row: None, other: b"3"}, {row: b"0"}, files=9))
    assert not index.amend(Amendment({row: None}, {RowKey(META, b"z"): b""}))
    assert index.amend(Amendment({row: None}, {row: b"1", other: b"2"}))
    index.close()
    rows = world.rows()
    assert (META, b"x") not in rows
    assert rows[META, b"y"] == b"2"
    counters = records.decode_counters(rows[META, records.KEY_COUNTERS])
    assert counters.orphans == 0, "never below 0"
    index = RawIndex.open(world.path)
    counters_row = RowKey(META, records.KEY_COUNTERS)
    assert index.amend(Amendment({counters_row: b"damaged"}))
    assert index.amend(Amendment({row: b"1"}, files=1)), "damaged totals are not in the way"
    index.close()


def test_generations_are_never_given_twice(world: World) -> None:
    index = RawIndex.open(world.path)
    seen = [index.next_generation() for _ in range(3)]
    index.close()
    index = RawIndex.open(world.path)
    seen.append(index.next_generation())
    assert seen == sorted(set(seen))
    index.amend(Amendment({RowKey(META, records.KEY_GENERATION_LIMIT): None}))
    with pytest.raises(DamageError, match="missing"):
        index.next_generation()
    index.close()


def test_inspect_names_what_is_wrong_with_the_files(world: World) -> None:
    assert raw.inspect(world.path) == []
    superblock = os.path.join(world.path, "superblock")
    flip(superblock, 70)
    (sentence,) = raw.inspect(world.path)
    assert "superblock" in sentence
    with pytest.raises(FormatError):
        RawIndex.open(world.path)
    flip(superblock, 70)
    data = os.path.join(world.path, "data.mdb")
    os.truncate(data, 5000)
    assert any("data.mdb" in sentence for sentence in raw.inspect(world.path))
    os.remove(data)
    assert any("data.mdb" in sentence for sentence in raw.inspect(world.path))
    os.remove(superblock)
    assert len(raw.inspect(world.path)) == 2
    assert raw.inspect(world.path + "/nowhere")


# Snapshots.


def test_planned_rows_stand_over_the_stored_ones(snapshot: Snapshot, world: World) -> None:
    stored = [bytes(key) for key, _ in snapshot.scan(INODES)]
    first, gone, last = stored[0], stored[3], stored[-1]
    new = inode_key(10**6)
    before = inode_key(0)
    amendment = snapshot.change(
        {
            RowKey(INODES, gone): None,
            RowKey(INODES, new): b"new",
            RowKey(INODES, before): b"zero",
            RowKey(INODES, first): b"first",
        },
        [RowKey(INODES, last)],
        files=2,
    )
    assert amendment.expected[RowKey(INODES, gone)] is not None
    assert amendment.expected[RowKey(INODES, new)] is None
    assert RowKey(INODES, last) in amendment.expected
    rows = {bytes(key): bytes(value) for key, value in snapshot.scan(INODES)}
    assert list(rows) == [before, first, *(key for key in stored[1:] if key != gone), new]
    assert (rows[first], rows[new], snapshot.get(INODES, gone)) == (b"first", b"new", None)
    assert snapshot.last_key(INODES) == new
    part = [bytes(key) for key, _ in snapshot.scan(INODES, stored[2], stored[5])]
    assert part == [stored[2], stored[4]]
    counters = snapshot.counters()
    assert counters is not None
    assert counters.files == records.decode_counters(world_counters(snapshot)).files + 2
    following = snapshot.change({RowKey(INODES, new): None})
    assert following.expected == {RowKey(INODES, new): b"new"}, "on top of what is planned"
    assert snapshot.last_key(INODES) == last


def world_counters(snapshot: Snapshot) -> bytes:
    value = snapshot.transaction.get(META, records.KEY_COUNTERS)
    assert value is not None
    return bytes(value)


def test_streams_agree_with_the_rows(snapshot: Snapshot, world: World) -> None:
    assert [row.ino for row in snapshot.inodes()] == sorted(set(world.ino.values()))
    assert all(row.record is not None for row in snapshot.inodes())
    assert [row.ino for row in snapshot.inodes(5, 9)] == [5, 6, 7, 8]
    top = world.ino["/top"]
    assert [row.chunk for row in snapshot.refs(top, end=top + 1)] == [0, 1]
    assert [row.chunk for row in snapshot.refs(top, 1, top + 1)] == [1]
    assert {row.name for row in snapshot.xattrs(top, top + 1)} == {
        b"user.x0",
        b"user.x1",
        b"user.x2",
        b"user.big",
    }
    assert [row.chunk_key.chunk for row in snapshot.garbage()] == [0, 1, 2]
    owners = list(snapshot.owners(REFS))
    assert owners == sorted({row.ino for row in snapshot.refs()})
    many = world.ino["/d/many"]
    assert many in owners
    assert list(snapshot.owners(REFS, many, many + 1)) == [many]
    assert list(snapshot.owners(REFS, 2**64 - 1)) == []
    names = [row.name for row in snapshot.dentries(world.ino["/d"], world.ino["/d"] + 1)]
    assert names == sorted(names)
    assert b"link" in names
    assert [each.ino for each in snapshot.directories()] == sorted(
        world.ino[path] for path in ("/", "/a", "/a/b", "/a/b/c", "/d", "/empty", "/d/e")
    )


# Paths.


def test_paths(world: World) -> None:
    with world.view() as view, view.snapshot() as transaction:
        snapshot = Snapshot(transaction)
        for path, ino in world.ino.items():
            if "hard" in path or "other" in path or "third" in path:
                continue
            assert path_of(snapshot, ino) == os.fsencode(path)
        nameless = world.ino["/d/hard1"]  # its record tells no name, but it has one
        record = snapshot.inode(nameless)
        assert record is not None
        assert record.parent == 0
        assert path_of(snapshot, nameless) == b"/d/hard1"
        assert path_of(snapshot, 999) == b"#999"
    key = inode_key(world.ino["/a/b"])
    world.write({(INODES, key): b"damaged"})
    with world.view() as view, view.snapshot() as transaction:
        snapshot = Snapshot(transaction)
        assert path_of(snapshot, world.ino["/a/b/c/deeper"]) == b"/a/b/c/deeper"
    world.write({world.entry("/a/b"): None})
    with world.view() as view, view.snapshot() as transaction:
        snapshot = Snapshot(transaction)
        b = world.ino["/a/b"]
        assert path_of(snapshot, world.ino["/a/b/c/deeper"]) == b"#%d/c/deeper" % b


def test_a_path_in_a_cycle_ends(world: World) -> None:
    a, c = world.ino["/a"], world.ino["/a/b/c"]
    key = name_key(c, b"a")
    world.put_inode(replace(world.record("/a"), parent=c, name=b"a"))
    world.write({world.entry("/a"): None, (DENTRIES, key): records.encode_dentry(key, a, 4)})
    with world.view() as view, view.snapshot() as transaction:
        assert path_of(Snapshot(transaction), a) == b"#%d/b/c/a" % a


# lost+found.


def test_lost_found_avoids_what_is_there(world: World) -> None:
    """A file of the user's has the folder's name, and the folder a name of ours."""
    index = open_volume(world.path, reserve=64)
    tree = Tree(index)
    tree.ino = dict(world.ino)
    tree.make("/lost+found", FILE)
    tree.make("/lost+found-1", FOLDER)
    tree.make(f"/lost+found-1/#{world.ino['/empty']}", FILE)
    index.close()
    taken = world.rows()
    world.write({world.entry("/empty"): None})
    world.put_inode(replace(world.record("/empty"), parent=0, name=b""))
    found = world.repair()
    paths = [f.path for f in found if f.check == "check_inodes_reached"]
    assert paths == [b"/lost+found-1/#%d-1" % world.ino["/empty"]]
    assert world.check() == []
    assert taken.keys() - world.rows().keys() == {world.entry("/empty")}


def test_lost_found_is_made_for_the_owner_of_the_root(world: World) -> None:
    root = replace(world.record("/"), uid=5, gid=6, chunk_size=8192)
    world.put_inode(root)
    made = replace(world.record("/top"), ino=500, parent=0, name=b"", bytes_stored=0)
    with world.view() as view:
        with view.snapshot() as transaction:
            edit = TreeEdit(Snapshot(transaction))
            edit.create_inode(made)
            assert attach(edit, 500) == b"/lost+found/#500"
            amendment = edit.plan()
        assert view.amend(amendment)
        assert not view.amend(amendment)
    key = name_key(1, b"lost+found")
    ino, kind = records.decode_dentry(key, world.rows()[DENTRIES, key])
    folder = world.inode(ino)
    assert (kind, folder.mode, folder.uid, folder.gid) == (4, 0o40700, 5, 6)
    assert (folder.nlink, folder.stable_size, folder.parent) == (2, 1, 1)
    found = {finding.check for finding in world.check()}
    assert found == {"check_inode_limit", "check_xattr_flag"}, "500 was not below the limit"


# Removal.


@pytest.fixture
def removed(world: World) -> int:
    """A removed file with attributes and many chunks, of a volume at rest."""
    index = open_volume(world.path)
    tree = Tree(index)
    tree.ino = dict(world.ino)
    made = tree.make("/huge")
    refs = [(n, ChunkRef(index.next_generation(), 10, b"c" * 16, (1, 2))) for n in range(50)]
    index.set_refs(made, refs)
    index.set_xattr(made, b"user.a", b"v", now_ns=1)
    tree.unlink("/huge")
    tree.unlink("/d/many")
    index.close()
    return made.ino


def test_removals_are_finished_at_rest(world: World, removed: int) -> None:
    found = world.check()
    assert [(f.check, f.severity, f.path) for f in found] == [
        ("check_orphans", "leftover", b"#%d" % ino)
        for ino in sorted((removed, world.ino["/d/many"]))
    ]
    before = world.rows()
    garbage = {row for row in before if row[0] == GARBAGE}
    world.repair()
    rows = world.rows()
    assert len({row for row in rows if row[0] == GARBAGE} - garbage) == 50 + 40
    key = records.garbage_key(ChunkKey(removed, 7, ref_of(before, removed, 7).generation))
    assert records.decode_garbage(key, rows[GARBAGE, key]) == (1, 2)
    assert not [row for row in rows if row[0] != GARBAGE and row[1][:8] == inode_key(removed)]
    counters = records.decode_counters(rows[META, records.KEY_COUNTERS])
    assert counters.orphans == 0
    stored = sum(
        records.decode_ref(key, value).length for (name, key), value in rows.items() if name == REFS
    )
    assert counters.payload_bytes == stored
    assert world.check() == []


def ref_of(rows: dict[tuple[str, bytes], bytes], ino: int, chunk: int) -> ChunkRef:
    key = records.ref_key(ino, chunk)
    return records.decode_ref(key, rows[REFS, key])


def test_a_removal_killed_between_any_two_steps_goes_on(
    world: World, removed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "DROP_COUNT_MAX", 7)
    broken = world.rows()
    world.repair()
    wanted = world.rows()
    for kill in range(20):
        now = world.rows()
        changes: dict[tuple[str, bytes], bytes | None] = {r: None for r in now if r not in broken}
        world.write(changes | {r: v for r, v in broken.items() if now.get(r) != v})
        was_killed = world.repair_until(kill)
        world.repair()
        assert world.rows() == wanted, kill
    assert not was_killed


def test_a_removed_file_whose_record_is_lost_is_finished_too(world: World, removed: int) -> None:
    world.write({(INODES, inode_key(removed)): None})
    assert {(f.check, f.inode) for f in world.check()} == {
        ("check_inodes_exist", removed),
        ("check_orphans", world.ino["/d/many"]),
    }
    world.repair()
    assert world.check() == []
    assert not [row for row in world.rows() if row[0] == REFS and row[1][:8] == inode_key(removed)]


def test_a_removed_file_that_is_not_listed(world: World, removed: int) -> None:
    world.write({(records.ORPHANS, inode_key(removed)): None})
    found = [f for f in world.check() if f.inode == removed]
    assert [(f.check, f.severity) for f in found] == [("check_orphans", "error")]
    repaired = world.repair()
    assert all(f.repaired for f in repaired)
    assert {f.check for f in repaired} == {"check_orphans"}
    assert world.check() == []


# Bounds.


@pytest.mark.parametrize("inodes", [1, 5, 7])
def test_small_windows_find_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, inodes: int
) -> None:
    """The census in many windows: names and inodes are in different ones."""
    world.put_inode(replace(world.record("/d/e/third"), nlink=9))
    world.write(
        {
            world.entry("/a/file3"): None,
            world.entry("/a/b"): None,
            (INODES, inode_key(world.ino["/a/file7"])): None,
            (INODES, inode_key(world.ino["/d/e"])): None,
        }
    )
    wanted = sorted((f.check, f.path or b"", f.inode or 0) for f in world.check())
    assert len(wanted) == 5
    monkeypatch.setattr(census, "CENSUS_INODES_MAX", inodes)
    found = sorted((f.check, f.path or b"", f.inode or 0) for f in world.check())
    assert found == wanted
    assert all(f.repaired for f in world.repair())
    assert world.check() == []


def test_more_faults_than_are_kept_are_repaired_in_more_rounds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "CENSUS_FAULTS_MAX", 2)
    changes: dict[tuple[str, bytes], bytes | None] = {
        (INODES, inode_key(world.ino[f"/a/file{n}"])): None for n in range(12)
    }
    world.write(changes)
    assert world.check()
    assert all(f.repaired for f in world.repair(rounds=12))
    assert world.check() == []


def test_more_plans_than_are_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_module, "PLANNED_ROWS_MAX", 1)
    monkeypatch.setattr(check_records, "MENDED_KEPT_MAX", 2)
    changes: dict[tuple[str, bytes], bytes | None] = {
        world.entry(f"/a/file{n}"): None for n in range(12)
    }
    changes[META, records.KEY_INODE_LIMIT] = None
    changes[INODES, inode_key(1)] = None
    changes[world.entry("/a/b")] = None
    changes[INODES, inode_key(world.ino["/a"])] = None
    world.write(changes)
    with world.view() as view:
        for _ in range(12):
            found = list(check_index(view, Progress()))
            for finding in found:
                if finding.remedy is not None:
                    finding.remedy()
    assert not found
    assert world.check() == []


def test_a_cancelled_run_stops(world: World) -> None:
    progress = Progress(is_cancelled=True)
    with world.view() as view, pytest.raises(CancelledError):
        list(check_index(view, progress))


def test_the_checks_are_named_for_what_they_check() -> None:
    assert all(each.__name__.startswith("check_") for each in check_names.CENSUS_CHECKS)


_KILLED = """
import sys
from mpifs.index.raw import RawIndex
from mpifs.repair.volume_offline import OfflineVolume
from tests.repair.index_world import repair
repair(OfflineVolume(RawIndex.open(sys.argv[1])))
"""


def test_a_process_that_is_killed_at_a_commit(world: World) -> None:
    """SIGKILL, really, before the third amendment."""
    for number in range(6):
        world.put_inode(replace(world.record(f"/a/file{number}"), nlink=3))
    wrong = len(world.check())
    assert wrong == 6
    command = [sys.executable, "-c", _KILLED, world.path]
    environment = {**os.environ, "MPIFS_FAULT": "repair.commit:3"}
    done = subprocess.run(command, env=environment, timeout=60, check=False)
    assert done.returncode == -9
    assert len(world.check()) == 4
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert world.check() == []


def read_all(folder: Path) -> None:
    """Reads every inode, name and ref of an index and decodes it."""
    environment = Environment(os.fspath(folder), records.DATABASES)
    decoders = {
        records.INODES: partial(records.decode_inode, make=records.InodeRecord),
        records.DENTRIES: records.decode_dentry,
        records.REFS: records.decode_ref,
    }
    with environment.read() as transaction:
        for database, decode in decoders.items():
            for key, value in transaction.scan(database):
                decode(bytes(key), bytes(value))  # type: ignore[operator]
    environment.close()


def test_a_hundred_thousand_inodes_take_as_long_as_a_few_readings(tmp_path: Path) -> None:
    """1.5 s on a quiet machine; measured by the time that reading and decoding the rows takes."""
    index = open_volume(make_volume(tmp_path))
    tree = Tree(index)
    ref = ChunkRef(1, 4096, b"c" * 16, (1,))
    for folder in range(100):
        tree.make(f"/{folder}", FOLDER)
        for number in range(1000):
            made = tree.make(f"/{folder}/file-{number}")
            index.set_refs(made, [(0, ref)])
            made.size = made.stable_size = 4096
        index.sync()
    index.close()
    took, reading = [], []
    for _ in range(3):
        start = time.thread_time()
        read_all(tmp_path / "index")
        reading.append(time.thread_time() - start)
    world = World(tmp_path, {})
    with world.view() as view:
        for _ in range(3):
            progress = Progress()
            start = time.thread_time()
            assert list(check_index(view, progress)) == []
            took.append(time.thread_time() - start)
    assert progress.inodes == 100_101
    print(f"{min(took):.2f} s for 100,000 inodes, {min(reading):.2f} s to read their rows")
    assert min(took) < 6 * min(reading)
    assert limits.CENSUS_INODES_MAX > 100_101
    assert STORES


def test_nothing_is_repaired_twice(world: World) -> None:
    world.put_inode(replace(world.record("/a/file1"), nlink=3))
    with world.view() as view:
        (finding,) = list(check_index(view, Progress()))
        assert finding.remedy is not None
        assert finding.remedy()
        assert not finding.remedy(), "the place has changed meanwhile"
        assert repair(view) == []
