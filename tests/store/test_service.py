"""StoreService over the loopback transport: every kind of request, damage, silence, stop."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest

from mpifs.core.buffers import BufferPool
from mpifs.core.errors import FullError, RemoteError
from mpifs.core.image import IMAGE_HEADER_BYTES, decode_header, encode_key, encode_keys, padded
from mpifs.core.kinds import Kind
from mpifs.core.limits import BELL_TIMEOUT_S, MASTER_SILENCE_S, MIB
from mpifs.core.messages import HelloReply, ListKeys, Serve, StoreStats, decode_args, encode_args
from mpifs.core.types import ChunkKey
from mpifs.store.chunks import Change, ChunkStore
from mpifs.store.service import StoreService
from mpifs.transport import server as server_module
from mpifs.transport.client import Client
from mpifs.transport.loopback import make_world
from mpifs.transport.server import Server
from tests.store.images import KIND, STORE, VOLUME, image_bytes, open_store

SERVE = Serve(3, VOLUME, STORE, MIB, KIND, True)


class Worker:
    """Rank 1 with a service in a thread, and a client at rank 0."""

    def __init__(self, folder: str) -> None:
        here, there = make_world(2)
        pool = BufferPool(4096, 64 * MIB)
        self.now = 0.0
        self.service = StoreService(folder, "here", self.clock)
        self.server = Server(there, self.service.handle, pool.take, pool.give)
        self.client = Client(here)
        self.thread = threading.Thread(
            target=self.server.run, args=(self.service.should_stop, self.service.idle)
        )
        self.thread.start()

    def clock(self) -> float:
        return self.now

    def call(self, kind: Kind, args: bytes = b"", body: bytes | None = None, items: int = 0):  # type: ignore[no-untyped-def]  # the transport's Reply
        return self.client.call(1, kind, args=args, body=body, items=items, timeout_s=10)

    def put(self, *images: bytes) -> None:
        body = b"".join(image.ljust(padded(len(image)), b"\0") for image in images[:-1])
        self.call(Kind.PUT, body=body + images[-1], items=len(images))


def refusal(
    worker: Worker, kind: Kind, args: bytes = b"", body: bytes | None = None, items: int = 0
) -> int:
    """errno of a request that must fail."""
    with pytest.raises(RemoteError) as caught:
        worker.call(kind, args, body, items)
    assert caught.value.errno is not None
    return caught.value.errno


def test_before_serve(worker: Worker, tmp_path: Path) -> None:
    hello = decode_args(worker.call(Kind.HELLO).args, HelloReply)
    assert hello.host == "here"
    assert hello.stores == []
    worker.call(Kind.PING)
    assert refusal(worker, Kind.STATS) == errno.EINVAL
    assert refusal(worker, Kind.GET, encode_key(ChunkKey(1, 0, 1))) == errno.EINVAL
    body = image_bytes(ChunkKey(1, 0, 1), b"x")
    assert refusal(worker, Kind.PUT, body=body, items=1) == errno.EINVAL
    open_store(str(tmp_path / "worker-3")).close()
    hello = decode_args(worker.call(Kind.HELLO).args, HelloReply)
    assert hello.stores == [(3, VOLUME, STORE)]


def test_put_get_list_delete_stats(worker: Worker) -> None:
    assert decode_args(worker.call(Kind.SERVE, encode_args(SERVE)).args, StoreStats).chunks == 0
    worker.call(Kind.SERVE, encode_args(SERVE))
    images = {
        ChunkKey(1, i, 1): image_bytes(ChunkKey(1, i, 1), bytes([i]) * size)
        for i, size in enumerate([0, 1, 5000, 40_000, 300_000, MIB - 1, MIB])
    }
    worker.put(*list(images.values())[:4])
    for image in list(images.values())[4:]:
        worker.put(image)
        worker.put(image)
    for key, image in images.items():
        reply = worker.call(Kind.GET, encode_key(key))
        assert bytes(reply.body) == image
        assert reply.header.free > 0
    listed = worker.call(Kind.LIST, encode_args(ListKeys(b"", 3)))
    assert listed.header.items == 3
    rest = worker.call(Kind.LIST, encode_args(ListKeys(encode_key(ChunkKey(1, 2, 1)), 100)))
    both = bytes(listed.body) + bytes(rest.body)
    assert both == b"".join(image[:IMAGE_HEADER_BYTES] for image in images.values())
    assert decode_header(both).key == ChunkKey(1, 0, 1)
    worker.call(Kind.DELETE, encode_keys([ChunkKey(1, 5, 1), ChunkKey(9, 9, 9)]))
    assert refusal(worker, Kind.GET, encode_key(ChunkKey(1, 5, 1))) == errno.EIO
    stats = decode_args(worker.call(Kind.STATS).args, StoreStats)
    assert (stats.store, stats.chunks) == (3, 6)
    assert stats.bytes == sum(len(i) - 64 for i in images.values()) - MIB + 1


@pytest.mark.parametrize("size", [100, 20_000, MIB - 5])
def test_every_flipped_byte_is_refused(worker: Worker, size: int) -> None:
    worker.call(Kind.SERVE, encode_args(SERVE))
    image = image_bytes(ChunkKey(1, 0, 1), b"z" * size)
    for place in (*range(0, 64, 3), 64, 64 + size // 2, 63 + size):
        damaged = bytearray(image)
        damaged[place] ^= 4
        assert refusal(worker, Kind.PUT, body=bytes(damaged), items=1) == errno.EBADMSG
    assert refusal(worker, Kind.PUT, body=image[:-1], items=1) == errno.EBADMSG
    assert refusal(worker, Kind.PUT, body=image, items=2) == errno.EBADMSG
    assert decode_args(worker.call(Kind.STATS).args, StoreStats).chunks == 0
    worker.put(image)


def test_nonsense_is_refused(worker: Worker) -> None:
    worker.call(Kind.SERVE, encode_args(SERVE))
    assert refusal(worker, Kind.PUT) == errno.EPROTO
    assert refusal(worker, Kind.GET, b"short") == errno.EPROTO
    assert refusal(worker, Kind.LIST, b"\xff") == errno.EPROTO
    assert refusal(worker, Kind.LIST, encode_args(ListKeys(b"x", 1))) == errno.EPROTO
    assert refusal(worker, Kind.LIST, encode_args(ListKeys(b"", 0))) == errno.EPROTO
    assert refusal(worker, Kind.DELETE, b"x") in (errno.EPROTO, errno.EIO)
    assert refusal(worker, Kind.SERVE, b"nonsense") == errno.EPROTO
    other = Serve(4, VOLUME, b"o" * 16, MIB, KIND, True)
    assert refusal(worker, Kind.SERVE, encode_args(other)) == errno.EBUSY
    big = image_bytes(ChunkKey(1, 0, 1), bytes(MIB + 1))
    assert refusal(worker, Kind.PUT, body=big, items=1) == errno.EPROTO
    worker.call(Kind.PING)


@pytest.mark.parametrize(
    "serve",
    [
        Serve(0, VOLUME, STORE, MIB, KIND, True),
        Serve(3, b"short", STORE, MIB, KIND, True),
        Serve(3, VOLUME, STORE, 12345, KIND, True),
        Serve(3, VOLUME, STORE, MIB, 77, True),
    ],
)
def test_impossible_serve(worker: Worker, serve: Serve) -> None:
    assert refusal(worker, Kind.SERVE, encode_args(serve)) == errno.EPROTO


def test_stop_commits_answers_and_ends(worker: Worker, tmp_path: Path) -> None:
    worker.call(Kind.SERVE, encode_args(SERVE))
    key = ChunkKey(1, 0, 1)
    body = image_bytes(key, b"x" * 500_000)
    put = worker.client.start(1, Kind.PUT, body=body, items=1)
    stop = worker.client.start(1, Kind.STOP)
    put.wait()
    stop.wait()
    worker.thread.join(10)
    assert not worker.thread.is_alive()
    store = open_store(str(tmp_path / "worker-3"), create=False)
    store.get(key).close()
    store.close()


def test_many_at_once(worker: Worker) -> None:
    worker.call(Kind.SERVE, encode_args(SERVE))
    bodies = [image_bytes(ChunkKey(1, i, 1), bytes([i]) * 100_000) for i in range(40)]
    for pending in [worker.client.start(1, Kind.PUT, body=body, items=1) for body in bodies]:
        pending.wait()
    gets = [worker.client.start(1, Kind.GET, args=encode_key(ChunkKey(1, i, 1))) for i in range(40)]
    for i, pending in enumerate(gets):
        assert bytes(pending.wait().body) == bodies[i]
    store = worker.service.store
    assert store is not None
    deadline = time.monotonic() + 2
    while store._large.environment.readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store._large.environment.readers() == 0


def test_silence_of_rank_0_ends_it(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its clock runs three times as fast: a long nap would look as if the process had stood still.
    monkeypatch.setattr(server_module, "BELL_QUIET_TIMEOUT_S", BELL_TIMEOUT_S)
    worker.call(Kind.SERVE, encode_args(SERVE))
    worker.now += 100 * MASTER_SILENCE_S  # the process stood still: no silence
    worker.call(Kind.PING)
    assert worker.thread.is_alive()
    for _ in range(int(MASTER_SILENCE_S / 0.3) + 10):
        worker.now += 0.3
        worker.thread.join(0.1)
    worker.thread.join(5)
    assert not worker.thread.is_alive()
    open_store(str(tmp_path / "worker-3"), create=False).close()


def test_a_message_right_after_a_stall_buys_no_more_time(tmp_path: Path) -> None:
    """The stall must not be added to what was heard after it."""
    now = [0.0]
    service = StoreService(str(tmp_path), "here", lambda: now[0])
    assert not service.should_stop()
    now[0] = 1000.0
    here, there = make_world(2)
    server = Server(there, service.handle, bytearray, lambda _: None)
    ping = Client(here).start(1, Kind.PING)
    while not ping.poll():
        server.tick()
    assert not service.should_stop()
    for _ in range(int(MASTER_SILENCE_S / 0.5) + 2):
        now[0] += 0.5
        stopped = service.should_stop()
    assert stopped


def test_one_failure_of_a_group_is_only_its_own(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.call(Kind.SERVE, encode_args(SERVE))
    real = ChunkStore.apply

    def apply(store: ChunkStore, changes: list[Change]) -> None:
        if any(image.header.inode == 7 for change in changes for image in change.puts):
            raise FullError("full")
        real(store, changes)

    monkeypatch.setattr(ChunkStore, "apply", apply)
    started = {
        inode: worker.client.start(
            1, Kind.PUT, body=image_bytes(ChunkKey(inode, 0, 1), b"x" * 50_000), items=1
        )
        for inode in range(1, 12)
    }
    for inode, pending in started.items():
        if inode == 7:
            with pytest.raises(RemoteError) as caught:
                pending.wait()
            assert caught.value.errno == errno.ENOSPC
        else:
            pending.wait()
