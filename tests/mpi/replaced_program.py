"""Rank 1 is replaced and killed, again and again; right after each death rank 0 sends to it.

A replacement is reached over TCP.  Once Open MPI has found its connection broken, it crashes at the
second message that is sent to it; see Link.has_died.  Needs ULFM.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import time

import pytest

from mpifs.core.errors import PeerDeadError
from mpifs.core.kinds import TAG_CONTROL, Kind
from mpifs.transport.client import Client
from mpifs.transport.endpoint import Endpoint
from mpifs.transport.mpi import connect
from mpifs.transport.request import Request
from mpifs.transport.server import Server

LIVES = 3
BODY_BYTES = 64 << 20
PROGRAM = [sys.executable, os.path.abspath(__file__), "replacement"]


def serve(endpoint: Endpoint) -> None:
    """Tells its process number, until it is killed or rank 0 has ended."""

    def handle(request: Request) -> None:
        request.reply(args=b"%d" % os.getpid())
        request.done()

    server = Server(endpoint, handle, bytearray, lambda buffer: None)
    server.run(lambda: 0 in endpoint.dead(), lambda: None)


def kill(client: Client, *, amid_a_message: bool) -> None:
    """Returns when the process is gone: its connections are broken."""
    pid = int(bytes(client.call(1, Kind.PING, timeout_s=10).args))
    process = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    if amid_a_message:
        body = bytes(BODY_BYTES)
        calls = [client.start(1, Kind.PUT, body=body, timeout_s=10) for _ in range(4)]
        while not sum(call.poll() for call in calls):
            pass
        signal.pidfd_send_signal(process, signal.SIGSTOP)
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            assert sum(call.poll() for call in calls) < len(calls), "too short to be cut off"
    signal.pidfd_send_signal(process, signal.SIGKILL)
    assert poll.poll(10_000)
    os.close(process)


def send_to_the_dead(endpoint: Endpoint) -> None:
    def send_for(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            endpoint.isend(1, TAG_CONTROL, bytes(64))

    with pytest.raises(PeerDeadError):
        send_for(10)


def main() -> None:
    faulthandler.dump_traceback_later(60, exit=True)
    is_replacement = "replacement" in sys.argv
    endpoint = connect((1, 2) if is_replacement else None)
    if endpoint.rank:
        serve(endpoint)
        os._exit(0)
    client = Client(endpoint)
    for _ in range(LIVES):
        kill(client, amid_a_message=False)
        endpoint.replace(1, PROGRAM, "", lambda: False)
        kill(client, amid_a_message=True)
        send_to_the_dead(endpoint)
        endpoint.replace(1, PROGRAM, "", lambda: False)
    print("survived", flush=True)
    os._exit(0)


main()
