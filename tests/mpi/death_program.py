"""Rank 1 kills itself while rank 0 waits for it; the others go on.  Needs ULFM."""

from __future__ import annotations

import faulthandler
import os
import signal
import time

import pytest

from mpifs.core.errors import PeerDeadError
from mpifs.core.kinds import Kind
from mpifs.transport.client import Client
from mpifs.transport.endpoint import Endpoint
from mpifs.transport.mpi import connect
from mpifs.transport.request import Request
from mpifs.transport.server import Server


def serve(endpoint: Endpoint) -> None:
    stops: list[int] = []

    def handle(request: Request) -> None:
        if request.header.kind == Kind.DELETE:
            os.kill(os.getpid(), signal.SIGKILL)
        if request.header.kind == Kind.STOP:
            stops.append(1)
        request.reply()
        request.done()

    server = Server(endpoint, handle, bytearray, lambda buffer: None)
    server.run(lambda: bool(stops), lambda: None)
    assert server.flush(5)
    assert endpoint.dead() == {1}, endpoint.dead()


def ask(endpoint: Endpoint) -> None:
    client = Client(endpoint)
    for rank in range(1, endpoint.size):
        client.call(rank, Kind.PING)
    for body in (bytes(1 << 20), None):
        start = time.monotonic()
        with pytest.raises(PeerDeadError) as caught:
            client.call(1, Kind.DELETE, body=body, timeout_s=10)
        assert caught.value.rank == 1
        assert time.monotonic() - start < 5
    assert endpoint.dead() == {1}
    for _ in range(20):
        time.sleep(0.05)
        for rank in range(2, endpoint.size):
            client.call(rank, Kind.PUT, body=bytes(1 << 20), timeout_s=5)
    assert client.retired_count == 0
    for rank in range(2, endpoint.size):
        client.call(rank, Kind.STOP)
    print("survived", flush=True)


def main() -> None:
    faulthandler.dump_traceback_later(60, exit=True)
    endpoint = connect()
    if endpoint.rank:
        serve(endpoint)
    else:
        ask(endpoint)
    endpoint.close()
    os._exit(0)


main()
