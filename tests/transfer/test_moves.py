"""Files between ranks, whichever end is where: whole or not at all, and no chunk twice."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from mpifs.core.errors import MpifsError, PosixError
from mpifs.core.limits import MIB
from mpifs.core.transfer_messages import Entry
from mpifs.transfer.folder import part_name
from mpifs.transfer.mover import Mover
from mpifs.transfer.sink import LocalSink
from mpifs.transfer.tally import Tally
from tests.transfer.world import World, tree_of, write

PAIRS = [(0, 1), (1, 0), (1, 2)]
SEED = random.randrange(2**32)


def noise(size: int) -> bytes:
    print("seed", SEED)
    return random.Random(SEED + size).randbytes(size)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_tree_arrives_as_it_is(world: World, source: int, target: int) -> None:
    base = world.rank(source) / "tree"
    for size in (0, 1, 1000, 256 * 1024, 256 * 1024 + 1, MIB, 3 * MIB + 5):
        write(base / f"sub{size % 3}" / f"f{size}", noise(size))
    (base / "empty").mkdir()
    (base / "sub0" / "link").symlink_to("../empty")
    write(base / os.fsdecode(b"\xff\n"), b"odd")
    for number in range(300):
        write(base / "many" / f"f{number}", b"%d" % number)
    (base / "sub1").chmod(0o555)
    (base / "sub0" / "f0").chmod(0o4711)
    for path in [*base.rglob("*"), base]:
        os.utime(path, ns=(5, 981_173_106_123_456_789), follow_symlinks=False)
    tally = world.carry(source, target, b"tree")
    assert tally.errors == []
    assert tree_of(world.rank(target)) == tree_of(world.rank(source))
    assert (tally.files, tally.folders) == (309, 6)
    again = world.carry(source, target, b"tree")
    assert again.errors == []
    assert (again.files, again.sent) == (309, 0)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_only_missing_chunks_travel(world: World, source: int, target: int) -> None:
    content = bytearray(noise(8 * MIB + 7))
    write(world.rank(source) / "big", content)
    part = world.rank(target) / os.fsdecode(part_name(b"big"))
    half = bytearray(content[: 5 * MIB])  # as a killed receiver leaves it: a chunk half written
    half[4 * MIB + 100 :] = bytes(MIB - 100)
    write(part, half)
    tally = world.carry(source, target, b"big")
    assert tally.errors == []
    assert (tally.chunks, tally.sent) == (9, 5)
    assert (world.rank(target) / "big").read_bytes() == content
    assert not part.exists()


def test_a_damaged_partial_file_is_mended(world: World) -> None:
    content = noise(4 * MIB)
    write(world.rank(0) / "big", content)
    write(world.rank(1) / os.fsdecode(part_name(b"big")), noise(6 * MIB)[2 * MIB :] + b"tail")
    assert world.carry(0, 1, b"big").sent == 4
    assert (world.rank(1) / "big").read_bytes() == content


def test_holes_stay_holes_and_do_not_travel(world: World) -> None:
    path = world.rank(1) / "sparse"
    with open(path, "wb") as file:
        file.truncate(5 * 2**30)  # over 4 GiB
        file.seek(4500 * MIB)
        file.write(b"data")
        file.seek(5 * 2**30 - 3)
        file.write(b"end")
    tally = world.carry(1, 2, b"sparse")
    found = world.rank(2) / "sparse"
    assert tally.errors == []
    assert tally.sent == 2
    assert found.stat().st_size == 5 * 2**30
    assert found.stat().st_blocks * 512 < MIB
    with open(found, "rb") as file:
        file.seek(4500 * MIB - 1)
        assert file.read(6) == b"\0data\0"
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"\0end"


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_a_source_that_changes_gets_no_name(world: World, size: int) -> None:
    path = world.rank(0) / "file"
    write(path, noise(size))
    source, changed = world.carrier.source(0), []

    class Changing:
        def __getattr__(self, name: str) -> object:
            return getattr(source, name)

        def read(self, entry: Entry, offset: int, length: int) -> object:
            if offset == 2 * MIB and not changed:
                changed.append(1)
                with open(path, "r+b") as file:
                    file.write(b"changed")
            return source.read(entry, offset, length)

        def take(self, entries: list[Entry]) -> object:
            path.write_bytes(b"changed")
            return source.take(entries)

    tally = Tally()
    Mover(Changing(), world.carrier.sink(1), b"", tally).move([b"file"])  # type: ignore[arg-type]
    assert "changed while it was sent" in tally.errors[0][1]
    assert not (world.rank(1) / "file").exists()
    assert world.carry(0, 1, b"file").errors == []
    assert (world.rank(1) / "file").read_bytes() == path.read_bytes()


def test_bytes_damaged_at_the_receiver_get_no_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(world.rank(0) / "file", noise(3 * MIB))
    from mpifs.transfer import receiving

    true_write = receiving.write_at

    def write_wrong(descriptor: int, offset: int, data: bytes, **how: bool) -> None:
        true_write(descriptor, offset, bytes(data)[:-1] + b"?", **how)

    monkeypatch.setattr(receiving, "write_at", write_wrong)
    tally = world.carry(0, 1, b"file")
    assert "not on the disk as it was sent" in tally.errors[0][1]
    assert not (world.rank(1) / "file").exists()


def test_what_cannot_be_moved_is_told_and_the_rest_goes_on(world: World, tmp_path: Path) -> None:
    base = world.rank(1) / "t"
    write(base / "good", b"good")
    os.mkfifo(base / "fifo")
    (base / "out").symlink_to(tmp_path)
    write(world.rank(2) / "t" / "taken" / "x", b"")
    write(base / "taken", b"a folder has the name there")
    tally = world.carry(1, 2, b"t", b"nothing", b"../rank-0")
    assert sorted(name for name, _ in tally.errors) == [
        b"../rank-0", b"nothing", b"t/fifo", b"t/out", b"t/taken",
    ]  # fmt: skip
    assert (world.rank(2) / "t" / "good").read_bytes() == b"good"
    assert (world.rank(2) / "t" / "taken" / "x").exists()
    assert tally.files == 1


def test_a_full_disk_ends_a_transfer_and_keeps_what_has_come(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(world.rank(0) / "d" / "big", noise(6 * MIB))
    write(world.rank(0) / "d" / "small", b"x")
    from mpifs import faultpoint

    for name, value in (("_wanted", "transfer.write"), ("_times", 4), ("_action", "full")):
        monkeypatch.setattr(faultpoint, name, value)
    tally = world.carry(0, 1, b"d")
    assert tally.error_count == 2  # the file, and that the rest was not sent
    assert "No space left" in tally.errors[0][1]
    assert not (world.rank(1) / "d" / "big").exists()
    monkeypatch.setattr(faultpoint, "_wanted", "")
    again = world.carry(0, 1, b"d")
    assert again.errors == []
    assert 0 < again.sent <= 3 + 1  # three chunks of six were there, or one that came late


def test_two_transfers_to_one_name_do_not_mix(world: World) -> None:
    write(world.rank(0) / "f", noise(2 * MIB))
    sink = LocalSink(world.carrier.folder)
    entry = Entry(b"f2", 1, 2 * MIB, 0o600, 0, 0)
    first, second = (sink.begin(entry, MIB, b"s" * 16).number for _ in range(2))
    sink.have(first, 0, b"a" * 32, of_file=False)
    with pytest.raises(PosixError) as found:
        sink.have(second, 0, b"a" * 32, of_file=False)
    assert found.value.errno == errno.EBUSY
    with pytest.raises(MpifsError):
        sink.finish(first)
    sink.abandon(first)
    sink.have(second, 0, b"a" * 32, of_file=False)
    sink.close()
    assert (world.rank(0) / ".mpifs-f2.part").exists()


def test_a_cancelled_pull_is_not_begun(world: World) -> None:
    write(world.rank(1) / "big", noise(4 * MIB))
    tally = Tally()
    tally.cancel()
    world.carrier.carry(1, 2, [b"big"], b"", tally)
    assert "interrupted" in tally.errors[0][1]
    assert list(world.rank(2).iterdir()) == []
