"""More bytes for a chunk that is dirty take a short way: the bytes and errors of the long one."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from mpifs.core.limits import FILE_BYTES_MAX, KIB
from mpifs.core.types import Caller
from mpifs.vfs.dirty_chunks import DirtyChunks
from mpifs.vfs.facade import Vfs
from mpifs.vfs.file_data import FileData
from tests.vfs.loopback import LoopbackVolume, content
from tests.vfs.model import Model

ME = Caller(0, 0)
CHUNK = 64 * KIB


class Ways:
    """Which way each write went."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.short = self.long = 0
        more, write = DirtyChunks.write_more, DirtyChunks.write

        def short(self_: DirtyChunks, data: FileData, source: memoryview, offset: int) -> bool:
            is_done = more(self_, data, source, offset)
            self.short += is_done
            return is_done

        def long(self_: DirtyChunks, data: FileData, source: memoryview, offset: int) -> None:
            self.long += 1
            write(self_, data, source, offset)

        patch.setattr(DirtyChunks, "write_more", short)
        patch.setattr(DirtyChunks, "write", long)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(monkeypatch)


def put(vfs: Vfs, fh: int, data: bytes, offset: int) -> None:
    assert vfs.write(fh, memoryview(data), offset) == len(data)


def test_a_file_written_in_small_records(volume: LoopbackVolume, vfs: Vfs, fh: int) -> None:
    """Chunks that become full are sent at once, and nothing else is."""
    data = random.Random(1).randbytes(3 * CHUNK + 1000)
    data_of = vfs._find(b"/file").data
    assert isinstance(data_of, FileData)
    for at in range(0, len(data), 1000):
        put(vfs, fh, data[at : at + 1000], at)
        assert vfs.getattr(b"/file").size == min(at + 1000, len(data))
        assert set(data_of.dirty) <= {(at + 1000) // CHUNK}
    assert content(vfs) == data
    vfs.fsync(fh)
    volume.close()
    assert content(volume.open()) == data


def test_it_is_the_short_way(vfs: Vfs, fh: int, ways: Ways) -> None:
    put(vfs, fh, b"a" * 100, 0)
    put(vfs, fh, b"b" * 100, 100)
    put(vfs, fh, b"c" * 10, 50)
    put(vfs, fh, b"d" * 10, 195)
    assert (ways.long, ways.short) == (1, 3)
    assert content(vfs) == b"a" * 50 + b"c" * 10 + b"a" * 40 + b"b" * 95 + b"d" * 10


@pytest.mark.parametrize(
    ("offset", "size"),
    [(206, 10), (CHUNK, 10), (CHUNK - 5, 5), (CHUNK - 5, 10), (100, CHUNK), (100, 5000)],
)
def test_all_else_goes_the_long_way(vfs: Vfs, fh: int, ways: Ways, offset: int, size: int) -> None:
    """Behind the end, into another chunk, to the end of this one, past its memory."""
    put(vfs, fh, b"a" * 205, 0)
    put(vfs, fh, b"b" * size, offset)
    assert (ways.long, ways.short) == (2, 0)
    expected = (b"a" * min(205, offset)).ljust(offset, b"\0") + b"b" * size
    assert content(vfs) == expected.ljust(205, b"a")


def test_not_where_the_stores_are_nearly_full(
    vfs: Vfs, fh: int, ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(vfs, fh, b"a" * 100, 0)
    monkeypatch.setattr(vfs.writeback, "free_bytes", lambda: 50)
    put(vfs, fh, b"b" * 50, 100)
    assert (ways.long, ways.short) == (2, 0)
    with pytest.raises(OSError) as caught:
        put(vfs, fh, b"c" * 60, 150)
    assert caught.value.errno == errno.ENOSPC
    assert content(vfs) == b"a" * 100 + b"b" * 50


def test_refusals_are_those_of_the_long_way(vfs: Vfs, fh: int) -> None:
    put(vfs, fh, b"a" * 100, 0)
    reader = vfs.open(b"/file", os.O_RDONLY)
    data = vfs._find(b"/file").data
    assert isinstance(data, FileData)
    with pytest.raises(OSError) as caught:
        put(vfs, reader, b"b", 0)
    assert caught.value.errno == errno.EBADF
    data.error = OSError(errno.EIO, "lost")
    with pytest.raises(OSError, match="lost"):
        put(vfs, fh, b"b", 0)
    data.error = None
    vfs.truncate(b"/file", FILE_BYTES_MAX, fh)
    put(vfs, fh, b"z", FILE_BYTES_MAX - 20)
    put(vfs, fh, b"z" * 10, FILE_BYTES_MAX - 10)
    with pytest.raises(OSError) as caught:
        put(vfs, fh, b"z" * 11, FILE_BYTES_MAX - 10)
    assert caught.value.errno == errno.EFBIG
    vfs.truncate(b"/file", 100, fh)
    assert content(vfs) == b"a" * 100


def test_it_is_a_write_in_all_else(vfs: Vfs, ways: Ways) -> None:
    nodes = vfs.nodes
    nodes.use_direct_writers()
    told: list[list[int]] = []
    nodes.on_change = lambda inodes, names: told.append(list(inodes))
    stat, fh, _ = nodes.create(1, b"file", 0o6755, os.O_WRONLY, ME)
    nodes.write(fh, memoryview(b"a" * 100), 0)
    before = nodes.getattr(stat.ino)
    reader, is_direct = nodes.open(stat.ino, os.O_RDONLY)
    assert is_direct
    nodes.write(fh, memoryview(b"b" * 100), 100, True)
    assert ways.short == 1
    after = nodes.getattr(stat.ino)
    assert (after.size, told) == (200, [[stat.ino]])
    assert not after.mode & 0o4000
    assert after.mtime_ns > before.mtime_ns
    nodes.release(reader)


@pytest.mark.parametrize("seed", range(6))
def test_small_writes_mixed_with_all_else(tmp_path: Path, ways: Ways, seed: int) -> None:
    """Against a bytearray."""
    chance = random.Random(seed)
    model = Model(LoopbackVolume(tmp_path / "volume", workers=2, chunk_size=CHUNK), chance)
    vfs, fh = model.vfs, model.fh
    place = 0
    for step in range(600):
        action = chance.choice(["write"] * 20 + ["jump", "truncate", "punch", "fsync", "forget"])
        if action == "write":
            data = chance.randbytes(chance.choice((1, 100, 3000, 20_000)))
            place = min(place, 4 * CHUNK)
            put(vfs, fh, data, place)
            model.note_write(data, place)
            place += chance.choice((len(data), len(data), len(data) // 2, -50, 200))
            place = max(0, place)
        elif action == "jump":
            place = chance.choice((0, len(model.data), chance.randrange(4 * CHUNK)))
        elif action == "truncate":
            model.truncate(chance.randrange(5 * CHUNK))
        elif action == "punch":
            offset, size = chance.randrange(4 * CHUNK), chance.randrange(1, 2 * CHUNK)
            vfs.fallocate(fh, 3, offset, size)
            end = min(len(model.data), offset + size)
            if offset < end:
                model.data[offset:end] = bytes(end - offset)
        elif action == "fsync":
            vfs.fsync(fh)
        else:
            vfs.reader.cache.clear()
        model.check_part(5 * CHUNK, CHUNK, (step, action))
    assert ways.short > 100
    model.check_all()


def test_a_chunk_that_becomes_full_by_its_beginning_is_sent(vfs: Vfs, fh: int) -> None:
    put(vfs, fh, b"b" * (CHUNK - 100), 100)
    put(vfs, fh, b"a" * 100, 0)
    data = vfs._find(b"/file").data
    assert isinstance(data, FileData)
    assert not data.dirty
    assert content(vfs) == b"a" * 100 + b"b" * (CHUNK - 100)
