"""Recovery of an index that cannot be opened, from each kind of damage, killed at each step."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpifs.core import records
from mpifs.core.checksum import function_of
from mpifs.core.errors import DamageError, FormatError
from mpifs.core.image import IMAGE_HEADER_BYTES, encode_header_into
from mpifs.core.kinds import Kind
from mpifs.core.limits import RESTORE_NUMBER_GAP
from mpifs.core.restored import Recovery, Restored, decode_restored, encode_restored
from mpifs.core.types import ChunkKey
from mpifs.index.index import Index
from mpifs.index.raw import RawIndex
from mpifs.pagefile import PageFile
from mpifs.repair.copy_writer import CopyWriter
from mpifs.repair.findings import Progress
from mpifs.repair.index_files import (
    check_index_files,
    finish_restore,
    index_damage,
    restored_sign,
)
from mpifs.repair.restore import restore_index
from mpifs.repair.volume_offline import OfflineVolume
from tests.repair.copy_world import KIND, CopyWorld, all_rows, fill

PAGE = 4096
FILES = 3000
_LIMITS = (records.KEY_INODE_LIMIT, records.KEY_GENERATION_LIMIT)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[CopyWorld]:
    made = CopyWorld(tmp_path / "volume")
    made.serve()
    yield made
    made.close()


def use(world: CopyWorld, files: int = FILES, first: int = 0, *, copy: bool = True) -> None:
    """A session that makes files and ends with a copy of the index."""
    index = Index.open(world.index_folder, sync="relaxed", preallocate=False)
    fill(index, files, first)
    if copy:
        generation = index.next_generation()
        CopyWriter(world.stores).write(index.copy_to, index.geometry, generation)
    index.close()


def restore(world: CopyWorld, **options: list[int]) -> list[str]:
    return restore_index(
        world.index_folder,
        world.stores,
        world.blocks,
        progress=Progress(),
        **options,  # type: ignore[arg-type]
    )


def data_file(world: CopyWorld) -> Path:
    return Path(world.index_folder) / "data.mdb"


def overwrite(world: CopyWorld, offset: int, data: bytes) -> None:
    with data_file(world).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def page_with(world: CopyWorld, text: bytes, database: str) -> int:
    """A page of a database's tree in use whose loss is damage, and on which `text` stands."""
    data = data_file(world).read_bytes()
    at = data.find(text)
    while at >= 0:
        page = at // PAGE
        whole = data[page * PAGE : (page + 1) * PAGE]
        overwrite(world, page * PAGE, bytes(PAGE))
        with PageFile(world.index_folder) as pages:
            is_it = any(f"({database})" in problem for problem in pages.problems())
        overwrite(world, page * PAGE, whole)
        if is_it:
            return page
        at = data.find(text, at + 1)
    raise AssertionError("no such page")


def without_totals(rows: dict[str, dict[bytes, bytes]]) -> dict[str, dict[bytes, bytes]]:
    """The rows without those that a recovery changes: limits, and its sign."""
    meta = {
        key: value
        for key, value in rows[records.META].items()
        if key not in (*_LIMITS, records.KEY_RESTORED)
    }
    return {**rows, records.META: meta}


def sign(world: CopyWorld) -> Restored | None:
    raw = RawIndex.open(world.index_folder)
    with raw.snapshot() as transaction:
        found = restored_sign(transaction)
    raw.close()
    return found


def finish(world: CopyWorld) -> None:
    """What a repair run does at its end."""
    raw = RawIndex.open(world.index_folder)
    view = OfflineVolume(raw)
    assert not finish_restore(view, absent={3})
    assert finish_restore(view)
    assert finish_restore(view)
    raw.close()


def limits(rows: dict[str, dict[bytes, bytes]]) -> list[int]:
    return [records.decode_number(key, rows[records.META][key]) for key in _LIMITS]


# The sign.


def test_sign_golden_bytes() -> None:
    restored = Restored(Recovery.FROM_COPY, 7, 1_767_225_600)
    data = bytes.fromhex("0200000000000000 0700000000000000 00b9556900000000 c07e48aef94b35d0")
    assert encode_restored(restored) == data
    assert decode_restored(data) == restored
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(DamageError):
            decode_restored(changed)
    with pytest.raises(DamageError):
        decode_restored(data[:-1])


# Each kind of loss; nothing was changed after the copy, so nothing may be lost.


def lose_folder(world: CopyWorld) -> None:
    shutil.rmtree(world.index_folder)


def lose_data_file(world: CopyWorld) -> None:
    data_file(world).unlink()


def empty_data_file(world: CopyWorld) -> None:
    os.truncate(data_file(world), 0)


def cut_data_file(world: CopyWorld) -> None:
    os.truncate(data_file(world), data_file(world).stat().st_size // 2 // PAGE * PAGE + 100)


def destroy_first_page(world: CopyWorld) -> None:
    overwrite(world, 0, b"\xa5" * PAGE)


def destroy_both_metas(world: CopyWorld) -> None:
    overwrite(world, 0, b"\xa5" * 2 * PAGE)


def destroy_leaf(world: CopyWorld) -> None:
    overwrite(world, page_with(world, b"f1500", records.INODES) * PAGE, b"\xa5" * PAGE)


def destroy_dentries(world: CopyWorld) -> None:
    overwrite(world, page_with(world, b"f1500", records.DENTRIES) * PAGE, bytes(PAGE))


def fill_with_garbage(world: CopyWorld) -> None:
    overwrite(world, 0, b"\x5a" * data_file(world).stat().st_size)


def lose_superblock_too(world: CopyWorld) -> None:
    os.unlink(os.path.join(world.index_folder, "superblock"))
    destroy_leaf(world)


LOSSES = [
    (lose_folder, Recovery.FROM_COPY),
    (lose_data_file, Recovery.FROM_COPY),
    (empty_data_file, Recovery.FROM_COPY),
    (fill_with_garbage, Recovery.FROM_COPY),
    (destroy_both_metas, Recovery.FROM_COPY),
    (cut_data_file, None),
    (destroy_first_page, Recovery.FROM_PAGES),
    (destroy_leaf, Recovery.FROM_PAGES),
    (destroy_dentries, Recovery.FROM_PAGES),
    (lose_superblock_too, Recovery.FROM_PAGES),
]


@pytest.mark.parametrize(("lose", "how"), LOSSES, ids=[lose.__name__ for lose, _ in LOSSES])
def test_everything_comes_back(
    world: CopyWorld, lose: Callable[[CopyWorld], None], how: Recovery | None
) -> None:
    use(world)
    before = all_rows(world.index_folder)
    manifest = world.copies()[0].manifest
    lose(world)
    assert index_damage(world.index_folder)
    sentences = restore(world)
    assert sentences
    after = all_rows(world.index_folder)
    assert without_totals(after) == without_totals(before)
    for old, new in zip(limits(before), limits(after), strict=True):
        assert new >= old + RESTORE_NUMBER_GAP
    found = sign(world)
    assert found is not None
    assert found.how is how or how is None
    if how is Recovery.FROM_COPY:
        assert found == Restored(how, manifest.generation, manifest.date_s)
    assert index_damage(world.index_folder) == []
    assert restore(world) == []
    with pytest.raises(FormatError, match="fsck --repair to finish"):
        Index.open(world.index_folder)
    finish(world)
    index = Index.open(world.index_folder, preallocate=False)
    assert index.counters().files == FILES
    assert index.lookup(1, b"f1500")
    index.close()


def test_damaged_index_is_kept(world: CopyWorld) -> None:
    use(world)
    destroy_leaf(world)
    bytes_before = data_file(world).read_bytes()
    sentences = restore(world)
    kept = Path(world.index_folder + ".damaged-1")
    assert (kept / "data.mdb").read_bytes() == bytes_before
    assert any(os.fspath(kept) in sentence for sentence in sentences)
    destroy_leaf(world)
    restore(world)
    assert Path(world.index_folder + ".damaged-2").is_dir()
    names = sorted(name for name in os.listdir(world.folder) if name.startswith("index"))
    assert names == ["index", "index.damaged-1", "index.damaged-2"]


def test_whole_index_is_left_alone(world: CopyWorld) -> None:
    use(world, 10)
    before = data_file(world).read_bytes()
    assert restore(world) == []
    assert data_file(world).read_bytes() == before
    assert sign(world) is None


# The superblock alone.


@pytest.mark.parametrize("has_copy", [True, False])
@pytest.mark.parametrize("how", ["gone", "flipped", "empty"])
def test_superblock_is_mended_in_place(world: CopyWorld, how: str, has_copy: bool) -> None:
    use(world, 50, copy=has_copy)
    before = all_rows(world.index_folder)
    path = Path(world.index_folder) / "superblock"
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    else:
        data[30] ^= 4
        path.write_bytes(data if how == "flipped" else b"")
    assert len(index_damage(world.index_folder)) == 1
    assert len(restore(world)) == 1
    assert index_damage(world.index_folder) == []
    assert all_rows(world.index_folder) == before
    index = Index.open(world.index_folder, preallocate=False)
    assert index.geometry == world.block
    assert index.counters().files == 50
    index.close()


# What was changed after the copy.


def test_newer_rows_stay_and_lost_ones_come_from_the_copy(world: CopyWorld) -> None:
    use(world)
    old = all_rows(world.index_folder)
    index = Index.open(world.index_folder, sync="relaxed", preallocate=False)
    inos = {number: index.lookup(1, b"f%d" % number) for number in (3, 1500, 2900)}
    for ino in inos.values():
        index.inode(ino).uid = 77
        index.touch(index.inode(ino))
    index.sync()
    index.touch(index.inode(1))
    index.sync()  # now the state before the last commit has them, too
    index.close()
    new = all_rows(world.index_folder)
    destroy_leaf(world)
    restore(world)
    after = all_rows(world.index_folder)[records.INODES]
    keys = {number: records.inode_key(ino) for number, ino in inos.items()}
    assert after[keys[3]] == new[records.INODES][keys[3]] != old[records.INODES][keys[3]]
    assert after[keys[2900]] == new[records.INODES][keys[2900]]
    assert after[keys[1500]] == old[records.INODES][keys[1500]]
    assert set(after) == set(new[records.INODES])


def test_state_before_the_last_commit_helps_without_a_copy(world: CopyWorld) -> None:
    """The last commit has made a new leaf page; the one before it still has the old one."""
    use(world, copy=False)
    index = Index.open(world.index_folder, sync="relaxed", preallocate=False)
    ino = index.lookup(1, b"f1500")
    index.inode(ino).uid = 77
    index.touch(index.inode(ino))
    index.sync()
    index.abandon()
    before = all_rows(world.index_folder)
    destroy_leaf(world)
    sentences = restore(world)
    after = all_rows(world.index_folder)
    assert any("before the last commit" in sentence for sentence in sentences)
    key = records.inode_key(ino)
    assert records.decode_inode(key, after[records.INODES][key], records.InodeRecord).uid == 0
    del before[records.INODES][key], after[records.INODES][key]
    assert without_totals(after) == without_totals(before)


def test_leaf_without_any_copy_loses_only_its_rows(world: CopyWorld) -> None:
    use(world, copy=False)
    before = all_rows(world.index_folder)
    destroy_leaf(world)
    sentences = restore(world)
    assert any("inodes may be lost" in sentence for sentence in sentences)
    after = all_rows(world.index_folder)
    lost = sorted(set(before[records.INODES]) - set(after[records.INODES]))
    numbers = [int.from_bytes(key, "big") for key in lost]
    assert 0 < len(lost) < 60  # one page of them, and all that lie between
    assert numbers == list(range(numbers[0], numbers[0] + len(lost)))
    for key, value in after[records.INODES].items():
        assert key == records.inode_key(1) or value == before[records.INODES][key]
    assert after[records.DENTRIES] == before[records.DENTRIES]
    assert after[records.REFS] == before[records.REFS]
    counters = records.decode_counters(after[records.META][records.KEY_COUNTERS])
    assert counters.files == FILES - len(lost)


# No copy at all.


def put_chunk(world: CopyWorld, store: int, key: ChunkKey, payload: bytes = b"x" * 100) -> None:
    body = bytearray(IMAGE_HEADER_BYTES) + payload
    encode_header_into(body, 0, KIND, key, len(payload), function_of(KIND)(payload))
    world.client.call(store, Kind.PUT, body=body, items=1)


def test_empty_index_when_nothing_is_left(world: CopyWorld) -> None:
    use(world, 5, copy=False)
    for generation, store in ((1234, 1), (1234, 2), (99, 2), (99, 3)):
        put_chunk(world, store, ChunkKey(generation - 90, 3, generation))
    lose_folder(world)
    sentences = restore(world)
    assert any("2 files" in sentence for sentence in sentences)
    rows = all_rows(world.index_folder)
    assert records.decode_stores(rows[records.META][records.KEY_STORES]) == world.entries
    inode_limit, generation_limit = limits(rows)
    assert inode_limit == 1234 - 90 + 1 + RESTORE_NUMBER_GAP
    assert generation_limit == 1234 + 1 + RESTORE_NUMBER_GAP
    assert sign(world) == Restored(Recovery.FROM_CHUNKS, 0, 0)
    finish(world)
    index = Index.open(world.index_folder, preallocate=False)
    assert index.geometry.replicas == 2  # each chunk was on two stores
    assert index.counters() == (0, 1, 0, 0)
    assert index.inode(1).is_directory
    index.close()


def test_missing_stores_may_hold_the_copy(world: CopyWorld) -> None:
    use(world)
    lose_folder(world)
    world.live = [3]
    with pytest.raises(FormatError, match="workers 1, 2 are missing"):
        restore(world, missing=[1, 2])
    assert not os.path.exists(world.index_folder)
    world.live = [1, 3]
    restore(world, missing=[2])  # a copy is there: it is as new as the other one
    assert sign(world) is not None


def test_missing_store_may_hold_the_newer_copy(world: CopyWorld) -> None:
    use(world, 20)
    world.live = [3]
    use(world, 20, 20)
    world.live = [1, 2, 3]
    newest = world.copies()[0].manifest
    assert newest.holders == (3,)
    world.while_closed(
        lambda: world.change_piece(3, ChunkKey(0, 1, newest.generation), lambda data: None)
    )
    lose_folder(world)
    world.live = [1, 2]
    restore(world, missing=[3])  # no manifest here tells that store 3 has a newer one
    world.live = [1, 2, 3]
    lose_folder(world)

    def spoil() -> None:
        world.change_piece(3, ChunkKey(0, 1, newest.generation), None)

    world.while_closed(spoil)
    with pytest.raises(FormatError, match="workers 3 are missing"):
        restore(world, missing=[3])  # its manifest is here, as if another store had kept it
    restore(world)


def test_nothing_left_at_all(world: CopyWorld) -> None:
    use(world, 5, copy=False)
    lose_folder(world)
    world.live = []
    with pytest.raises(FormatError, match="nothing is left"):
        restore_index(world.index_folder, world.stores, [], progress=Progress())


# Numbers.


def test_numbers_are_never_used_twice(world: CopyWorld) -> None:
    """Lost, restored, used and lost again before there is a newer copy."""
    use(world, 10)
    used: list[tuple[int, int]] = []
    for turn in range(3):
        lose_folder(world)
        restore(world)
        finish(world)
        index = Index.open(world.index_folder, sync="relaxed", preallocate=False)
        inode = index.create(index.inode(1), b"new%d" % turn, 0o100644, 0, 0, now_ns=1)
        generation = index.next_generation()
        put_chunk(world, 1, ChunkKey(inode.ino, 0, generation))
        used.append((inode.ino, generation))
        index.abandon()
    assert used == sorted(set(used))
    assert len({ino for ino, _ in used}) == len({generation for _, generation in used}) == 3


# Killed at each step.


def child(folder: str) -> None:
    """Restores the volume in a process of its own, stores included."""
    world = CopyWorld(Path(folder), make=False)
    world.serve()
    restore(world)
    world.close()


def run_child(folder: Path, fault: int) -> int:
    environment = dict(os.environ, MPIFS_FAULT=f"repair.commit:{fault}")
    code = f"from tests.repair.test_restore import child; child({os.fspath(folder)!r})"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[2], timeout=60
    ).returncode


@pytest.mark.parametrize("lose", [lose_folder, lose_superblock_too])
def test_killed_at_each_step(tmp_path: Path, lose: Callable[[CopyWorld], None]) -> None:
    world = CopyWorld(tmp_path / "volume")
    world.serve()
    use(world, 2000)
    lose(world)
    world.close()
    expected = None
    for fault in (0, 1, 2, 3, 4):
        folder = tmp_path / f"run-{fault}"
        shutil.copytree(world.folder, folder)
        code = run_child(folder, fault)
        if fault == 0:
            assert code == 0
        elif code == 0:
            assert fault > 2  # there is at least the superblock and a rename
            break
        else:
            assert code == -signal.SIGKILL
            assert run_child(folder, 0) == 0
        rows = all_rows(os.fspath(folder / "index"))
        expected = expected or rows
        assert rows == expected
        assert index_damage(os.fspath(folder / "index")) == []
        left = {name for name in os.listdir(folder) if name.startswith("index")}
        assert left <= {"index", "index.damaged-1"}
    else:
        raise AssertionError("it never ended")


# The finding.


def test_finding_and_its_remedy(world: CopyWorld) -> None:
    use(world, 100)
    told: list[str] = []

    def found() -> list[str]:
        checked = check_index_files(
            world.index_folder, lambda: restore(world), told.append, world.stores
        )
        return [f"{one.check} {one.severity} {one.remedy and one.remedy()}" for one in checked]

    assert found() == []
    lose_data_file(world)
    assert found() == ["check_index_files damage True"]
    assert found() == []
    assert any("restored from its copy of" in sentence for sentence in told)
