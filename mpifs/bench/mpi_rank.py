"""A rank of the MPI limit: `python -m mpifs.bench.mpi_rank SOCKET`, started by mpiexec.

Rank 0 takes requests from the socket, a line of JSON each way, and does them with the others:

    put    chunks to all workers in turn       get    chunks from all workers in turn
    echo   workers in no order answer a short message with `size` bytes, one after the other

Plain sends and receives, no protocol of mpifs: nothing that mpifs does over MPI can be faster.
Between requests everybody sleeps.  Ends when the socket does, or when rank 0 dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from mpifs.core.errors import MpifsError
from mpifs.core.kinds import TAG_METADATA
from mpifs.core.messages import TAG_DATA_BASE, TAG_REPLY_BASE
from mpifs.transport.endpoint import Endpoint, Operation
from mpifs.transport.mpi import connect

_ORDER = struct.Struct("<BIQ")
_PUT, _GET, _ECHO, _END = range(4)
_WINDOW = 4  # messages on their way to or from one worker: hides the round trip, fits the caches.
_LOOK_S = 0.5  # a worker without a bell looks so often.
_ASK_BYTES = 64
_SEED = 7


def _finish(operation: Operation) -> None:
    while not operation.test():
        os.sched_yield()


class _Stream:
    """Messages one after the other with _WINDOW of them under way, each in a buffer of its own."""

    def __init__(self, endpoint: Endpoint, peer: int, size: int, *, is_send: bool) -> None:
        start = endpoint.isend if is_send else endpoint.irecv
        self._start: Callable[[bytearray], Operation] = partial(start, peer, TAG_DATA_BASE)
        self._buffers = deque(bytearray(b"\1" * size) for _ in range(_WINDOW))
        self._running: deque[Operation] = deque()

    def advance(self) -> None:
        """Starts the next message, once there is room for it."""
        if len(self._running) == _WINDOW:
            _finish(self._running.popleft())
        buffer = self._buffers[0]
        self._buffers.rotate(-1)
        self._running.append(self._start(buffer))

    def drain(self) -> None:
        """Waits for all."""
        while self._running:
            _finish(self._running.popleft())


class _Asker:
    """Rank 0."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def run(self, request: dict[str, Any]) -> dict[str, float]:
        """Does one request; begin, end, and the bytes or round trips done between."""
        order = {"put": _PUT, "get": _GET, "echo": _ECHO}[request["work"]]
        size, count = int(request["size"]), int(request["count"])
        ranks = list(range(1, self._endpoint.size))
        each = max(1, count // len(ranks))
        self._tell(ranks, order, size, each)
        begin = time.monotonic()
        if order == _ECHO:
            self._echo(ranks, size, each)
        else:
            streams = [_Stream(self._endpoint, rank, size, is_send=order == _PUT) for rank in ranks]
            begin = time.monotonic()
            for _ in range(each):
                for stream in streams:
                    stream.advance()
            for stream in streams:
                stream.drain()
            if order == _PUT:
                self._hear(ranks)
        done = each * len(ranks)
        amount = done if order == _ECHO else done * size
        return {"begin_s": begin, "end_s": time.monotonic(), "amount": float(amount)}

    def end(self) -> None:
        """Sends the workers home."""
        for rank in range(1, self._endpoint.size):
            with contextlib.suppress(MpifsError):
                self._send(rank, _ORDER.pack(_END, 0, 0))

    def _send(self, rank: int, order: bytes) -> None:
        operation = self._endpoint.isend(rank, TAG_METADATA, order)
        self._endpoint.ring(rank, b"")
        _finish(operation)

    def _tell(self, ranks: list[int], order: int, size: int, count: int) -> None:
        """Gives the order and waits until all are awake and ready."""
        for rank in ranks:
            self._send(rank, _ORDER.pack(order, size, count))
        self._hear(ranks)

    def _hear(self, ranks: list[int]) -> None:
        waiting = [self._endpoint.irecv(rank, TAG_REPLY_BASE, bytearray(1)) for rank in ranks]
        for operation in waiting:
            _finish(operation)

    def _echo(self, ranks: list[int], size: int, each: int) -> None:
        endpoint, ask, into = self._endpoint, bytes(_ASK_BYTES), bytearray(size)
        turns = ranks * each
        random.Random(_SEED).shuffle(turns)
        for rank in turns:
            answer = endpoint.irecv(rank, TAG_DATA_BASE, into)
            _finish(endpoint.isend(rank, TAG_DATA_BASE, ask))
            _finish(answer)


def _work(endpoint: Endpoint) -> None:
    """A worker's life."""
    order = bytearray(_ORDER.size)
    bell = endpoint.server_bell()
    while 0 not in endpoint.dead():
        incoming = endpoint.probe()
        if incoming is None:
            bell.wait(_LOOK_S)
            continue
        incoming.receive(order)
        what, size, count = _ORDER.unpack(order)
        if what == _END:
            return
        if what == _ECHO:
            _answer(endpoint, size, count)
            continue
        stream = _Stream(endpoint, 0, size, is_send=what == _GET)
        _finish(endpoint.isend(0, TAG_REPLY_BASE, b"r"))
        for _ in range(count):
            stream.advance()
        stream.drain()
        if what == _PUT:
            _finish(endpoint.isend(0, TAG_REPLY_BASE, b"d"))


def _answer(endpoint: Endpoint, size: int, count: int) -> None:
    data, into = bytearray(b"\1" * size), bytearray(_ASK_BYTES)
    asked = endpoint.irecv(0, TAG_DATA_BASE, into)
    _finish(endpoint.isend(0, TAG_REPLY_BASE, b"r"))
    for number in range(count):
        _finish(asked)
        if number + 1 < count:
            asked = endpoint.irecv(0, TAG_DATA_BASE, into)
        _finish(endpoint.isend(0, TAG_DATA_BASE, data))


def _ask(endpoint: Endpoint, path: str) -> None:
    asker = _Asker(endpoint)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
            with connection.makefile("rw", encoding="ascii") as lines:
                for line in lines:
                    lines.write(json.dumps(asker.run(json.loads(line))) + "\n")
                    lines.flush()
    finally:
        asker.end()


def main() -> int:
    """One rank, from the start of MPI to its end."""
    endpoint = connect()
    try:
        if endpoint.rank == 0:
            _ask(endpoint, sys.argv[1])
        else:
            _work(endpoint)
    except OSError as error:
        print(f"mpifs: {error}", flush=True)
        os._exit(1)
    endpoint.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
