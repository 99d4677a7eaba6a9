"""What DESIGN section 5 promises, over the loopback transport (the mount suites show it for real)."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from mpifs.core.errors import PeerDeadError
from mpifs.core.types import Caller
from mpifs.data.scatter import Outgoing
from mpifs.index.batch import Batch
from mpifs.job.assembly import VfsOptions
from mpifs.vfs.facade import Vfs
from tests.vfs.loopback import LoopbackVolume

ME = Caller(0, 0)
CHUNK = 64 * 1024


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LoopbackVolume]:
    made = LoopbackVolume(tmp_path / "volume", workers=3, chunk_size=CHUNK)
    yield made
    if made.vfs is not None:
        made.close()


def put(vfs: Vfs, path: bytes, content: bytes, sync: bool = False) -> None:
    if vfs.index.lookup(1, path[1:]):
        fh = vfs.open(path, os.O_WRONLY | os.O_TRUNC)
    else:
        fh = vfs.create(path, 0o644, os.O_WRONLY, ME)
    vfs.write(fh, memoryview(content), 0)
    if sync:
        vfs.fsync(fh)
    vfs.flush(fh)
    vfs.release(fh)


def get(vfs: Vfs, path: bytes) -> bytes:
    fh = vfs.open(path, os.O_RDONLY)
    into = bytearray(vfs.getattr(path).size)
    assert vfs.read(fh, memoryview(into), 0) == len(into)
    vfs.release(fh)
    return bytes(into)


OLD = b"old" * 50_000
NEW = b"newer" * 60_000


def test_rename_over_is_whole_without_fsync(volume: LoopbackVolume) -> None:
    """Whatever commit comes first after the rename, the name shows all of the new file."""
    vfs = volume.open()
    put(vfs, b"/name", OLD, sync=True)
    put(vfs, b"/temporary", NEW)
    vfs.rename(b"/temporary", b"/name")
    vfs.committer.commit()
    volume.crash()
    vfs = volume.open()
    assert get(vfs, b"/name") == NEW
    with pytest.raises(OSError, match="No such file"):
        vfs.getattr(b"/temporary")


def test_an_open_file_outlives_its_replacement(volume: LoopbackVolume) -> None:
    vfs = volume.open()
    put(vfs, b"/name", OLD, sync=True)
    put(vfs, b"/temporary", NEW)
    fh = vfs.open(b"/name", os.O_RDONLY)
    vfs.rename(b"/temporary", b"/name")
    into = bytearray(len(OLD))
    assert vfs.read(fh, memoryview(into), 0) == len(OLD)
    assert bytes(into) == OLD
    vfs.committer.commit()
    volume.crash()
    vfs = volume.open()
    assert get(vfs, b"/name") == NEW


def test_closed_file_survives_after_the_commit_interval(volume: LoopbackVolume) -> None:
    vfs = volume.open()
    put(vfs, b"/closed", NEW)
    time.sleep(0.6)
    volume.crash()
    assert get(volume.open(), b"/closed") == NEW


def test_fsynced_file_survives_at_once(volume: LoopbackVolume) -> None:
    vfs = volume.open()
    fh = vfs.create(b"/synced", 0o600, os.O_WRONLY, ME)
    vfs.write(fh, memoryview(NEW), 123)
    vfs.fsync(fh)
    volume.crash()
    assert get(volume.open(), b"/synced") == bytes(123) + NEW


def test_growing_file_never_shows_a_gap_after_a_crash(volume: LoopbackVolume) -> None:
    """Every prefix that a commit shows is what was written, however the chunks overtook."""
    vfs = volume.open()
    fh = vfs.create(b"/log", 0o600, os.O_WRONLY, ME)
    piece = bytes(range(1, 256)) * 100
    for n in range(40):
        vfs.write(fh, memoryview(piece), n * len(piece))
        if n % 7 == 3:
            vfs.committer.commit()
    vfs.committer.commit()
    volume.crash()
    found = get(volume.open(), b"/log")
    assert found == (piece * 40)[: len(found)]


def sealing_after(vfs: Vfs, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Batch | None]:
    """A commit tries to take what there is right after each call of a method of the index; as a
    committer has it, from another thread."""
    real = getattr(vfs.index, name)
    sealed: list[Batch | None] = []

    def call(*words: object, **more: object) -> object:
        result = real(*words, **more)
        if not sealed:
            thread = threading.Thread(target=lambda: sealed.append(vfs.index.seal()))
            thread.start()
            thread.join(0.3)  # it may have to wait for the one who is at it
        return result

    monkeypatch.setattr(vfs.index, name, call)
    return sealed


def first_of(sealed: list[Batch | None]) -> Batch | None:
    deadline = time.monotonic() + 10
    while not sealed and time.monotonic() < deadline:
        time.sleep(0.01)
    return sealed[0]


def test_a_commit_has_refs_with_the_size_that_they_make(
    volume: LoopbackVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    vfs = volume.open(VfsOptions(commit_interval_s=30.0))
    fh = vfs.create(b"/log", 0o600, os.O_WRONLY, ME)
    vfs.write(fh, memoryview(bytes(CHUNK)), 0)
    vfs.fsync(fh)
    sealed = sealing_after(vfs, "set_refs", monkeypatch)
    vfs.write(fh, memoryview(bytes(CHUNK)), CHUNK)
    batch = first_of(sealed)
    assert batch is not None
    vfs.index.commit(batch)
    volume.crash()
    index = volume.open().index
    inode = index.inode(index.lookup(1, b"log"))
    assert inode.size == CHUNK * len(index.refs(inode.ino))


def test_a_commit_has_a_truncated_file_whole(
    volume: LoopbackVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the old size with zeros in it."""
    vfs = volume.open(VfsOptions(commit_interval_s=30.0))
    put(vfs, b"/file", OLD, sync=True)
    sealed = sealing_after(vfs, "drop_refs", monkeypatch)
    fh = vfs.open(b"/file", os.O_WRONLY)
    vfs.truncate(b"/file", 100, fh)
    batch = first_of(sealed)
    assert batch is not None
    vfs.index.commit(batch)
    volume.crash()
    assert get(volume.open(), b"/file") == OLD[:100]


def test_old_chunks_go_when_nothing_names_them(volume: LoopbackVolume) -> None:
    vfs = volume.open()
    for _ in range(4):
        put(vfs, b"/again", os.urandom(3 * CHUNK), sync=True)
    put(vfs, b"/gone", os.urandom(5 * CHUNK), sync=True)
    vfs.unlink(b"/gone")
    volume.close()
    keys = []
    for store in range(1, 4):
        with lmdb.open(str(volume.folder / f"worker-{store}" / "large"), max_dbs=8) as env:
            chunks = env.open_db(b"chunks", create=False)
            with env.begin(chunks) as transaction:
                keys += list(transaction.cursor().iternext(values=False))
    assert len(keys) == 3


def damage(volume: LoopbackVolume, store: int, content: bytes) -> None:
    """Flips one bit of a payload in a store's file."""
    path = volume.folder / f"worker-{store}" / "large" / "data.mdb"
    data = bytearray(path.read_bytes())
    at = data.find(content)
    assert at >= 0
    data[at + 100] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_flipped_bit_is_never_handed_out(
    tmp_path: Path, replicas: int, caplog: pytest.LogCaptureFixture
) -> None:
    volume = LoopbackVolume(tmp_path / "volume", workers=3, chunk_size=CHUNK, replicas=replicas)
    vfs = volume.open()
    content = os.urandom(CHUNK)
    put(vfs, b"/hurt", content, sync=True)
    put(vfs, b"/sound", content[::-1], sync=True)
    workers = vfs.layout(b"/hurt")["chunks"][0]["workers"]  # type: ignore[index]
    assert len(workers) == replicas
    volume.close()
    damage(volume, workers[0], content)
    vfs = volume.open()
    for _ in range(20):  # the copy that is asked first is drawn by chance
        vfs.reader.cache.forget(vfs.getattr(b"/hurt").ino)
        if replicas == 2:
            assert get(vfs, b"/hurt") == content
        else:
            with pytest.raises(OSError) as failure:
                get(vfs, b"/hurt")
            assert failure.value.errno == errno.EIO
    assert get(vfs, b"/sound") == content[::-1]
    assert f"/hurt: chunk 0 (generation 1) on worker {workers[0]}" in caplog.text
    volume.close()


def test_sparse_and_truncated_parts_read_as_zeros(volume: LoopbackVolume) -> None:
    vfs = volume.open()
    put(vfs, b"/f", b"x" * (2 * CHUNK + 100), sync=True)
    vfs.truncate(b"/f", CHUNK + 10)
    vfs.truncate(b"/f", 3 * CHUNK)
    assert get(vfs, b"/f") == b"x" * (CHUNK + 10) + bytes(2 * CHUNK - 10)
    volume.close()
    vfs = volume.open()
    assert get(vfs, b"/f") == b"x" * (CHUNK + 10) + bytes(2 * CHUNK - 10)


def test_errors_of_background_writes_come_once(volume: LoopbackVolume) -> None:
    """A store that refuses: the error comes with close, the file keeps its last durable state."""
    vfs = volume.open()
    put(vfs, b"/f", OLD, sync=True)
    fh = vfs.open(b"/f", os.O_WRONLY)
    gather = vfs.writeback._scatter
    rank_of, gather._rank_of = (
        gather._rank_of,
        lambda store: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")),
    )
    vfs.write(fh, memoryview(NEW), 0)
    with pytest.raises(OSError) as failure:
        vfs.fsync(fh)
    assert failure.value.errno == errno.ENOSPC
    gather._rank_of = rank_of
    vfs.fsync(fh)
    vfs.flush(fh)
    vfs.release(fh)
    assert get(vfs, b"/f") == OLD


def test_a_rename_during_the_flush_of_the_barrier_is_behind_it_again(
    volume: LoopbackVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is written and renamed over another once more while a commit waits for its data."""
    vfs = volume.open(VfsOptions(commit_interval_s=60.0))  # nothing commits but this test
    for name in (b"/one", b"/two"):
        put(vfs, name, OLD, sync=True)
    put(vfs, b"/temporary", NEW)
    vfs.rename(b"/temporary", b"/one")
    wait = vfs.writeback.wait
    later: list[int] = []

    def interrupted(data: object) -> None:
        wait(data)  # type: ignore[arg-type]
        if not later:
            later.append(1)
            put(vfs, b"/one", NEW[::-1])
            vfs.rename(b"/one", b"/two")

    monkeypatch.setattr(vfs.writeback, "wait", interrupted)
    vfs.committer.commit()
    volume.crash()
    vfs = volume.open()
    assert get(vfs, b"/two") in (OLD, NEW[::-1])


def test_a_hole_punched_into_unwritten_data_keeps_the_size(volume: LoopbackVolume) -> None:
    """The only dirty chunk becomes a hole: the size is durable all the same, and nothing is left
    to flush (a file that stayed on the list would keep the committer ticking for ever)."""
    vfs = volume.open()
    fh = vfs.create(b"/holed", 0o600, os.O_WRONLY, ME)
    vfs.write(fh, memoryview(NEW[: CHUNK - 7]), 0)
    vfs.fallocate(fh, 3, 0, CHUNK)
    assert not vfs.writeback.files
    vfs.fsync(fh)
    volume.crash()
    vfs = volume.open()
    assert get(vfs, b"/holed") == bytes(CHUNK - 7)


def test_what_was_truncated_away_is_no_error_when_its_worker_dies(
    volume: LoopbackVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk on its way that has become void needs no store any more."""
    vfs = volume.open()
    held: list[list[Outgoing]] = []
    submit = vfs.writeback._scatter.submit_many
    fh = vfs.create(b"/file", 0o644, os.O_WRONLY, ME)
    with monkeypatch.context() as patch:
        patch.setattr(vfs.writeback._scatter, "submit_many", held.append)
        vfs.write(fh, memoryview(bytes(2 * CHUNK)), 0)
    vfs.truncate(b"/file", 0, fh)
    for item in (item for items in held for item in items):
        item.done(item, PeerDeadError(1, "its process has died"))
    vfs.fsync(fh)
    vfs.flush(fh)
    vfs.release(fh)
    assert vfs.getattr(b"/file").size == 0
    assert submit == vfs.writeback._scatter.submit_many


def test_a_full_index_takes_what_files_had_room_for(volume: LoopbackVolume) -> None:
    """No new name fits, but a file may still get its first chunk and change the last one."""
    vfs = volume.open()
    put(vfs, b"/empty", b"", sync=True)
    put(vfs, b"/one", b"1" * CHUNK, sync=True)
    room = vfs.index.room
    room._free = lambda: room.reserve_bytes + 100
    room._left = 100
    with pytest.raises(OSError, match="full"):
        vfs.create(b"/more", 0o644, os.O_WRONLY, ME)
    put(vfs, b"/empty", NEW[:1000], sync=True)
    fh = vfs.open(b"/one", os.O_WRONLY)
    with pytest.raises(OSError, match="full"):
        vfs.write(fh, memoryview(b"2"), CHUNK)
    vfs.write(fh, memoryview(b"2"), CHUNK - 1)
    vfs.release(fh)
    assert get(vfs, b"/empty") == NEW[:1000]
    assert get(vfs, b"/one") == b"1" * (CHUNK - 1) + b"2"


def test_a_node_stays_until_the_kernel_has_let_go_of_it(volume: LoopbackVolume) -> None:
    """A removed file without a handle, as O_PATH holds one: its bytes, also those not stored yet."""
    vfs = volume.open()
    put(vfs, b"/name", OLD)
    ino = vfs.getattr(b"/name").ino
    nodes = vfs.nodes
    nodes.unlink(1, b"name")
    vfs.sync()
    assert nodes.getattr(ino).nlink == 0
    fh, _ = nodes.open(ino, os.O_RDWR)
    into = bytearray(len(OLD))
    assert nodes.read(fh, memoryview(into), 0) == len(OLD)
    assert bytes(into) == OLD
    nodes.release(fh)
    nodes.forget(ino)
    vfs.sync()
    while vfs.committer.clean_up():
        vfs.committer.commit()
    with pytest.raises(OSError) as caught:
        nodes.getattr(ino)
    assert caught.value.errno == errno.ESTALE
    assert vfs.index.counters().files == 0


@pytest.mark.parametrize("how", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes_past_the_page_cache_are_durable(
    volume: LoopbackVolume, how: int
) -> None:
    """The kernel asks for no fsync after them."""
    nodes = volume.open().nodes
    nodes.use_direct_writers()
    _, fh, is_direct = nodes.create(1, b"file", 0o644, os.O_WRONLY | how, ME)
    assert is_direct
    nodes.write(fh, memoryview(NEW), 0)
    volume.crash()
    assert get(volume.open(), b"/file") == NEW
