"""What every endpoint must do, seen through client and server; run by all ranks at once.

`run(endpoint)` serves requests on a thread and performs every check against every rank.  It raises
at the first failed check and returns when all ranks are done.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable

import pytest

from mpifs.core.buffers import BufferPool
from mpifs.core.errors import ProtocolError, RemoteError, SilentError
from mpifs.core.kinds import TAG_METADATA, Kind
from mpifs.core.limits import BODY_BYTES_MAX, INLINE_BYTES_MAX
from mpifs.core.messages import TAG_REPLY_BASE, Header, decode_header, encode_header
from mpifs.transport.client import Client, wait_any
from mpifs.transport.endpoint import Endpoint
from mpifs.transport.request import Request
from mpifs.transport.server import Server
from tests.threads import all_at_once

SIZES = (0, 1, 4096, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 1 << 20, 5 << 20)
BIG = 1 << 20


def pattern(size: int, seed: int) -> bytes:
    """Bytes that differ with size and seed."""
    unit = random.Random(size * 1000 + seed).randbytes(251)
    return (unit * (size // 251 + 1))[:size]


class Echo:
    """A server on a thread.  GET: pattern of `items` bytes; PUT: its body back; DELETE: refused;
    LIST: as GET, after the milliseconds given in args; STOP: one asker less."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.rank = endpoint.rank
        pool = BufferPool(64, 8 << 20)
        self.server = Server(endpoint, self.handle, pool.take, pool.give)
        self.left = endpoint.size
        self.sent = 0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        self.server.run(lambda: self.left <= 0, lambda: None)
        self.server.flush(5)

    def handle(self, request: Request) -> None:
        kind = request.header.kind
        if kind == Kind.GET:
            body = pattern(request.header.items, self.rank)
            request.reply(body=body, items=7, free=2**40, on_sent=self.note)
        elif kind == Kind.PUT and request.body is not None:
            request.reply(args=request.args, body=request.body, on_sent=request.done)
            return
        elif kind == Kind.DELETE:
            request.refuse(OSError(errno.ENOENT, "no such thing"))
        elif kind == Kind.LIST:
            body = pattern(request.header.items, self.rank)
            late = threading.Timer(int(request.args) / 1000, lambda: request.reply(body=body))
            late.start()
            return
        else:
            request.reply(args=request.args)
            if kind == Kind.STOP:
                self.left -= 1
        request.done()

    def note(self) -> None:
        self.sent += 1


def check_bodies(client: Client, rank: int) -> None:
    for size in SIZES:
        data = pattern(size, 99)
        into = bytearray(size + 10)
        reply = client.call(rank, Kind.PUT, args=b"xyz", body=data, into=into)
        assert bytes(reply.args) == b"xyz"
        assert reply.body == data
        assert into == data + bytes(10)
        into = bytearray(size)
        reply = client.call(rank, Kind.GET, items=size, into=memoryview(into))
        assert into == pattern(size, rank)
        assert (reply.header.items, reply.header.free) == (7, 2**40)
        assert client.call(rank, Kind.GET, items=size).body == pattern(size, rank)


def check_refusal_keeps_errno(client: Client, rank: int) -> None:
    with pytest.raises(RemoteError, match="no such thing") as caught:
        client.call(rank, Kind.DELETE, body=pattern(BIG, 1))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.rank == rank


def check_short_buffer(client: Client, rank: int) -> None:
    for size in (100, BIG):
        with pytest.raises(ProtocolError):
            client.call(rank, Kind.GET, items=size, into=bytearray(size - 1))
    assert client.call(rank, Kind.GET, items=BIG).body == pattern(BIG, rank)


def check_late_reply_is_ignored(client: Client, rank: int) -> None:
    for size in (10, BIG):
        into = bytearray(size)
        pending = client.start(rank, Kind.LIST, args=b"600", items=size, into=into, timeout_s=0.05)
        start = time.monotonic()
        with pytest.raises(SilentError):
            pending.wait()
        assert time.monotonic() - start < 0.55
        deadline = time.monotonic() + 10
        while client.retired_count:
            assert client.call(rank, Kind.GET, items=500).body == pattern(500, rank)
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert into == bytes(size)
        assert pending.is_settled


def check_cancelled_receive(client: Client, rank: int) -> None:
    endpoint, tag = client.endpoint, TAG_REPLY_BASE + 4001
    given_up, buffer = bytearray(5), bytearray(9)
    receive = endpoint.irecv(endpoint.rank, tag, given_up)
    assert not receive.test()
    assert receive.cancel()
    assert receive.received == 0
    send = endpoint.isend(endpoint.rank, tag, b"bytes")
    receive = endpoint.irecv(endpoint.rank, tag, buffer)
    deadline = time.monotonic() + 10
    while not receive.test() or not send.test():
        assert time.monotonic() < deadline
    assert receive.cancel()
    assert receive.received == 5
    assert (given_up, buffer) == (bytes(5), b"bytes" + bytes(4))


def check_many_at_once(client: Client, rank: int) -> None:
    size = client.endpoint.size
    left = {client.start(n % size, Kind.GET, items=n * 3000): n for n in range(20)}
    while left:
        done = wait_any(list(left), 10)
        assert done
        for pending in done:
            n = left.pop(pending)
            assert pending.wait().body == pattern(n * 3000, n % size)
    slow = client.start(rank, Kind.LIST, args=b"100", items=1)
    assert wait_any([slow], 0.01) == []
    slow.wait()


def check_many_threads(client: Client, rank: int) -> None:
    failures: list[BaseException] = []

    def ask(seed: int) -> None:
        try:
            dice = random.Random(seed)
            for _ in range(30):
                size = dice.choice(SIZES[:-1])
                peer = dice.randrange(client.endpoint.size)
                data = pattern(size, seed)
                assert client.call(peer, Kind.PUT, body=data).body == data
        except BaseException as error:  # noqa: BLE001  # Raised by the caller.
            failures.append(error)

    all_at_once(ask, range(6))
    assert not failures, failures


def check_bad_messages(client: Client, rank: int) -> None:
    endpoint = client.endpoint
    dice = random.Random(5)
    sends = [
        endpoint.isend(rank, TAG_METADATA, dice.randbytes(size))
        for size in (0, 1, 63, 64, 200, 5000)
    ]
    slot = 4000
    good = Header(Kind.GET, 0, 0, slot, 77, 0, 0, 0, endpoint.bell().address, 0)
    bad = [
        encode_header(good) + b"tail",
        encode_header(good._replace(args_bytes=5)),
        encode_header(good._replace(args_bytes=2**31)),
        encode_header(good._replace(body_bytes=BODY_BYTES_MAX + 1)),
    ]
    for message in bad:
        buffer = bytearray(1000)
        answer = endpoint.irecv(rank, TAG_REPLY_BASE + slot, buffer)
        sends.append(endpoint.isend(rank, TAG_METADATA, message))
        endpoint.ring(rank, b"")
        deadline = time.monotonic() + 10
        while not answer.test():
            assert time.monotonic() < deadline
        header = decode_header(buffer)
        assert (header.status, header.request, header.slot) == (errno.EPROTO, 77, slot), header
    client.call(rank, Kind.PING)
    assert all(send.test() for send in sends)


CHECKS: tuple[Callable[[Client, int], None], ...] = (
    check_bodies,
    check_refusal_keeps_errno,
    check_short_buffer,
    check_late_reply_is_ignored,
    check_cancelled_receive,
    check_many_at_once,
    check_many_threads,
    check_bad_messages,
)


def run(endpoint: Endpoint) -> None:
    """All checks against all ranks."""
    echo = Echo(endpoint)
    client = Client(endpoint, epoch=0)
    try:
        assert endpoint.host(endpoint.rank)
        assert endpoint.dead() == frozenset()
        for check in CHECKS:
            for rank in range(endpoint.size):
                check(client, rank)
        assert client.retired_count == 0
    finally:
        for rank in range(endpoint.size):
            client.call(rank, Kind.STOP)
        echo.thread.join(20)
    assert not echo.thread.is_alive()
