"""Packing: small chunks for one store travel together, in a body of their own length."""

from __future__ import annotations

import threading

import pytest

from mpifs.core.checksum import function_of
from mpifs.core.image import IMAGE_HEADER_BYTES, split_batch
from mpifs.core.kinds import Kind
from mpifs.core.limits import BATCH_BYTES_MAX, BATCH_COUNT_MAX, KIB, PACKED_BYTES_MAX
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.data.scatter import Outgoing, Scatter
from mpifs.transport.client import Client
from mpifs.transport.loopback import make_world
from mpifs.transport.request import Request
from mpifs.transport.server import Server

KIND = ChecksumKind.XXH3_128


class World:
    """Rank 0 with a Scatter and two workers that keep what they are sent."""

    def __init__(self) -> None:
        self.endpoints = make_world(3)
        self.bodies: dict[int, list[tuple[int, bytes]]] = {1: [], 2: []}
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.serve, args=(rank,)) for rank in (1, 2)]
        for thread in self.threads:
            thread.start()
        client = Client(self.endpoints[0])
        self.scatter = Scatter(self.endpoints[0], client, int, KIND, lambda *_: None)

    def serve(self, rank: int) -> None:
        def handle(request: Request) -> None:
            assert request.header.kind == Kind.PUT
            self.bodies[rank].append((request.header.items, bytes(request.body or b"")))
            request.reply()
            request.done()

        def take(size: int) -> bytearray:
            return bytearray(size)

        server = Server(self.endpoints[rank], handle, take, lambda buffer: None)
        server.run(self.stop.is_set, lambda: None)

    def send(self, sizes: list[int], stores: tuple[int, ...]) -> dict[ChunkKey, bytes]:
        """Sends chunks and waits for them; what each holds."""
        done, left, items, sent = threading.Event(), [len(sizes)], [], {}

        def finish(item: Outgoing, error: OSError | None) -> None:
            assert error is None
            left[0] -= 1
            if not left[0]:
                done.set()

        for number, size in enumerate(sizes):
            key, payload = ChunkKey(7, number, 1), bytes([number % 251]) * size
            buffer = bytearray(IMAGE_HEADER_BYTES) + payload + b"what lies behind"
            items.append(Outgoing(key, buffer, size, stores, finish))
            sent[key] = payload
        self.scatter.submit_many(items)
        assert done.wait(20)
        return sent

    def close(self) -> None:
        self.scatter.close()
        self.stop.set()
        for thread in self.threads:
            thread.join(10)
        for endpoint in self.endpoints:
            endpoint.close()


@pytest.mark.parametrize(
    "sizes",
    [
        [1],
        [100] * 50,
        [5, 4096, 1, PACKED_BYTES_MAX, PACKED_BYTES_MAX + 1, 7],
        [PACKED_BYTES_MAX] * 40,
        [3] * (BATCH_COUNT_MAX + 3),
    ],
)
@pytest.mark.parametrize("stores", [(1,), (2, 1)])
def test_every_chunk_arrives_whole(sizes: list[int], stores: tuple[int, ...]) -> None:
    world = World()
    try:
        sent = world.send(sizes, stores)
    finally:
        world.close()
    for store in (1, 2):
        found = {}
        for count, body in world.bodies[store]:
            assert count <= BATCH_COUNT_MAX
            assert len(body) <= max(BATCH_BYTES_MAX, max(sizes) + IMAGE_HEADER_BYTES)
            for header, image in split_batch(memoryview(body), count):
                payload = bytes(image[IMAGE_HEADER_BYTES:])
                assert function_of(KIND)(payload) == header.checksum
                found[header.key] = payload
        assert found == (sent if store in stores else {})


def test_small_chunks_share_bodies_no_longer_than_they_are() -> None:
    world = World()
    try:
        world.send([4 * KIB] * 64, (1,))
    finally:
        world.close()
    assert len(world.bodies[1]) < 8
    for count, body in world.bodies[1]:
        assert len(body) == count * (4 * KIB + IMAGE_HEADER_BYTES)
