"""Checks of a volume that is being written: what changes meanwhile is no finding, damage is one."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpifs.core.checksum import function_of
from mpifs.core.errors import PosixError
from mpifs.core.image import IMAGE_HEADER_BYTES, encode_header_into
from mpifs.core.kinds import Kind
from mpifs.core.types import Caller, ChecksumKind, ChunkKey
from mpifs.job.assembly import VfsOptions
from mpifs.repair.check_chunks import check_chunks
from mpifs.repair.check_index import INDEX_CHECKS
from mpifs.repair.findings import Finding, Progress
from mpifs.repair.run import run
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume_live import LiveVolume
from mpifs.vfs.facade import Vfs
from tests.repair.chunk_world import ChunkWorld, told
from tests.vfs.loopback import LoopbackVolume

ME = Caller(0, 0)
CHUNK = 16 * 1024
SEED = int(os.environ.get("MPIFS_TEST_SEED", "0")) or random.randrange(1 << 30)


class Writer:
    """Writes, rewrites, truncates and removes files until it is told to stop."""

    def __init__(self, vfs: Vfs, seed: int) -> None:
        self._vfs = vfs
        self._chance = random.Random(seed)
        self._stop = threading.Event()
        self.steps = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._step()
                self.steps += 1
        except BaseException as error:  # noqa: BLE001 - told by the test's thread
            self.error = error

    def _step(self) -> None:
        vfs, chance = self._vfs, self._chance
        path = b"/f%d" % chance.randrange(12)
        try:
            what = chance.randrange(10)
            if what == 0:
                vfs.unlink(path)
            elif what == 1:
                vfs.truncate(path, chance.randrange(6 * CHUNK))
            elif what == 2:
                vfs.rename(path, b"/f%d" % chance.randrange(12))
            else:
                self._write(path)
        except OSError as error:
            if not isinstance(error, PosixError):
                raise

    def _write(self, path: bytes) -> None:
        vfs, chance = self._vfs, self._chance
        if vfs.index.lookup(1, path[1:]):
            fh = vfs.open(path, os.O_RDWR)
        else:
            fh = vfs.create(path, 0o644, os.O_RDWR, ME)
        content = chance.randbytes(chance.choice((10, CHUNK, 3 * CHUNK + 7)))
        vfs.write(fh, memoryview(content), chance.randrange(4 * CHUNK))
        if chance.random() < 0.3:
            vfs.fsync(fh)
        vfs.release(fh)


@contextmanager
def mounted(
    folder: Path, replicas: int, **options: float
) -> Iterator[tuple[LoopbackVolume, LiveVolume, StoreAccess]]:
    volume = LoopbackVolume(folder, workers=3, chunk_size=CHUNK, replicas=replicas)
    vfs = volume.open(VfsOptions(commit_interval_s=options.get("commit_interval_s", 0.01)))
    view = LiveVolume(vfs.index, vfs.committer.settle)
    kind = vfs.index.geometry.checksum
    try:
        yield volume, view, StoreAccess(volume.client, int, {1, 2, 3}, kind)
    finally:
        if volume.vfs is not None:
            volume.close()


def check(view: LiveVolume, stores: StoreAccess, *, repair: bool = False) -> list[Finding]:
    found: list[Finding] = []
    run(
        view,
        stores,
        INDEX_CHECKS,
        lambda: iter(()),
        data=True,
        repair=repair,
        adopt=False,
        progress=Progress(),
        report=found.append,
    )
    return found


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("interval_s", [0.002, 0.2])
def test_a_check_during_writing_finds_nothing(
    tmp_path: Path, replicas: int, interval_s: float
) -> None:
    print("seed", SEED)
    with mounted(tmp_path / "v", replicas, commit_interval_s=interval_s) as (volume, view, stores):
        assert volume.vfs is not None
        with Writer(volume.vfs, SEED) as writer:
            until = time.monotonic() + 4
            rounds = 0
            while time.monotonic() < until and writer.error is None:
                repair = rounds % 3 == 2
                assert told(check(view, stores, repair=repair)) == []
                rounds += 1
        assert rounds > 3
        assert writer.steps > 100
        assert told(check(view, stores)) == []
    world = ChunkWorld.of(volume)
    assert told(world.check()) == []


def make_file(vfs: Vfs, path: bytes, content: bytes) -> int:
    fh = vfs.create(path, 0o644, os.O_RDWR, ME)
    vfs.write(fh, memoryview(content), 0)
    vfs.fsync(fh)
    vfs.release(fh)
    return vfs.getattr(path).ino


def put_image(volume: LoopbackVolume, store: int, key: ChunkKey, payload: bytes) -> None:
    image = bytearray(IMAGE_HEADER_BYTES + len(payload))
    kind = ChecksumKind.XXH3_128
    encode_header_into(image, 0, kind, key, len(payload), function_of(kind)(payload))
    image[IMAGE_HEADER_BYTES:] = payload
    volume.client.call(store, Kind.PUT, body=bytes(image), items=1)


@pytest.mark.parametrize("replicas", [1, 2])
def test_damage_is_found_and_repaired_during_writing(tmp_path: Path, replicas: int) -> None:
    """A missing copy, an orphan and a duplicate among files that change all the time."""
    print("seed", SEED)
    with mounted(tmp_path / "v", replicas) as (volume, view, stores):
        vfs = volume.vfs
        assert vfs is not None
        content = random.Random(SEED).randbytes(5 * CHUNK)
        ino = make_file(vfs, b"/still", content)
        refs = dict(vfs.index.refs(ino))
        lost, other = refs[1], refs[3]
        stores.delete({lost.stores[0]: [ChunkKey(ino, 1, lost.generation)]})
        orphan = ChunkKey(ino, 2, vfs.index.next_generation())
        put_image(volume, 2, orphan, b"nobody's")
        spare = next(store for store in (1, 2, 3) if store not in other.stores)
        put_image(volume, spare, ChunkKey(ino, 3, other.generation), content[3 * CHUNK : 4 * CHUNK])
        severity = "lost" if replicas == 1 else "damage"
        missing = ("check_copy_is_there", severity, ino, 1, lost.stores[0])
        wanted = [
            missing,
            ("check_every_chunk_is_known", "leftover", ino, 2, 2),
            ("check_no_store_holds_a_copy_too_many", "leftover", ino, 3, spare),
        ]
        with Writer(vfs, SEED):
            time.sleep(0.2)
            assert told(check(view, stores)) == sorted(wanted, key=repr)
            repaired = check(view, stores, repair=True)
            assert told(repaired) == sorted(wanted, key=repr)
            left = [finding for finding in repaired if not finding.repaired]
            assert told(left) == ([missing] if replicas == 1 else [])
            assert told(check(view, stores)) == told(left)


def test_a_chunk_that_is_rewritten_while_it_is_healed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between fetching the good copy and putting it, the file is written again and committed."""
    with mounted(tmp_path / "v", 2) as (volume, view, stores):
        vfs = volume.vfs
        assert vfs is not None
        ino = make_file(vfs, b"/hot", b"old" * 5000)
        ref = dict(vfs.index.refs(ino))[0]
        stores.delete({ref.stores[0]: [ChunkKey(ino, 0, ref.generation)]})
        stores.can_talk = lambda source, target: False  # so that it passes through here
        put = StoreAccess.put

        def late(self: StoreAccess, images: list[tuple[int, bytearray]]) -> list[object]:
            fh = vfs.open(b"/hot", os.O_RDWR)
            vfs.write(fh, memoryview(b"new" * 5000), 0)
            vfs.fsync(fh)
            vfs.release(fh)
            vfs.committer.commit()
            vfs.committer.clean_up()
            monkeypatch.setattr(StoreAccess, "put", put)
            return list(put(self, images))

        monkeypatch.setattr(StoreAccess, "put", late)
        found = check(view, stores, repair=True)
        assert [finding.check for finding in found] == []  # what was wrong is gone with the chunk
        assert told(check(view, stores)) == []
        vfs.committer.sync()
        while vfs.committer.clean_up():
            vfs.committer.commit()
    assert told(ChunkWorld.of(volume).check()) == []


def test_a_slow_check_goes_on_where_it_was(tmp_path: Path) -> None:
    """`start` and `on_position`: pieces of a check cover everything once."""
    with mounted(tmp_path / "v", 1) as (volume, view, stores):
        vfs = volume.vfs
        assert vfs is not None
        inos = [make_file(vfs, b"/f%d" % n, os.urandom(2 * CHUNK)) for n in range(40)]
        gone = {}
        for ino in inos[::7]:
            ref = dict(vfs.index.refs(ino))[1]
            stores.delete({ref.stores[0]: [ChunkKey(ino, 1, ref.generation)]})
            gone[ino] = ref.stores[0]

        class Over(Exception):
            pass

        found: list[Finding] = []
        start = b""
        paid: list[int] = []
        for _ in range(200):
            positions: list[bytes] = []

            def note(key: bytes, positions: list[bytes] = positions, start: bytes = start) -> None:
                positions.append(key)
                if key > start:
                    raise Over

            try:
                found += check_chunks(
                    view,
                    stores,
                    data=True,
                    progress=Progress(),
                    start=start,
                    pace=paid.append,
                    on_position=note,
                )
            except Over:
                assert positions[-1] > start
                start = positions[-1]
                continue
            break
        assert {(f.inode, f.worker) for f in found} == set(gone.items())
        assert sum(paid) >= 40 * 2 * CHUNK - len(gone) * CHUNK


@pytest.mark.parametrize("number", range(4))
def test_a_crash_leaves_only_leftovers(tmp_path: Path, number: int) -> None:
    """What a kill of all ranks leaves is found, costs nothing, and goes by a repair."""
    print("seed", SEED)
    volume = LoopbackVolume(tmp_path / "v", workers=3, chunk_size=CHUNK, replicas=1 + number % 2)
    vfs = volume.open(VfsOptions(commit_interval_s=0.02))
    content = random.Random(SEED).randbytes(5 * CHUNK)
    make_file(vfs, b"/still", content)
    with Writer(vfs, SEED + number):
        time.sleep(0.5 + number / 7)
    put_image(volume, 2, ChunkKey(77, 0, vfs.index.next_generation()), b"in flight")
    volume.crash()
    world = ChunkWorld.of(volume)
    world.contents = {b"/still": content}
    found = world.check()
    assert {f.severity for f in found} <= {"leftover", "error"}, told(found)
    assert {f.check for f in found if f.severity == "error"} <= {"check_refs_follow_the_size"}
    assert any(f.inode == 77 for f in found)
    assert [f for f in world.check(repair=True) if not f.repaired] == []
    assert told(world.check()) == []
    assert world.wrong_bytes() == []
