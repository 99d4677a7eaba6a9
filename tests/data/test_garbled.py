"""Bytes damaged on their way between ranks: seen at once, sent again, never stored, never read."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs import faultpoint
from mpifs.core.errors import MpifsError, ProtocolError, RemoteError
from mpifs.core.image import encode_keys
from mpifs.core.kinds import Kind
from mpifs.core.types import Caller, ChunkKey
from mpifs.job.assembly import VfsOptions
from mpifs.vfs.facade import Vfs
from tests.vfs.loopback import LoopbackVolume

ME = Caller(0, 0)
CHUNK = 64 * 1024
DATA = random.Random(4).randbytes(5 * CHUNK + 777)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LoopbackVolume]:
    made = LoopbackVolume(tmp_path / "volume", workers=2, chunk_size=CHUNK)
    yield made
    faultpoint._wanted = ""
    if made.vfs is not None:
        made.close()


def flip(monkeypatch: pytest.MonkeyPatch, name: str, every: bool = False) -> None:
    """The next message at that point has a byte flipped; `every`: and all after it."""
    monkeypatch.setattr(faultpoint, "_wanted", name)
    monkeypatch.setattr(faultpoint, "_action", "flip")
    monkeypatch.setattr(faultpoint, "_times", 1)
    monkeypatch.setattr(faultpoint, "_count", 0)
    if every:
        monkeypatch.setattr(faultpoint, "_is_due", lambda: True)


def write(vfs: Vfs, path: bytes) -> None:
    fh = vfs.create(path, 0o644, os.O_RDWR, ME)
    vfs.write(fh, memoryview(DATA), 0)
    vfs.fsync(fh)
    vfs.flush(fh)
    vfs.release(fh)


def read(vfs: Vfs, path: bytes) -> bytes:
    fh = vfs.open(path, os.O_RDONLY)
    vfs.reader.cache.forget(vfs.getattr(path).ino)
    into = bytearray(len(DATA))
    count = vfs.read(fh, memoryview(into), 0)
    vfs.release(fh)
    return bytes(into[:count])


@pytest.mark.parametrize(
    "place", ["request.header", "request.body", "reply.header", "reply.body", "none"]
)
def test_no_program_notices_a_flipped_byte(
    volume: LoopbackVolume,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad: list[object] = []
    vfs = volume.open(VfsOptions(), lambda key, ref, store: bad.append(store))
    for number in range(3):
        name = b"/f%d" % number
        flip(monkeypatch, f"transport.{place}")
        write(vfs, name)
        flip(monkeypatch, f"transport.{place}")
        start = time.monotonic()
        assert read(vfs, name) == DATA
        assert time.monotonic() - start < 5
    assert not bad, "a store is not to blame for what the network did"
    said = [r for r in caplog.records if "again" in r.message or "refused" in r.message]
    assert bool(said) == (place not in ("none", "reply.body"))  # the last says it with less noise
    volume.close()
    vfs = volume.open()
    assert [read(vfs, b"/f%d" % number) for number in range(3)] == [DATA] * 3


def test_a_network_that_damages_everything_gives_an_error_and_stores_nothing(
    volume: LoopbackVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    vfs = volume.open()
    write(vfs, b"/good")
    flip(monkeypatch, "transport.reply.body", every=True)
    with pytest.raises(MpifsError):
        read(vfs, b"/good")
    flip(monkeypatch, "transport.request.body", every=True)
    with pytest.raises(MpifsError):
        write(vfs, b"/bad")
    monkeypatch.undo()
    assert read(vfs, b"/good") == DATA
    write(vfs, b"/later")
    assert read(vfs, b"/later") == DATA
    assert vfs.getattr(b"/bad").size == 0


def test_no_other_chunk_is_deleted_than_the_one_that_was_named(
    volume: LoopbackVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    vfs = volume.open()
    write(vfs, b"/good")
    client, ino = volume.client, vfs.getattr(b"/good").ino
    chunks = client.call(1, Kind.STATS).args
    for _ in range(20):
        flip(monkeypatch, "transport.request.header")
        with pytest.raises((ProtocolError, RemoteError)):
            client.call(1, Kind.DELETE, args=encode_keys([ChunkKey(ino, 99, 1)] * 3))
    assert client.call(1, Kind.STATS).args[:20] == chunks[:20]
    assert read(vfs, b"/good") == DATA
