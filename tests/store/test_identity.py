"""SURVEY, and REBUILD as far as folders and superblocks go."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest

from mpifs import faultpoint
from mpifs.core.errors import FormatError, InUseError
from mpifs.core.messages import ARGS_BYTES_MAX, FolderReport, Rebuild, encode_args
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.store.folder import read_superblock, store_folder
from mpifs.store.rebuild import rebuild
from mpifs.store.survey import survey
from tests.store.damage import flip, payload_in
from tests.store.images import KIND, VOLUME, image, open_store


def uuid_of(store: int) -> bytes:
    return bytes([store]) * 16


def wanted(store: int) -> Rebuild:
    return Rebuild(store, VOLUME, uuid_of(store), 1 << 20, KIND)


def make(volume: Path, store: int, name: str = "", **other: object) -> str:
    """A store with one chunk that tells its number."""
    identity = {"store": store, "store_uuid": uuid_of(store), **other}
    opened = open_store(str(volume / (name or f"worker-{store}")), **identity)
    opened.put_many([image(ChunkKey(9, store, 1), b"x" * store)])
    opened.close()
    return opened.folder


def check_store(volume: Path, store: int) -> None:
    """The store is in its place with its chunk."""
    folder = store_folder(str(volume), store)
    opened = open_store(folder, create=False, store=store, store_uuid=uuid_of(store))
    assert payload_in(opened, ChunkKey(9, store, 1)) == b"x" * store
    opened.close()


def states(volume: Path) -> dict[str, str]:
    return {report.name: report.state for report in survey(str(volume)).folders}


def tree(volume: Path) -> dict[str, bytes]:
    """All files with their bytes, process ids in locks apart."""
    return {
        str(path.relative_to(volume)): path.read_bytes()
        for path in sorted(volume.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def test_survey(tmp_path: Path) -> None:
    for store in (1, 2, 10):
        make(tmp_path, store)
    for name in ("worker-3", "worker-4", "worker-5", "index", "worker-x", "worker-1.new"):
        (tmp_path / name).mkdir()
    (tmp_path / "worker-4" / "lock").touch()
    (tmp_path / "worker-4" / "small").mkdir()
    (tmp_path / "worker-5" / "letters").mkdir()
    (tmp_path / "worker-6").write_text("a file")
    (tmp_path / "worker-7").symlink_to(tmp_path / "nowhere")
    (tmp_path / "worker-8").symlink_to(tmp_path / "worker-3")
    (tmp_path / "worker-2" / "superblock").unlink()
    os.rename(tmp_path / "worker-10", tmp_path / "worker-9.moving")
    block = tmp_path / "worker-1" / "superblock"
    before = tree(tmp_path)
    assert states(tmp_path) == {
        "worker-1": "ok",
        "worker-2": "bare",
        "worker-3": "empty",
        "worker-4": "empty",
        "worker-5": "damaged",
        "worker-6": "damaged",
        "worker-8": "empty",
        "worker-9.moving": "ok",
    }
    reports = {report.name: report for report in survey(str(tmp_path)).folders}
    assert reports["worker-9.moving"] == FolderReport(
        "worker-9.moving", "ok", 10, VOLUME, uuid_of(10), "", 1 << 20, KIND
    )
    assert "something else" in reports["worker-5"].detail
    assert tree(tmp_path) == before
    block.write_bytes(flip(block.read_bytes(), 40))
    first = survey(str(tmp_path)).folders[0]
    assert (first.state, first.store, first.store_uuid) == ("damaged", 0, b"")
    assert "damaged" in first.detail
    shutil.copyfile(tmp_path / "worker-9.moving" / "superblock", block)
    assert survey(str(tmp_path)).folders[0].store == 10
    assert survey(str(tmp_path / "none")).folders == []


def test_a_long_survey_fits_into_a_message(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 200)
    for number in range(1, 300):
        (long / f"worker-{number}").mkdir(parents=True)
        (long / f"worker-{number}" / "superblock").touch()
    assert len(encode_args(survey(str(long)))) <= ARGS_BYTES_MAX


def test_nothing_to_do(tmp_path: Path) -> None:
    make(tmp_path, 1)
    before = tree(tmp_path)
    reply = rebuild(str(tmp_path), wanted(1))
    assert (reply.chunks, reply.done) == (0, [])
    assert tree(tmp_path) == before


@pytest.mark.parametrize("at", [0, 9, 12, 17, 35, 48, 53, 57, 58, 61, 100, 125])
def test_a_wrong_byte_of_a_superblock(tmp_path: Path, at: int) -> None:
    make(tmp_path, 3)
    path = tmp_path / "worker-3" / "superblock"
    before = path.read_bytes()
    path.write_bytes(flip(before, at, 0x50))
    assert len(rebuild(str(tmp_path), wanted(3)).done) == 1
    assert path.read_bytes() == before
    check_store(tmp_path, 3)
    assert rebuild(str(tmp_path), wanted(3)).done == []


@pytest.mark.parametrize("content", [None, b"", bytes(128), b"#" * 200, b"mpifsVOL"])
def test_a_lost_superblock(tmp_path: Path, content: bytes | None) -> None:
    make(tmp_path, 3)
    path = tmp_path / "worker-3" / "superblock"
    before = read_superblock(str(path.parent))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    (done,) = rebuild(str(tmp_path), wanted(3)).done
    assert "anew" in done
    after = read_superblock(str(path.parent))
    assert after is not None
    assert before is not None
    assert abs(after.created_s - before.created_s) < 100
    check_store(tmp_path, 3)


def test_a_superblock_that_names_another_one_is_not_written_over(tmp_path: Path) -> None:
    """Two wrong bytes: what is left of it still says whose it is."""
    for other in ({"volume_uuid": b"o" * 16}, {"store_uuid": b"o" * 16}):
        folder = Path(make(tmp_path, 3, **other))
        path = folder / "superblock"
        path.write_bytes(flip(flip(path.read_bytes(), 60), 70))
        before = tree(tmp_path)
        with pytest.raises(FormatError, match="names another"):
            rebuild(str(tmp_path), wanted(3))
        assert tree(tmp_path) == before
        shutil.rmtree(folder)


def test_chunks_that_do_not_fit_are_left_alone(tmp_path: Path) -> None:
    folder = Path(make(tmp_path, 3))
    (folder / "superblock").unlink()
    with pytest.raises(FormatError, match="do not fit"):
        rebuild(str(tmp_path), Rebuild(3, VOLUME, uuid_of(3), 1 << 20, ChecksumKind.BLAKE3))
    opened = open_store(str(tmp_path / "worker-4"), store=4)
    opened.put_many([image(ChunkKey(0, 0, 5), b"manifest of " + b"o" * 16)])
    opened.put_many([image(ChunkKey(0, 1, 5), b"piece")])
    opened.close()
    (tmp_path / "worker-4" / "superblock").unlink()
    with pytest.raises(FormatError, match="another volume"):
        rebuild(str(tmp_path), wanted(4))
    opened = open_store(str(tmp_path / "worker-5"), store=5)
    opened.put_many([image(ChunkKey(0, 0, 5), b"manifest of " + VOLUME)])
    opened.close()
    (tmp_path / "worker-5" / "superblock").unlink()
    rebuild(str(tmp_path), wanted(5))
    other = tmp_path / "worker-6"
    other.mkdir()
    (other / "thesis.txt").write_text("dear")
    with pytest.raises(FormatError, match="move away"):
        rebuild(str(tmp_path), wanted(6))
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_an_emptied_folder_becomes_a_store_and_a_missing_one_does_not(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="missing"):
        rebuild(str(tmp_path), wanted(3))
    assert states(tmp_path) == {}
    (tmp_path / "worker-4").symlink_to(tmp_path / "unmounted")
    with pytest.raises(FormatError, match="missing"):
        rebuild(str(tmp_path), wanted(4))
    for names in ((), ("lock",), ("lock", "lost+found/", "small/", "large/")):
        folder = tmp_path / "worker-3"
        folder.mkdir()
        for name in names:
            (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
        assert len(rebuild(str(tmp_path), wanted(3)).done) == 1
        opened = open_store(str(folder), create=False, store_uuid=uuid_of(3))
        assert opened.stats().chunks == 0
        opened.close()
        shutil.rmtree(folder)


def test_other_volumes_stores_are_left_alone(tmp_path: Path) -> None:
    make(tmp_path, 3, volume_uuid=b"o" * 16)
    make(tmp_path, 4, "worker-5", volume_uuid=b"o" * 16)
    path = tmp_path / "worker-5" / "superblock"
    path.write_bytes(flip(path.read_bytes(), 60))
    (tmp_path / "worker-3" / "small" / "data.mdb").write_bytes(b"")
    before = tree(tmp_path)
    for number in (3, 4, 5):
        with pytest.raises(FormatError):
            rebuild(str(tmp_path), wanted(number))
    assert tree(tmp_path) == before


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores disk-1 to disk-4."""
    folder = tmp_path_factory.mktemp("disks")
    for store in range(1, 5):
        make(folder, store, f"disk-{store}")
    return folder


def arrange(volume: Path, disks: Path, order: tuple[int, ...], links: bool) -> None:
    """worker-K holds the K-th store of the order."""
    volume.mkdir()
    for place, store in enumerate(order, 1):
        folder = volume / f"worker-{place}"
        if links:
            folder.symlink_to(volume / f"disk-{store}")
            folder = volume / f"disk-{store}"
        shutil.copytree(disks / f"disk-{store}", folder)


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts down to a death at a step of a rebuild."""
    left = [0]

    def reach(name: str) -> None:
        assert name == "store.rebuild"
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(faultpoint, "reach", reach)
    return left


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("order", [*itertools.permutations((1, 2, 3)), (2, 1, 4, 3)])
def test_exchanged_folders(
    tmp_path: Path, disks: Path, order: tuple[int, ...], links: bool, killing: list[int]
) -> None:
    """By the request for any of the stores, and whenever it is killed."""
    for asked in sorted(order):
        kill = 0
        was_killed = True
        while was_killed:
            kill += 1
            volume = tmp_path / f"{asked}-{kill}"
            arrange(volume, disks, order, links)
            killing[0] = kill
            try:
                rebuild(str(volume), wanted(asked))
                was_killed = False
            except Killed:
                folders = survey(str(volume)).folders
                assert sorted(report.store for report in folders) == sorted(order)
            killing[0] = 0
            assert bool(rebuild(str(volume), wanted(asked)).done) is was_killed
            for store in order:
                check_store(volume, store)
            assert set(states(volume)) == {f"worker-{store}" for store in order}
            shutil.rmtree(volume)


def test_one_folder_under_a_foreign_name(tmp_path: Path) -> None:
    make(tmp_path, 1)
    make(tmp_path, 3, "worker-2")
    (tmp_path / "worker-3").mkdir()
    (tmp_path / "worker-3" / "lock").touch()
    (done,) = rebuild(str(tmp_path), wanted(3)).done
    assert "renamed" in done
    check_store(tmp_path, 3)
    assert set(states(tmp_path)) == {"worker-1", "worker-3"}
    os.rename(tmp_path / "worker-3", tmp_path / "worker-7.moving")
    rebuild(str(tmp_path), wanted(1))
    check_store(tmp_path, 3)


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    make(tmp_path, 3, "worker-2")
    make(tmp_path, 3, volume_uuid=b"o" * 16)
    before = tree(tmp_path)
    with pytest.raises(FormatError, match="move worker-3 away"):
        rebuild(str(tmp_path), wanted(3))
    assert tree(tmp_path) == before
    shutil.rmtree(tmp_path / "worker-3")
    shutil.copytree(tmp_path / "worker-2", tmp_path / "worker-3")
    assert rebuild(str(tmp_path), wanted(3)).done == []  # and a copy stays where it is
    assert states(tmp_path) == {"worker-2": "ok", "worker-3": "ok"}


def test_a_store_in_use_is_left_alone(tmp_path: Path) -> None:
    folder = make(tmp_path, 3)
    opened = open_store(folder, create=False, store_uuid=uuid_of(3))
    with pytest.raises(InUseError):
        rebuild(str(tmp_path), wanted(3))
    opened.close()
    check_store(tmp_path, 3)
