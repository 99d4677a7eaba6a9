"""A worker that answers everything but one kind of request: who asks has its error in time, and
everybody else goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.errors import MpifsError, SilentError
from mpifs.core.kinds import Kind
from mpifs.core.limits import SLOT_COUNT_MAX
from mpifs.core.types import Caller, ChunkKey
from mpifs.data.reclaim import Reclaim
from mpifs.repair.stores import StoreAccess
from mpifs.transport.client import Client
from mpifs.transport.request import Request
from mpifs.vfs.facade import Vfs
from tests.vfs.loopback import LoopbackVolume

ME = Caller(0, 0)
CHUNK = 64 * 1024
DEADLINE_S = 0.4


class Mute:
    """Worker 1 takes requests of one kind and never answers them."""

    def __init__(self, volume: LoopbackVolume) -> None:
        self.kind: int | None = None
        self.dropped = 0
        self.kinds: list[Kind] = []
        """What a worker of this volume answers: transfers have a service of their own."""
        service = volume.services[1]
        for handlers in (service._handlers, service.others):
            for number, handler in list(handlers.items()):
                handlers[number] = self._wrap(number, handler)
                self.kinds.append(Kind(number))

    def _wrap(self, number: int, handler):  # type: ignore[no-untyped-def]
        def handle(request: Request) -> None:
            if number == self.kind:
                self.dropped += 1
            else:
                handler(request)

        return handle


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LoopbackVolume]:
    made = LoopbackVolume(tmp_path / "volume", workers=2, chunk_size=CHUNK)
    made.open()
    yield made
    if made.vfs is not None:
        made.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests have a short deadline, whatever they ask for."""
    start = Client.start

    def hasty(self: Client, rank: int, kind: Kind, **words):  # type: ignore[no-untyped-def]
        return start(self, rank, kind, **{**words, "timeout_s": DEADLINE_S})

    monkeypatch.setattr(Client, "start", hasty)


def test_every_kind(volume: LoopbackVolume) -> None:
    mute, client = Mute(volume), volume.client
    assert {Kind.HELLO, Kind.PUT, Kind.GET_MANY, Kind.STAGE_IN, Kind.STAGE_OUT} <= {*mute.kinds}
    for kind in mute.kinds:
        mute.kind = kind
        body = b"x" * 100_000 if kind is Kind.PUT else None
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(SilentError):
                client.call(1, kind, body=body, items=1, timeout_s=0.05)
        assert time.monotonic() - began < 2
        assert mute.dropped == 3, kind
        mute.dropped = 0
        other = Kind.STATS if kind is Kind.PING else Kind.PING
        assert client.call(1, other, timeout_s=2).header.status == 0
        assert client.call(2, Kind.STATS, timeout_s=2).header.status == 0
    assert client.retired_count <= 3 * len(Kind) < SLOT_COUNT_MAX
    mute.kind = None


def test_each_asker(volume: LoopbackVolume, short: None) -> None:
    """PUT, GET, DELETE, VERIFY and MEND as those ask who need them."""
    vfs, mute = volume.vfs, Mute(volume)
    assert vfs is not None
    fh = vfs.create(b"/f", 0o644, os.O_RDWR, ME)
    other = vfs.create(b"/other", 0o644, os.O_RDWR, ME)
    vfs.write(fh, memoryview(b"1" * CHUNK * 4), 0)
    vfs.fsync(fh)
    mute.kind = Kind.GET
    began = time.monotonic()
    failed = [chunk for chunk in range(4) if not reads(vfs, fh, chunk)]
    assert len(failed) == 2, "one of two workers is mute"
    assert time.monotonic() - began < 4
    mute.kind = Kind.PUT
    vfs.write(other, memoryview(b"2" * CHUNK * 4), 0)
    began = time.monotonic()
    vfs.fsync(other)  # chunks go to the other worker
    assert time.monotonic() - began < 6
    mute.kind = None
    vfs.reader.cache.forget(vfs.getattr(b"/other").ino)
    assert all(reads(vfs, other, chunk, b"2") for chunk in range(4))
    mute.kind = Kind.DELETE
    live = lambda: [1, 2]  # noqa: E731
    reclaim = Reclaim(volume.client, int, live, lambda store, free: None)
    keys = [ChunkKey(99, n, 1) for n in range(2)]
    assert reclaim.delete([(keys[0], (1,)), (keys[1], (2,))]) == keys[1:]
    for kind in (Kind.VERIFY, Kind.MEND):
        mute.kind = kind
        access = StoreAccess(volume.client, int, {1, 2}, volume.index.geometry.checksum)
        began = time.monotonic()
        if kind is Kind.VERIFY:
            access.look([(vfs.getattr(b"/f").ino, 0)], True)
        else:
            access.mend(1, [])
            access.look([(vfs.getattr(b"/f").ino, 0)], True)
        assert time.monotonic() - began < 4
    mute.kind = None
    vfs.release(fh)
    vfs.release(other)


def reads(vfs: Vfs, fh: int, chunk: int, byte: bytes = b"1") -> bool:
    """Whether a chunk can be read, and then rightly."""
    into = bytearray(CHUNK)
    vfs.reader.cache.forget(vfs.getattr(None, fh).ino)
    try:
        vfs.read(fh, memoryview(into), chunk * CHUNK)
    except MpifsError:
        return False
    assert into == byte * CHUNK
    return True
