"""Full disks of stores and index, and a capacity: ENOSPC, nothing lost, and room again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.calls import opened, pattern, put, raises
from tests.mount.harness import Volume, poll

pytestmark = [
    pytest.mark.limit(150),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root"),
]
KIB, MIB = 1024, 1024 * 1024
CHUNK = 64 * KIB
Make = Callable[..., Volume]
Disk = Callable[[Path, int], None]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Mounts small file systems of their own."""
    mounted: list[Path] = []

    def make(place: Path, size: int) -> None:
        place.mkdir(mode=0o700, exist_ok=True)
        options = f"size={size},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
        mounted.append(place)

    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def small(disk: Disk, volume: Make) -> Make:
    """Volumes, unmounted before their disks are."""
    return volume


def free_bytes(one: Volume) -> int:
    info = os.statvfs(one.mnt)
    return info.f_bavail * info.f_frsize


def used_bytes(one: Volume) -> int:
    info = os.statvfs(one.mnt)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


def write_file(path: Path, data: bytes) -> None:
    """Written and closed; whichever call fails first raises."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        for start in range(0, len(data), 128 * KIB):
            part = data[start : start + 128 * KIB]
            assert os.write(fd, part) == len(part)
        os.fsync(fd)
    finally:
        os.close(fd)


def fill(one: Volume, limit: int) -> list[Path]:
    """Files of a MiB until nothing fits; those that were accepted."""
    kept: list[Path] = []
    for number in range(limit):
        path = one / f"fill{number:03}"
        try:
            write_file(path, pattern(MIB, number))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            path.unlink()
            return kept
        kept.append(path)
    raise AssertionError(f"{limit} MiB fitted")


def check_full(one: Volume, kept: list[Path], pids: list[int]) -> None:
    """What a full volume still does, and what it says; then it is emptied."""
    assert used_bytes(one) >= len(kept) * MIB
    for number, path in enumerate(kept):
        assert path.read_bytes() == pattern(MIB, number), path
    with raises(errno.ENOSPC):
        write_file(one / "more", pattern(3 * MIB))
    (one / "more").unlink()
    changed = pattern(300 * KIB, 99)
    for number in (0, 1, 2, 3, 4, 5):

        def overwrite(path: Path = kept[number]) -> bool:
            try:
                with opened(path) as fd:
                    os.pwrite(fd, changed, 70 * KIB)
                    os.fsync(fd)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return False
            return True

        poll(overwrite, 10, "a full volume can be overwritten")
        expected = bytearray(pattern(MIB, number))
        expected[70 * KIB : 370 * KIB] = changed
        assert kept[number].read_bytes() == expected
    before = free_bytes(one)
    for path in kept[10:18]:
        path.unlink()
    poll(lambda: free_bytes(one) > before + 4 * MIB, 15, f"space back: {before}, {free_bytes(one)}")
    write_file(one / "again", pattern(3 * MIB, 5))
    assert (one / "again").read_bytes() == pattern(3 * MIB, 5)
    assert one.mpifs("fsck", one.mnt).returncode == 0
    for path in kept[:10] + kept[18:]:
        path.unlink()
    poll(lambda: free_bytes(one) > (len(kept) - 8) * MIB, 15, "space of all files back")
    assert [worker["pid"] for worker in one.status()["workers"]] == pids


def test_disks_of_the_stores(disk: Disk, small: Make) -> None:
    """One worker's disk is smaller: it is full first."""
    one = small(workers=2, mkfs=("--chunk-size", str(CHUNK)), mounted=False)
    disk(one.store / "worker-1", 24 * MIB)
    disk(one.store / "worker-2", 40 * MIB)
    one.mount()
    try:
        pids = [worker["pid"] for worker in one.status()["workers"]]
        free = free_bytes(one)
        kept = fill(one, 100)
        assert 0.75 * free <= len(kept) * MIB <= free
        check_full(one, kept, pids)
        one.remount()
        assert (one / "again").read_bytes() == pattern(3 * MIB, 5)
        assert one.mpifs("fsck", one.mnt).returncode == 0
    finally:
        one.umount()


def test_capacity_and_the_index_s_disk(disk: Disk, small: Make) -> None:
    one = small(workers=2, mkfs=("--chunk-size", str(CHUNK), "--capacity", "16MiB"), mounted=False)
    aside = one.folder / "aside"
    (one.store / "index").rename(aside)
    disk(one.store / "index", 6 * MIB)
    shutil.copytree(aside, one.store / "index", dirs_exist_ok=True)
    one.mount()
    try:
        pids = [worker["pid"] for worker in one.status()["workers"]]
        assert 28 * MIB < free_bytes(one) <= 32 * MIB
        kept = fill(one, 33)
        assert len(kept) >= 26
        check_full(one, kept, pids)
        for side in ("worker-1", "worker-2"):
            size = sum(f.stat().st_blocks * 512 for f in (one.store / side).rglob("data.mdb"))
            assert size < 24 * MIB, f"{side} takes {size}"
        check_full_index(one)
        assert [worker["pid"] for worker in one.status()["workers"]] == pids
        one.remount()
        assert one.mpifs("fsck", one.mnt).returncode == 0
        assert (one / "again").read_bytes() == pattern(3 * MIB, 5)
    finally:
        one.umount()


@pytest.mark.parametrize("part", ["index", "."])
def test_a_disk_that_others_have_filled(disk: Disk, small: Make, part: str) -> None:
    """Not a page is left for the index, or for all of the volume: it is mounted, read, removed from
    and unmounted all the same."""
    one = small(workers=2, mkfs=("--chunk-size", str(CHUNK)), mounted=False)
    place, aside = one.store / part, one.folder / "aside"
    place.rename(aside)
    disk(place, 8 * MIB if part == "index" else 96 * MIB)
    shutil.copytree(aside, place, dirs_exist_ok=True)
    one.mount()
    names = [put(one / f"file{number}", pattern(3 * CHUNK, number)) for number in range(20)]
    one.umount()
    for _ in range(2):
        with open(place / "foreign", "ab", buffering=0) as file, raises(errno.ENOSPC):
            while True:
                file.write(b"x" * 4096)
        one.mount()
        for number, name in enumerate(names):
            assert name.read_bytes() == pattern(3 * CHUNK, number)
        names.pop().unlink()
        assert one.mpifs("scrub", "start", one.mnt).returncode == 0
        assert one.mpifs("fsck", one.mnt).returncode == 0
        one.umount()
        assert json.loads((one.store / "index" / "heal.json").read_text())["is_open"] is False
        assert not list(one.store.glob("*/*.new"))
    (place / "foreign").unlink()
    one.mount()
    put(one / "later", b"text")
    for number, name in enumerate(names):
        assert name.read_bytes() == pattern(3 * CHUNK, number)
    assert one.mpifs("fsck", one.mnt).returncode == 0
    one.umount()


def check_full_index(one: Volume) -> None:
    """Names with attributes until the index's disk is full."""
    names: list[Path] = []
    value = pattern(2000)
    with raises(errno.ENOSPC):
        for number in range(10_000):
            names.append(put(one / f"name{number:05}{'x' * 200}"))
            os.setxattr(names[-1], "user.a", value)
    with raises(errno.ENOSPC):
        for number in range(100):
            put(one / f"other{number}{'x' * 240}")
    assert free_bytes(one) == 0
    assert len(names) > 200
    with opened(names[0]) as fd:  # small and of an existing file, so it has its reserve
        os.write(fd, b"text")
    assert os.getxattr(names[1], "user.a") == value
    held = [os.open(path, os.O_RDONLY) for path in names[::2]]
    for path in names[::2]:
        path.unlink()
    for fd in held:  # now all of them go at once, and their rows with them
        os.close(fd)
    poll(lambda: free_bytes(one) > 8 * MIB, 15, "room on the index's disk")
    write_file(one / "later", b"text")
    for path in names[1::2]:
        path.unlink()
    assert (one / "later").read_bytes() == b"text"
