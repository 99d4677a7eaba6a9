"""Scatter and gather, and patterns."""

from __future__ import annotations

import os

import pytest

from mpifs.core.errors import DamageError, PosixError
from mpifs.core.limits import KIB
from mpifs.core.transfer_messages import Entry
from mpifs.transfer.dealing import DealtSource, chunk_path, deal, plan, read_manifest
from mpifs.transfer.long_file import move_long
from mpifs.transfer.pattern import matching
from mpifs.transfer.tally import Tally
from tests.transfer.test_moves import noise
from tests.transfer.world import World, write

CHUNK = 4 * KIB


def scatter(world: World, name: bytes) -> list[list[int]]:
    """The chunks that were sent to each of the two workers."""
    source, told = world.carrier.source(0), []
    manifest = plan(source, name, CHUNK, [1, 2], Tally())
    for rank in (1, 2):
        stored: list[int] = []
        deal(source, manifest, rank, world.carrier.sink(rank), Tally(), stored.append)
        told.append(stored)
    return told


def gather(world: World, name: bytes, to: bytes) -> Tally:
    manifest = read_manifest(world.carrier.source(2), name)
    assert manifest is not None
    dealt = DealtSource(manifest, {rank: world.carrier.source(rank) for rank in (1, 2)})
    entry, tally = manifest.entry, Tally()
    target = Entry(to, entry.kind, entry.size, entry.mode, entry.mtime_ns, entry.atime_ns)
    move_long(dealt, entry, world.carrier.sink(0), target, tally, manifest.chunk_bytes)
    return tally


@pytest.mark.parametrize("size", [0, 1, CHUNK, 5 * CHUNK + 1, 300 * CHUNK])
def test_a_file_comes_back_as_it_was(world: World, size: int) -> None:
    content = write(world.rank(0) / "d" / "f", noise(size))
    os.utime(world.rank(0) / "d" / "f", ns=(1, 2_000_000_000_000_000_001))
    count = -(-size // CHUNK)
    assert scatter(world, b"d/f") == [list(range(0, count, 2)), list(range(1, count, 2))]
    assert scatter(world, b"d/f") == [[], []]
    (world.rank(0) / "d" / "f").unlink()
    gather(world, b"d/f", b"d/f")
    assert (world.rank(0) / "d" / "f").read_bytes() == content
    assert (world.rank(0) / "d" / "f").stat().st_mtime_ns == 2_000_000_000_000_000_001


def test_a_damaged_or_missing_chunk_is_named(world: World) -> None:
    write(world.rank(0) / "f", noise(5 * CHUNK))
    scatter(world, b"f")
    chunk = world.rank(2) / os.fsdecode(chunk_path(b"f", 3))
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(DamageError, match="worker 2: chunk 3 of f is damaged"):
        gather(world, b"f", b"g")
    chunk.unlink()
    with pytest.raises(PosixError, match="worker 2: chunk 3 of f is not there"):
        gather(world, b"f", b"g")
    assert not (world.rank(0) / "g").exists()
    assert scatter(world, b"f") == [[], [3]]
    gather(world, b"f", b"g")


def test_a_damaged_manifest_is_noticed(world: World) -> None:
    write(world.rank(0) / "f", noise(CHUNK))
    scatter(world, b"f")
    path = world.rank(1) / "f.mpifs-chunks" / "manifest"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamageError):
        read_manifest(world.carrier.source(1), b"f")
    assert read_manifest(world.carrier.source(1), b"other") is None


def test_patterns(world: World) -> None:
    names = ("a.log", "b.log", ".c.log", "x/a.log", "x/y/a.log", "x/z", "w/q.txt")
    for name in names:
        write(world.rank(1) / name, b"")
    (world.rank(1) / "l.log").symlink_to("a.log")
    (world.rank(1) / "v").symlink_to("x")
    source = world.carrier.source(1)
    for pattern, wanted in (
        (b"*.log", [b"a.log", b"b.log"]),
        (b".*", [b".c.log"]),
        (b"a.log", [b"a.log"]),
        (b"*/a.log", [b"x/a.log"]),
        (b"**/a.log", [b"a.log", b"x/a.log", b"x/y/a.log"]),
        (b"x/**", [b"x", b"x/y"]),
        (b"[wx]/?*", [b"w/q.txt", b"x/a.log", b"x/y", b"x/z"]),
        (b"none*", []),
        (b"a.log/x", []),
    ):
        assert matching(source, pattern) == wanted, pattern
    with pytest.raises(PosixError):
        matching(source, b"../*")
