"""Whole stores missing or silent, refs that nothing corrects, an index that is older than its
stores: what is left is used, and what is lost stays recorded as lost."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mpifs.core import records
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.index.amendment import Amendment
from mpifs.kv import Environment, WriteTransaction
from mpifs.repair import index_edits as edits
from mpifs.repair import stores as stores_module
from mpifs.repair.carry import Carrier
from mpifs.repair.findings import Finding
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume_offline import OfflineVolume
from mpifs.transport.client import Pending
from tests.repair.chunk_faults import left_of, rows_of, twin
from tests.repair.chunk_world import ChunkWorld, told

SEED = int(os.environ.get("MPIFS_TEST_SEED", "0")) or random.randrange(1 << 30)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ChunkWorld]:
    """A sound volume for each number of replicas."""
    made = {}
    for replicas in (1, 2):
        world = ChunkWorld(
            tmp_path_factory.mktemp(f"replicas{replicas}") / "v", workers=4, replicas=replicas
        )
        world.fill(7, files=16)
        made[replicas] = world
    return made


def edit(world: ChunkWorld, change: Callable[[WriteTransaction], None]) -> None:
    """Changes rows of the index."""
    environment = Environment(str(world.folder / "index"), records.DATABASES, preallocate=False)
    with environment.write() as rows:
        change(rows)
    environment.close()


def refs_of(world: ChunkWorld) -> dict[tuple[int, int], ChunkRef]:
    """All refs."""
    environment = Environment(str(world.folder / "index"), records.DATABASES, preallocate=False)
    with environment.read() as rows:
        refs = {
            records.decode_ref_key(key): records.decode_ref(key, value)
            for key, value in rows.scan(records.REFS)
        }
    environment.close()
    return refs


def delete_stored(world: ChunkWorld, keys: dict[int, list[ChunkKey]]) -> None:
    with world.at_rest() as (_, stores):
        assert stores.delete(keys) == {}


# Stores.


def test_a_missing_store_is_one_finding_a_chunk_and_its_replicas_move(
    worlds: dict[int, ChunkWorld], tmp_path: Path
) -> None:
    world = twin(worlds[2], tmp_path / "v")
    on_it = [spot for spot, ref in refs_of(world).items() if 3 in ref.stores]
    shutil.rmtree(world.folder / "worker-3")
    wanted = sorted((("check_copy_store", "damage", *spot, 3) for spot in on_it), key=repr)
    assert told(world.check()) == wanted
    repaired = world.check(repair=True)
    assert told(repaired) == wanted
    assert left_of(repaired) == []
    assert told(world.check()) == []
    assert all(len(ref.stores) == 2 and 3 not in ref.stores for ref in refs_of(world).values())


def test_chunks_of_a_missing_store_without_replicas_are_lost_and_nothing_else(
    worlds: dict[int, ChunkWorld], tmp_path: Path
) -> None:
    world = twin(worlds[1], tmp_path / "v")
    on_it = [spot for spot, ref in refs_of(world).items() if 3 in ref.stores]
    away = world.folder.parent / "away"
    shutil.move(world.folder / "worker-3", away)
    wanted = sorted((("check_copy_store", "lost", *spot, 3) for spot in on_it), key=repr)
    found = world.check(repair=True)
    assert told(found) == wanted
    assert all("bytes" in finding.detail for finding in found)
    shutil.move(away, world.folder / "worker-3")  # its disk was not mounted
    assert told(world.check()) == []
    assert world.wrong_bytes() == []


def test_all_stores_missing(worlds: dict[int, ChunkWorld], tmp_path: Path) -> None:
    world = twin(worlds[2], tmp_path / "v")
    for store in range(1, 5):
        shutil.rmtree(world.folder / f"worker-{store}")
    found = world.check(repair=True)
    assert {finding.severity for finding in found} == {"lost"}
    assert len(found) == 2 * len(refs_of(world))


def test_a_store_that_falls_silent_is_one_finding(
    worlds: dict[int, ChunkWorld], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the second answer of store 2 nothing comes any more; the run goes on without it."""
    world = twin(worlds[2], tmp_path / "v")
    victim = next(
        (spot, ref) for spot, ref in refs_of(world).items() if 1 in ref.stores and spot[0] > 5
    )
    delete_stored(world, {1: [ChunkKey(*victim[0], victim[1].generation)]})
    ask = StoreAccess.ask_reports
    calls = []

    def silent(
        self: StoreAccess, store: int, after: bytes, count: int, size: int, data: bool
    ) -> Pending:
        if store == 2:
            calls.append(after)
            if len(calls) > 2:
                self.client.endpoint.die_of(store)  # type: ignore[attr-defined]  # the test's own
        return ask(self, store, after, 3, size, data)

    from mpifs.core.errors import SilentError

    def dies(store: int) -> None:
        raise SilentError(store, "gave no answer before the deadline")

    with world.at_rest() as (view, stores):
        stores.client.endpoint.die_of = dies  # type: ignore[attr-defined]
        monkeypatch.setattr(StoreAccess, "ask_reports", silent)
        from mpifs.repair.check_chunks import check_chunks
        from mpifs.repair.findings import Progress

        found = list(check_chunks(view, stores, data=True, progress=Progress()))
    missing = ("check_copy_is_there", "damage", *victim[0], 1)
    assert told(found) == sorted(
        [missing, ("check_store_answers", "damage", None, None, 2)], key=repr
    )
    assert "gave no answer" in next(f.detail for f in found if f.worker == 2)


@pytest.mark.parametrize("is_direct", [True, False])
def test_thousands_of_copies_are_healed_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_direct: bool
) -> None:
    """More suspects than a batch takes; images on their way stay bounded, those from worker to
    worker and those through rank 0."""
    from mpifs.repair import check_chunks as module
    from mpifs.repair import heal

    world = ChunkWorld(tmp_path / "v", workers=3, replicas=2, chunk=4096)
    vfs = world.volume.open()
    world._write(b"/large", random.Random(SEED).randbytes(600 * 4096 + 5))
    assert vfs is not None
    world.entries = world.volume.index.stores()
    world.volume.close()
    refs = refs_of(world)
    keys = [ChunkKey(*spot, ref.generation) for spot, ref in refs.items() if 1 in ref.stores]
    delete_stored(world, {1: keys})
    monkeypatch.setattr(module, "SUSPECTS_MAX", 100)
    monkeypatch.setattr(heal, "HEAL_BYTES_MAX", 64 * 1024)
    largest = []
    put = StoreAccess.put

    def measured(
        self: StoreAccess, images: list[tuple[int, bytearray]]
    ) -> list[stores_module.MpifsError | None]:
        largest.append(sum(len(image) for _, image in images))
        return put(self, images)

    monkeypatch.setattr(StoreAccess, "put", measured)
    if not is_direct:
        monkeypatch.setattr(Carrier, "_ask_targets", lambda *_: None)
    repaired = world.check(repair=True)
    assert len(repaired) == len(keys)
    assert left_of(repaired) == []
    assert bool(largest) is not is_direct  # nothing passes through rank 0 that need not
    assert max(largest, default=0) <= 64 * 1024 + 2 * (4096 + 64)
    assert told(world.check()) == []
    assert world.wrong_bytes() == []


# Refs that cannot be corrected.


def spoil_row(rows: WriteTransaction, row: tuple[str, bytes]) -> None:
    value = rows.get(*row)
    assert value is not None
    rows.put(*row, bytes(value[:-12]) + b"????????????")


def spoil_ref(world: ChunkWorld, spot: tuple[int, int]) -> None:
    edit(world, lambda rows: spoil_row(rows, tuple(edits.ref_row(*spot))))


def any_spot(world: ChunkWorld, seed: int) -> tuple[tuple[int, int], ChunkRef]:
    return random.Random(seed).choice(sorted(refs_of(world).items()))


@pytest.mark.parametrize("number", range(6))
def test_a_ref_beyond_correction_is_found_again_by_its_chunk(
    worlds: dict[int, ChunkWorld], tmp_path: Path, number: int
) -> None:
    print("seed", SEED)
    world = twin(worlds[1 + number % 2], tmp_path / "v")
    spot, ref = any_spot(world, SEED + number)
    spoil_ref(world, spot)
    wanted = [("check_ref_is_readable", "error", *spot, None)]
    assert told(world.check()) == wanted
    repaired = world.check(repair=True)
    assert told(repaired) == wanted
    assert refs_of(world)[spot]._replace(stores=()) == ref._replace(stores=())
    assert set(refs_of(world)[spot].stores) == set(ref.stores)
    assert told(world.check()) == []
    assert world.wrong_bytes() == []


def test_the_copy_of_the_index_decides_between_generations(
    worlds: dict[int, ChunkWorld], tmp_path: Path
) -> None:
    """A newer orphan is stored, too: what the copy has, and is still stored, counts."""
    world = twin(worlds[1], tmp_path / "v")
    rows = rows_of(world)
    spot, ref = any_spot(world, SEED)
    with world.at_rest() as (view, stores):
        images = list(stores.fetch([(ref.stores[0], ChunkKey(*spot, ref.generation), ref)]))
        image = images[0]
        assert image is not None
        newer = ChunkKey(*spot, view.next_generation())
        _rename(image, newer, ref)
        assert stores.put([(ref.stores[0], image)]) == [None]
    spoil_ref(world, spot)
    repaired = world.check(repair=True, copy_row=rows)
    assert refs_of(world)[spot] == ref
    assert ("check_every_chunk_is_known", "leftover", *spot, ref.stores[0]) in told(repaired)
    assert told(world.check(copy_row=rows)) == []


def _rename(image: bytearray, key: ChunkKey, ref: ChunkRef) -> None:
    from mpifs.core.image import encode_header_into
    from mpifs.core.types import ChecksumKind

    encode_header_into(image, 0, ChecksumKind.XXH3_128, key, ref.length, ref.checksum)


def test_a_ref_without_a_trace_becomes_a_tombstone(
    worlds: dict[int, ChunkWorld], tmp_path: Path
) -> None:
    print("seed", SEED)
    world = twin(worlds[1], tmp_path / "v")
    spot, ref = any_spot(world, SEED)
    delete_stored(world, {store: [ChunkKey(*spot, ref.generation)] for store in ref.stores})
    spoil_ref(world, spot)
    assert told(world.check()) == [("check_ref_is_readable", "lost", *spot, None)]
    left = left_of(world.check(repair=True))
    grave = [("check_chunk_is_not_lost", "lost", *spot, None)]
    assert told(left) == grave
    assert refs_of(world)[spot] == ChunkRef(0, ref.length, bytes(16), ())
    assert told(world.check()) == grave
    wrong = world.wrong_bytes()
    assert wrong == []
    pieces = [piece for path in world.read().values() for piece in path]
    assert pieces.count(None) == 1  # EIO there, and nowhere else
    # Written again, it is whole again.
    path = next(path for path, read in world.read().items() if None in read)
    world.volume.open()
    world._write(path, world.contents[path])
    world.volume.close()
    assert told(world.check()) == []
    assert world.wrong_bytes() == []


def test_many_missing_rows_of_one_file(worlds: dict[int, ChunkWorld], tmp_path: Path) -> None:
    """A page of refs is gone: the stored chunks explain exactly the bytes that are missing."""
    world = twin(worlds[2], tmp_path / "v")
    refs = refs_of(world)
    ino = max(refs, key=lambda spot: spot[1])[0]
    mine = {spot for spot in refs if spot[0] == ino}
    edit(world, lambda rows: [rows.delete(*edits.ref_row(*spot)) for spot in mine] and None)
    wanted = sorted((("check_no_ref_is_missing", "error", *spot, None) for spot in mine), key=repr)
    assert told(world.check()) == wanted
    assert left_of(world.check(repair=True)) == []
    assert {spot: set(ref.stores) for spot, ref in refs_of(world).items()} == {
        spot: set(ref.stores) for spot, ref in refs.items()
    }
    assert told(world.check()) == []
    assert world.wrong_bytes() == []


# An index older than its stores.


def test_chunks_newer_than_a_recovered_index_come_back(
    worlds: dict[int, ChunkWorld], tmp_path: Path
) -> None:
    """The index is that of yesterday: since then files were rewritten, made longer, and made."""
    print("seed", SEED)
    world = twin(worlds[2], tmp_path / "v")
    yesterday = tmp_path / "yesterday"
    shutil.copytree(world.folder / "index", yesterday)
    chance = random.Random(SEED)
    world.volume.open()
    old = dict(world.contents)
    for path in list(world.contents)[:3]:
        world._write(path, chance.randbytes(len(old[path])))
    for path in list(world.contents)[3:6]:
        world._write(path, old[path] + chance.randbytes(50_000))
    for n in range(3):
        world._write(b"/new-%d" % n, chance.randbytes(20_000 * n + 1))
    numbers = {
        path: world.volume.index.lookup(1, path[1:]) for path in (b"/new-0", b"/new-1", b"/new-2")
    }
    world.volume.close()
    shutil.rmtree(world.folder / "index")
    shutil.move(yesterday, world.folder / "index")
    _raise_limits(world)
    for path, ino in numbers.items():
        world.contents[b"/lost+found/#%d" % ino] = world.contents.pop(path)
    repaired = world.check(repair=True, adopt=True)
    assert told(left_of(repaired)) == []
    assert told(world.check()) == []
    assert world.wrong_bytes() == []
    assert world.read() == world.wanted()


def _raise_limits(world: ChunkWorld) -> None:
    """As the recovery of an index does, so that no number is used again."""

    def change(rows: WriteTransaction) -> None:
        for key in (records.KEY_INODE_LIMIT, records.KEY_GENERATION_LIMIT):
            value = rows.get(records.META, key)
            assert value is not None
            number = records.decode_number(key, value) + (1 << 32)
            rows.put(records.META, key, records.encode_number(key, number))

    edit(world, change)


def test_nothing_is_deleted_while_facts_are_missing(
    worlds: dict[int, ChunkWorld], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More faults than are remembered at once: the rounds get them all, and lose nothing."""
    from mpifs.repair import facts

    monkeypatch.setattr(facts, "FACTS_MAX", 2)
    world = twin(worlds[1], tmp_path / "v")
    refs = refs_of(world)
    chosen = random.Random(SEED).sample(sorted(refs), 5)
    for spot in chosen:
        spoil_ref(world, spot)
    assert left_of(world.check(repair=True)) == []
    assert refs_of(world) == refs
    assert told(world.check()) == []


def test_remedies_do_nothing_where_the_place_has_changed(
    worlds: dict[int, ChunkWorld], tmp_path: Path
) -> None:
    """Between the finding and its remedy the row became another one."""
    world = twin(worlds[1], tmp_path / "v")
    spot, ref = any_spot(world, SEED)
    spoil_ref(world, spot)
    kept: list[Finding] = world.check()

    def change(view: OfflineVolume, _: StoreAccess) -> None:
        row = edits.ref_row(*spot)
        other = edits.encode_ref(row, ref._replace(generation=ref.generation + 1))
        assert view.amend(Amendment({row: other}))
        assert not edits.restore_ref(view, *spot, ref, b"what it was")

    world.check(after=change)
    assert len(kept) == 1


def test_without_data_only_what_headers_tell_is_found(
    worlds: dict[int, ChunkWorld], tmp_path: Path
) -> None:
    world = twin(worlds[2], tmp_path / "v")
    assert told(world.check(data=False)) == []
    assert world.progress.bytes == world.progress.total_bytes == 0
    assert world.progress.chunks == len(refs_of(world))
    spot, ref = any_spot(world, SEED)
    delete_stored(world, {ref.stores[1]: [ChunkKey(*spot, ref.generation)]})
    wanted = [("check_copy_is_there", "damage", *spot, ref.stores[1])]
    assert told(world.check(data=False)) == wanted
    assert left_of(world.check(data=False, repair=True)) == []
    assert told(world.check()) == []
    assert world.progress.bytes == world.progress.total_bytes > 0
