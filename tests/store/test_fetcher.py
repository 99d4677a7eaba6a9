"""COPY: chunks from worker to worker, each checked before it is stored; and stores that go away."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.buffers import BufferPool
from mpifs.core.checksum import function_of
from mpifs.core.errors import RemoteError, StoreGoneError
from mpifs.core.image import IMAGE_HEADER_BYTES, encode_key
from mpifs.core.kinds import Kind
from mpifs.core.limits import COPY_COUNT_MAX, KIB, MIB, PART_CHUNK_BYTES_MIN
from mpifs.core.messages import (
    Copy,
    CopyFailure,
    CopyItem,
    CopyReply,
    Retire,
    Serve,
    decode_args,
    encode_args,
)
from mpifs.core.types import ChunkKey
from mpifs.store.service import StoreService
from mpifs.store.watch import StoreWatch
from mpifs.transport.client import Client
from mpifs.transport.loopback import make_world
from mpifs.transport.server import Server
from tests.store.damage import has_right_table
from tests.store.images import KIND, VOLUME, image_bytes

SUM = function_of(KIND)


class Pair:
    """Two workers, ranks 1 and 2 with the stores 1 and 2, and rank 0's client."""

    def __init__(self, folder: str, *, has_peers: bool = True) -> None:
        self.folder = folder
        self.endpoints = make_world(3)
        self.services = []
        self.threads = []
        for endpoint in self.endpoints[1:]:
            peers = Client(endpoint) if has_peers else None
            service = StoreService(folder, "here", peers=peers)
            pool = BufferPool(4096, 64 * MIB)
            server = Server(endpoint, service.handle, pool.take, pool.give)
            thread = threading.Thread(target=server.run, args=(service.should_stop, service.idle))
            thread.start()
            self.services.append(service)
            self.threads.append(thread)
        self.client = Client(self.endpoints[0])
        for store in (1, 2):
            self.call(store, Kind.SERVE, encode_args(self.serve(store)))

    def serve(self, store: int, uuid: bytes = b"") -> Serve:
        return Serve(store, VOLUME, uuid or bytes([store]) * 16, MIB, KIND, True)

    def call(self, rank: int, kind: Kind, args: bytes = b"", body: bytes | None = None) -> bytes:
        reply = self.client.call(rank, kind, args=args, body=body, items=1, timeout_s=30)
        return bytes(reply.args) + bytes(reply.body)

    def put(self, rank: int, key: ChunkKey, payload: bytes) -> None:
        self.call(rank, Kind.PUT, body=image_bytes(key, payload))

    def get(self, rank: int, key: ChunkKey) -> bytes:
        return self.call(rank, Kind.GET, encode_key(key))[IMAGE_HEADER_BYTES:]

    def copy(self, chunks: dict[ChunkKey, bytes]) -> list[CopyFailure]:
        """From 1 to 2; the failures."""
        items = [CopyItem(encode_key(key), len(data), SUM(data)) for key, data in chunks.items()]
        args = encode_args(Copy(1, items))
        return decode_args(self.call(2, Kind.COPY, args), CopyReply).failures

    def close(self) -> None:
        for service in self.services:
            service.close()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        for endpoint in self.endpoints:
            endpoint.close()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(str(tmp_path))
    yield made
    made.close()


def test_chunks_of_all_sizes_arrive_and_are_durable(pair: Pair) -> None:
    sizes = (1, 700, 32 * KIB, 32 * KIB + 1, 300_000, MIB)
    chunks = {ChunkKey(7, n, n + 1): os.urandom(size) for n, size in enumerate(sizes)}
    chunks |= {ChunkKey(8, n, 100 + n): os.urandom(MIB) for n in range(20)}  # two batches
    for key, payload in chunks.items():
        pair.put(1, key, payload)
    assert pair.copy(chunks) == []
    assert pair.copy(chunks) == []  # may be repeated
    assert {key: pair.get(2, key) for key in chunks} == chunks
    assert {key: pair.get(1, key) for key in chunks} == chunks
    for service in pair.services:
        assert service.store is not None
        for key, payload in chunks.items():
            if len(payload) > PART_CHUNK_BYTES_MIN:
                assert has_right_table(service.store, key, payload)


def test_nothing_is_stored_that_is_not_what_the_index_knows(pair: Pair) -> None:
    good, other, missing = ChunkKey(7, 0, 1), ChunkKey(7, 1, 2), ChunkKey(7, 2, 3)
    pair.put(1, good, b"good")
    pair.put(1, other, b"othe")
    failures = pair.copy({other: b"what", good: b"good", missing: b"gone"})
    assert sorted(f.item for f in failures) == [0, 2]
    assert pair.get(2, good) == b"good"
    for key in (other, missing):
        with pytest.raises(RemoteError):
            pair.get(2, key)


def test_what_stands_in_its_place_is_replaced_by_a_good_one_only(pair: Pair) -> None:
    key, kept = ChunkKey(7, 0, 1), ChunkKey(7, 1, 2)
    pair.put(1, key, b"good")
    pair.put(2, key, b"wrong")
    pair.put(2, kept, b"kept")
    assert [f.item for f in pair.copy({key: b"good", kept: b"gone"})] == [1]
    assert (pair.get(2, key), pair.get(2, kept)) == (b"good", b"kept")


def test_impossible_copies_are_refused(pair: Pair) -> None:
    item = CopyItem(encode_key(ChunkKey(7, 0, 1)), 4, SUM(b"good"))
    for bad in (
        Copy(1, []),
        Copy(0, [item]),
        Copy(1, [item] * (COPY_COUNT_MAX + 1)),
        Copy(1, [CopyItem(b"short", 4, SUM(b"good"))]),
        Copy(1, [CopyItem(item.key, 0, item.checksum)]),
        Copy(1, [CopyItem(item.key, 1 << 40, item.checksum)]),
        Copy(1, [CopyItem(item.key, 4, b"")]),
    ):
        with pytest.raises(RemoteError) as caught:
            pair.call(2, Kind.COPY, encode_args(bad))
        assert caught.value.errno == errno.EPROTO


def test_a_worker_without_a_way_to_the_others_says_so(tmp_path: Path) -> None:
    pair = Pair(str(tmp_path), has_peers=False)
    try:
        with pytest.raises(RemoteError):
            pair.copy({ChunkKey(7, 0, 1): b"good"})
    finally:
        pair.close()


@pytest.mark.parametrize("harm", ["deleted", "emptied", "exchanged", "superblock"])
def test_a_store_whose_files_go_away_acknowledges_nothing_more(
    pair: Pair, tmp_path: Path, harm: str
) -> None:
    key = ChunkKey(7, 0, 1)
    pair.put(1, key, b"good")
    pair.put(2, key, b"good")
    one, two = tmp_path / "worker-1", tmp_path / "worker-2"
    if harm == "deleted":
        shutil.rmtree(two)
    elif harm == "emptied":
        for entry in two.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    elif harm == "exchanged":
        one.rename(tmp_path / "aside")
        two.rename(one)
        (tmp_path / "aside").rename(two)
    else:
        (two / "superblock").unlink()
    with pytest.raises(StoreGoneError, match="its store is gone"):
        pair.put(2, ChunkKey(7, 1, 2), b"never acknowledged")
    for kind, args in ((Kind.GET, encode_key(key)), (Kind.PING, b""), (Kind.STATS, b"")):
        with pytest.raises(StoreGoneError):
            pair.call(2, kind, args)
    if harm != "exchanged":
        assert pair.get(1, key) == b"good"


def test_a_gone_store_is_noticed_by_a_ping_and_another_one_takes_its_place(
    pair: Pair, tmp_path: Path
) -> None:
    key = ChunkKey(7, 0, 1)
    pair.put(1, key, b"good")
    pair.call(2, Kind.PING)
    shutil.rmtree(tmp_path / "worker-2")
    with pytest.raises(StoreGoneError):
        pair.call(2, Kind.PING)
    with pytest.raises(StoreGoneError):
        pair.call(2, Kind.SERVE, encode_args(pair.serve(2)))  # the one that is gone
    pair.call(2, Kind.SERVE, encode_args(pair.serve(2, b"n" * 16)))
    assert pair.copy({key: b"good"}) == []
    assert pair.get(2, key) == b"good"


def test_a_retired_store_leaves_nothing_behind(pair: Pair, tmp_path: Path) -> None:
    pair.put(2, ChunkKey(7, 0, 1), b"moved")
    for wrong in (Retire(1, VOLUME, b"\2" * 16), Retire(2, VOLUME, b"x" * 16)):
        with pytest.raises(RemoteError):
            pair.call(2, Kind.RETIRE, encode_args(wrong))
    pair.call(2, Kind.RETIRE, encode_args(Retire(2, VOLUME, b"\2" * 16)))
    assert not (tmp_path / "worker-2").exists()
    pair.call(2, Kind.PING)  # the rank itself lives on
    pair.call(2, Kind.SERVE, encode_args(pair.serve(2, b"n" * 16)))


def test_a_lack_of_open_files_is_no_loss_of_the_store(pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "worker-2"
    watch = StoreWatch(str(folder))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert watch.look() == ""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    (folder / "superblock").unlink()
    assert "superblock" in watch.look()
