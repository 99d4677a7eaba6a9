"""A whole chunk is taken in the memory of its request: right bytes, and never anybody else's."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpifs.core.errors import DamageError, FullError
from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import FILE_BYTES_MAX, KIB
from mpifs.core.types import Caller
from mpifs.data.scatter import Outgoing
from mpifs.vfs.facade import Vfs
from tests.threads import all_at_once
from tests.vfs.loopback import LoopbackVolume, content
from tests.vfs.model import Model

ME = Caller(0, 0)
CHUNK = 64 * KIB
BYTES = IMAGE_HEADER_BYTES + CHUNK
DATA = random.Random(2).randbytes(8 * CHUNK)
SCRIBBLE = b"\xee" * BYTES


def chunk_of(number: int) -> bytes:
    return DATA[number * CHUNK : (number + 1) * CHUNK]


class Request:
    """Memory as a FUSE request has it.  Once it is exchanged, the next request scribbles over it:
    what the vfs has given is not the vfs's any more."""

    def __init__(self, data: bytes, length: int = BYTES) -> None:
        self.memory = self.first = bytearray(length)
        self.memory[IMAGE_HEADER_BYTES : IMAGE_HEADER_BYTES + len(data)] = data
        self.before = bytes(self.memory)

    def exchange(self, memory: bytearray) -> None:
        assert not self.is_exchanged, "once is enough"
        assert len(memory) == len(self.first)
        assert memory is not self.first
        memory[:] = SCRIBBLE[: len(memory)]
        self.memory = memory

    @property
    def is_exchanged(self) -> bool:
        return self.memory is not self.first

    @property
    def is_untouched(self) -> bool:
        return not self.is_exchanged and self.first == self.before


def take(vfs: Vfs, fh: int, data: bytes, offset: int, kills: bool = False) -> bool:
    request = Request(data)
    is_taken = vfs.nodes.take(fh, request.memory, len(data), offset, request.exchange, kills)
    assert is_taken is request.is_exchanged
    return is_taken


class Held:
    """Chunks on their way stay there until `go`."""

    def __init__(self, vfs: Vfs, patch: pytest.MonkeyPatch) -> None:
        self._send = vfs.writeback._scatter.submit_many
        self.items: list[list[Outgoing]] = []
        self._patch = patch
        self._scatter = vfs.writeback._scatter
        patch.setattr(self._scatter, "submit_many", self.items.append)

    def go(self, *, backwards: bool = False) -> None:
        self._patch.setattr(self._scatter, "submit_many", self._send)
        for items in reversed(self.items) if backwards else self.items:
            self._send(items)
        self.items.clear()


@pytest.fixture
def held(vfs: Vfs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(vfs, monkeypatch)
    yield made
    made.go()


def test_right_bytes_from_the_beginning(volume: LoopbackVolume, fh: int, held: Held) -> None:
    """On their way, stored, past the cache, and when the volume is opened again."""
    vfs = volume.vfs
    assert vfs is not None
    for number in (3, 0, 1, 7, 2, 6, 4, 5):
        assert take(vfs, fh, chunk_of(number), number * CHUNK)
        into = bytearray(CHUNK)
        assert vfs.read(fh, memoryview(into), number * CHUNK) == CHUNK
        assert into == chunk_of(number)
    assert content(vfs) == DATA
    assert vfs.writeback.dirty_bytes == 8 * BYTES
    held.go()
    vfs.fsync(fh)
    assert content(vfs) == DATA
    assert vfs.writeback.dirty_bytes == 0
    vfs.reader.cache.clear()
    assert content(vfs) == DATA
    volume.close()
    vfs = volume.open()
    assert content(vfs) == DATA


def test_memory_goes_round(vfs: Vfs, fh: int) -> None:
    """One request's memory for a whole file: each chunk comes in what was given for one before."""
    memory = bytearray(BYTES)

    def exchange(other: bytearray) -> None:
        nonlocal memory
        assert other is not memory
        memory = other

    for _ in range(5):
        for number in range(8):
            memory[IMAGE_HEADER_BYTES:] = chunk_of(number)
            assert vfs.nodes.take(fh, memory, CHUNK, number * CHUNK, exchange)
        assert content(vfs) == DATA
    vfs.fsync(fh)
    assert content(vfs) == DATA


def test_several_writers_of_one_file(vfs: Vfs, fh: int) -> None:
    failed: list[object] = []

    def write(first: int) -> None:
        try:
            for _ in range(20):
                for number in range(first, 8, 4):
                    if not take(vfs, fh, chunk_of(number), number * CHUNK):
                        failed.append(number)
        except OSError as error:
            failed.append(error)

    all_at_once(write, range(4))
    assert not failed
    vfs.fsync(fh)
    assert content(vfs) == DATA
    assert vfs.writeback.dirty_bytes == 0


def no_number(volume: LoopbackVolume, patch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise FullError("no numbers")

    patch.setattr(volume.index, "next_generation", full)


def no_commit(volume: LoopbackVolume, patch: pytest.MonkeyPatch) -> None:
    def full(data: object) -> None:
        raise FullError("no commit")

    assert volume.vfs is not None
    patch.setattr(volume.vfs.committer, "sync_file", full)


@pytest.mark.parametrize("fail", [no_number, no_commit])
def test_memory_is_exchanged_before_anything_fails(
    volume: LoopbackVolume,
    vfs: Vfs,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[LoopbackVolume, pytest.MonkeyPatch], None],
) -> None:
    """The next request writes elsewhere; what was said to have failed stays whole."""
    nodes = vfs.nodes
    nodes.use_direct_writers()
    _, fh, is_direct = nodes.create(1, b"file", 0o644, os.O_WRONLY | os.O_DSYNC, ME)
    assert is_direct
    request = Request(chunk_of(1))
    with monkeypatch.context() as patch:
        fail(volume, patch)
        with pytest.raises(OSError) as caught:
            nodes.take(fh, request.memory, CHUNK, CHUNK, request.exchange)
    assert caught.value.errno == errno.ENOSPC
    assert request.is_exchanged
    assert request.memory == SCRIBBLE
    assert content(vfs) == bytes(CHUNK) + chunk_of(1)
    vfs.fsync(fh)
    assert content(vfs) == bytes(CHUNK) + chunk_of(1)
    assert request.memory == SCRIBBLE, "it is the next request's"
    assert vfs.writeback.dirty_bytes == 0


def test_memory_of_a_failed_send_is_not_used_again(vfs: Vfs, fh: int) -> None:
    """MPI may still read it."""
    scatter = vfs.writeback._scatter
    rank_of = scatter._rank_of

    def refuse(store: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    scatter._rank_of = refuse
    request = Request(chunk_of(0))
    assert vfs.nodes.take(fh, request.memory, CHUNK, 0, request.exchange)
    with pytest.raises(OSError) as caught:
        vfs.fsync(fh)
    scatter._rank_of = rank_of
    assert caught.value.errno == errno.ENOSPC
    kept = [buffer for free in vfs.writeback._memory._pool._free.values() for buffer in free]
    assert not any(buffer is request.first for buffer in kept)
    assert vfs.getattr(b"/file").size == 0
    assert vfs.writeback.dirty_bytes == 0


@pytest.mark.parametrize(
    ("size", "offset", "length"),
    [
        (CHUNK, 1, BYTES),
        (CHUNK, CHUNK // 2, BYTES),
        (CHUNK, 2 * CHUNK - 4096, BYTES),
        (CHUNK - 1, 0, BYTES),
        (CHUNK // 2, 0, BYTES),
        (0, 0, BYTES),
        (2 * CHUNK, 0, IMAGE_HEADER_BYTES + 2 * CHUNK),
        (CHUNK, 0, BYTES + 1),
        (CHUNK, 0, 1024 * KIB + IMAGE_HEADER_BYTES),
        (CHUNK, 0, CHUNK),
    ],
)
def test_all_else_is_left_to_write(
    vfs: Vfs, fh: int, held: Held, size: int, offset: int, length: int
) -> None:
    before = vfs.getattr(b"/file")
    request = Request(DATA[: min(size, length - IMAGE_HEADER_BYTES)], length)
    assert not vfs.nodes.take(fh, request.memory, size, offset, request.exchange)
    assert request.is_untouched
    assert vfs.getattr(b"/file") == before
    assert vfs.writeback.dirty_bytes == 0
    assert not vfs.writeback.files


def test_a_dirty_chunk_is_left_to_write(vfs: Vfs, fh: int) -> None:
    vfs.write(fh, memoryview(b"dirty"), CHUNK + 7)
    used = vfs.writeback.dirty_bytes
    before = vfs.getattr(b"/file")
    request = Request(chunk_of(1))
    assert not vfs.nodes.take(fh, request.memory, CHUNK, CHUNK, request.exchange)
    assert request.is_untouched
    assert vfs.writeback.dirty_bytes == used
    assert vfs.getattr(b"/file") == before
    assert content(vfs) == bytes(CHUNK + 7) + b"dirty"
    assert take(vfs, fh, chunk_of(0), 0)
    assert content(vfs) == chunk_of(0) + bytes(7) + b"dirty"
    vfs.fsync(fh)
    assert take(vfs, fh, chunk_of(1), CHUNK)
    assert content(vfs) == DATA[: 2 * CHUNK]


def test_a_file_with_other_chunks(volume: LoopbackVolume, vfs: Vfs) -> None:
    half = CHUNK // 2
    volume.index.inode(1).chunk_size = half
    fh = vfs.create(b"/file", 0o644, os.O_RDWR, ME)
    for size in (CHUNK, half):
        request = Request(DATA[:size])
        assert not vfs.nodes.take(fh, request.memory, size, 0, request.exchange)
        assert request.is_untouched
    request = Request(DATA[:half], IMAGE_HEADER_BYTES + half)
    assert vfs.nodes.take(fh, request.memory, half, half, request.exchange)
    vfs.fsync(fh)
    vfs.reader.cache.clear()
    assert content(vfs) == bytes(half) + DATA[:half]


def refused(vfs: Vfs, fh: int, offset: int) -> int | None:
    """errno of a whole chunk that is not taken; its memory stays the caller's."""
    request = Request(chunk_of(1))
    with pytest.raises(OSError) as caught:
        vfs.nodes.take(fh, request.memory, CHUNK, offset, request.exchange)
    assert request.is_untouched
    return caught.value.errno


def test_who_may_not_write_is_refused(vfs: Vfs, fh: int) -> None:
    reader = vfs.open(b"/file", os.O_RDONLY)
    assert refused(vfs, reader, 0) == errno.EBADF
    assert refused(vfs, 12345, 0) == errno.EBADF
    assert refused(vfs, fh, FILE_BYTES_MAX // CHUNK * CHUNK) == errno.EFBIG
    assert vfs.getattr(b"/file").size == 0
    assert take(vfs, fh, chunk_of(0), 0)
    assert content(vfs) == chunk_of(0)


def test_a_full_volume_takes_nothing(
    volume: LoopbackVolume, vfs: Vfs, fh: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert take(vfs, fh, chunk_of(0), 0)
    vfs.fsync(fh)
    with monkeypatch.context() as patch:
        patch.setattr(vfs.writeback, "free_bytes", lambda: CHUNK - 1)
        assert refused(vfs, fh, CHUNK) == errno.ENOSPC
    room = volume.index.room
    with monkeypatch.context() as patch:
        patch.setattr(room, "_free", lambda: room.reserve_bytes)
        patch.setattr(room, "_left", 0)
        assert refused(vfs, fh, CHUNK) == errno.ENOSPC
    assert vfs.writeback.dirty_bytes == 0
    assert content(vfs) == chunk_of(0)
    assert take(vfs, fh, chunk_of(1), CHUNK)
    assert content(vfs) == DATA[: 2 * CHUNK]


def test_an_error_that_waits_is_told_first(vfs: Vfs, fh: int) -> None:
    data = vfs._find(b"/file").data
    data.error = OSError(errno.EIO, "lost")  # type: ignore[attr-defined]  # a FileData
    assert refused(vfs, fh, 0) == errno.EIO
    with pytest.raises(OSError, match="lost"):
        vfs.flush(fh)
    assert take(vfs, fh, chunk_of(0), 0)


def test_growth_past_a_hole(volume: LoopbackVolume, vfs: Vfs, fh: int) -> None:
    assert take(vfs, fh, chunk_of(2), 2 * CHUNK)
    assert take(vfs, fh, chunk_of(5), 5 * CHUNK)
    expected = bytes(2 * CHUNK) + chunk_of(2) + bytes(2 * CHUNK) + chunk_of(5)
    assert content(vfs) == expected
    volume.close()
    assert content(volume.open()) == expected


@pytest.mark.parametrize("state", ["stored", "on its way", "dirty"])
@pytest.mark.parametrize("gap", [0, 3])
def test_growth_past_what_a_truncate_has_left(
    volume: LoopbackVolume, vfs: Vfs, fh: int, held: Held, state: str, gap: int
) -> None:
    """The bytes beyond the old end are zeros, wherever the chunk that holds them is."""
    if state == "dirty":
        vfs.write(fh, memoryview(b"x" * (CHUNK - 1)), 0)
    else:
        assert take(vfs, fh, b"x" * CHUNK, 0)
    if state == "stored":
        held.go()
        vfs.fsync(fh)
    vfs.truncate(b"/file", 100, fh)
    assert take(vfs, fh, chunk_of(1), (1 + gap) * CHUNK)
    expected = b"x" * 100 + bytes((1 + gap) * CHUNK - 100) + chunk_of(1)
    assert content(vfs) == expected
    held.go()
    vfs.fsync(fh)
    vfs.reader.cache.clear()
    assert content(vfs) == expected
    volume.close()
    assert content(volume.open()) == expected


@pytest.mark.parametrize("backwards", [False, True])
def test_a_chunk_on_its_way_is_overwritten(
    volume: LoopbackVolume, vfs: Vfs, fh: int, held: Held, backwards: bool
) -> None:
    """Whichever arrives first, the last one that was taken counts."""
    for number in range(4):
        assert take(vfs, fh, chunk_of(number), CHUNK)
        assert content(vfs) == bytes(CHUNK) + chunk_of(number)
    held.go(backwards=backwards)
    vfs.fsync(fh)
    vfs.reader.cache.clear()
    assert content(vfs) == bytes(CHUNK) + chunk_of(3)
    assert vfs.writeback.dirty_bytes == 0
    volume.close()
    assert content(volume.open()) == bytes(CHUNK) + chunk_of(3)


def test_parts_of_a_chunk_on_its_way_are_overwritten(vfs: Vfs, fh: int, held: Held) -> None:
    """The taken memory is the base of what is dirty, and stays as it was taken."""
    assert take(vfs, fh, chunk_of(0), 0)
    vfs.write(fh, memoryview(b"new"), 1000)
    expected = DATA[:1000] + b"new" + DATA[1003:CHUNK]
    assert content(vfs) == expected
    held.go()
    vfs.fsync(fh)
    vfs.reader.cache.clear()
    assert content(vfs) == expected


def test_it_is_a_write_in_all_else(vfs: Vfs) -> None:
    """Times, set-id bits, room, and who has to be told."""
    nodes = vfs.nodes
    nodes.use_direct_writers()
    told: list[list[int]] = []
    nodes.on_change = lambda inodes, names: told.append(list(inodes))
    stat, fh, _ = nodes.create(1, b"file", 0o6755, os.O_WRONLY, ME)
    assert take(vfs, fh, chunk_of(0), 0)
    assert not told
    after = nodes.getattr(stat.ino)
    assert (after.size, after.mode & 0o7777) == (CHUNK, 0o6755)
    assert after.mtime_ns > stat.mtime_ns
    assert after.ctime_ns > stat.ctime_ns
    reader, is_direct = nodes.open(stat.ino, os.O_RDONLY)
    assert is_direct
    assert take(vfs, fh, chunk_of(1), CHUNK, kills=True)
    assert told == [[stat.ino]]
    assert not nodes.getattr(stat.ino).mode & 0o4000
    vfs.fsync(fh)
    assert nodes.getattr(stat.ino).blocks * 512 == 2 * CHUNK
    nodes.release(reader)


@pytest.mark.parametrize("how", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_ones_are_durable(volume: LoopbackVolume, vfs: Vfs, how: int) -> None:
    vfs.nodes.use_direct_writers()
    _, fh, _ = vfs.nodes.create(1, b"file", 0o644, os.O_WRONLY | how, ME)
    assert take(vfs, fh, chunk_of(0), 0)
    volume.crash()
    assert content(volume.open()) == chunk_of(0)


@pytest.mark.parametrize("seed", range(6))
def test_mixed_with_all_else(tmp_path: Path, seed: int) -> None:
    """Against a bytearray."""
    chance = random.Random(seed)
    model = Model(LoopbackVolume(tmp_path / "volume", workers=2, chunk_size=CHUNK), chance)
    vfs, fh = model.vfs, model.fh
    taken = 0
    for step in range(150):
        action = chance.choice(["take"] * 4 + ["write", "write", "truncate", "fsync", "forget"])
        if action == "take":
            data, offset = chance.randbytes(CHUNK), chance.randrange(8) * CHUNK
            if take(vfs, fh, data, offset):
                taken += 1
            else:
                vfs.write(fh, memoryview(data), offset)
            model.note_write(data, offset)
        elif action == "write":
            data = chance.randbytes(chance.randrange(1, chance.choice((100, 2 * CHUNK))))
            offset = chance.randrange(7 * CHUNK)
            vfs.write(fh, memoryview(data), offset)
            model.note_write(data, offset)
        elif action == "truncate":
            model.truncate(chance.randrange(8 * CHUNK))
        elif action == "fsync":
            vfs.fsync(fh)
        else:
            vfs.reader.cache.clear()
        model.check_part(8 * CHUNK, 3 * CHUNK, (step, action))
    assert taken > 20
    model.check_all()


def test_what_fails_before_it_is_taken_keeps_no_memory(
    volume: LoopbackVolume, vfs: Vfs, fh: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert take(vfs, fh, b"x" * CHUNK, 0)
    vfs.fsync(fh)
    vfs.truncate(b"/file", 100, fh)
    vfs.fsync(fh)

    def damaged(inode: object, chunk: int) -> None:
        raise DamageError("ref")

    with monkeypatch.context() as patch:
        patch.setattr(volume.index, "ref", damaged)
        with pytest.raises(DamageError):
            take(vfs, fh, b"y" * CHUNK, 2 * CHUNK)
    vfs.fsync(fh)
    assert vfs.writeback.dirty_bytes == 0
