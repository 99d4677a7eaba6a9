"""Workers that do not see the other file system: rank 0 reads and writes for them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.errors import PosixError
from mpifs.core.image import decode_header
from mpifs.core.types import Caller, ChunkKey
from mpifs.job.stage_in import StageIn
from mpifs.job.stage_out import StageOut
from mpifs.job.stage_run import Pair, StageRun
from mpifs.store import stage
from mpifs.store.stage_out import UNSEEN
from tests.vfs.loopback import FixedStores, LoopbackVolume

CHUNK = 64 * 1024
ME = Caller(os.getuid(), os.getgid())


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LoopbackVolume]:
    """Three workers that stage, two copies."""
    made = LoopbackVolume(tmp_path / "volume", workers=3, chunk_size=CHUNK, replicas=2)
    made.open()
    yield made
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    for n in range(40):
        (top / "sub" / f"f{n}").write_bytes(os.urandom(n * 5000))
    (top / "sparse").write_bytes(b"begin")
    os.truncate(top / "sparse", 20 * CHUNK)
    return top


def run_in(volume: LoopbackVolume, source: Path) -> StageRun:
    assert volume.vfs is not None
    run = StageRun()
    run.pairs = [Pair(os.fsencode(source), b"/tree")]
    stores = FixedStores(volume.workers, {}, {})
    StageIn(volume.vfs, volume.client, stores, run, ME, set(), settle=lambda: None).run_all()
    return run


def run_out(volume: LoopbackVolume, target: Path) -> StageRun:
    assert volume.vfs is not None
    run = StageRun()
    run.pairs = [Pair(b"/tree", os.fsencode(target))]
    stores = FixedStores(volume.workers, {}, {})
    StageOut(volume.vfs, volume.client, stores, run, ME).run_all()
    return run


def content(top: Path) -> dict[str, bytes]:
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def blind(patch: pytest.MonkeyPatch, names: tuple[str, ...]) -> set[str]:
    """The staging threads of a worker with such a name see no other file system; who was asked."""
    asked: set[str] = set()
    read, write = stage.PartReader.read, stage.carry_out

    def is_blind() -> bool:
        name = threading.current_thread().name
        asked.add(name)
        return name.startswith(names)

    def blind_read(reader: stage.PartReader, item: stage.StagePart) -> stage.Image:
        if is_blind():
            raise FileNotFoundError(2, "No such file or directory")
        return read(reader, item)

    def blind_write(*words: object) -> object:
        if is_blind():
            raise PosixError(UNSEEN, "this host has another file system there")
        return write(*words)  # type: ignore[arg-type]

    patch.setattr(stage.PartReader, "read", blind_read)
    patch.setattr(stage, "carry_out", blind_write)
    return asked


@pytest.mark.parametrize("names", [("stage-1",), ("stage-",)], ids=["one thread", "all"])
def test_rank_0_stages_for_the_blind(
    names: tuple[str, ...],
    volume: LoopbackVolume,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = blind(monkeypatch, names)
    run = run_in(volume, tree)
    assert (run.files, run.failed) == (41, 0), run.poll(0)
    assert run.helped > 0
    out = run_out(volume, tmp_path / "out")
    assert (out.files, out.failed) == (41, 0), out.poll(0)
    assert out.helped > 0 or names != ("stage-",)
    assert content(tmp_path / "out") == content(tree)
    assert asked


def test_a_source_that_is_gone_is_a_failure(
    volume: LoopbackVolume, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOENT from a worker is believed only if rank 0 does not find the file either."""
    read = stage.PartReader.read

    def late(reader: stage.PartReader, item: stage.StagePart) -> stage.Image:
        (tree / "sub" / "f7").unlink(missing_ok=True)
        return read(reader, item)

    monkeypatch.setattr(stage.PartReader, "read", late)
    run = run_in(volume, tree)
    assert (run.files, run.failed, run.helped) == (40, 1, 0)
    assert [path for path, _ in run.poll(0)["failures"]] == [os.fsencode(tree / "sub" / "f7")]


def test_nothing_of_a_failed_file_stays(
    volume: LoopbackVolume, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a file that could not be staged are garbage, and are deleted."""
    read = stage.PartReader.read

    def failing(reader: stage.PartReader, item: stage.StagePart) -> stage.Image:
        if item.name == b"f39" and item.chunk == 2:
            raise OSError(5, "Input/output error")
        return read(reader, item)

    monkeypatch.setattr(stage.PartReader, "read", failing)
    run = run_in(volume, tree)
    assert (run.files, run.failed) == (40, 1)
    assert volume.vfs is not None
    committer = volume.vfs.committer
    committer.commit()
    while committer.clean_up():
        committer.commit()
    wanted = {(key.inode, key.chunk) for key in _stored(volume)}
    named = {
        (ino, chunk) for ino in {ino for ino, _ in wanted} for chunk, _ in volume.index.refs(ino)
    }
    assert wanted == named


def _stored(volume: LoopbackVolume) -> list[ChunkKey]:
    keys = []
    for service in volume.services.values():
        assert service.store is not None
        keys += [decode_header(head).key for head in service.store.headers(b"", 10_000)]
    return keys
