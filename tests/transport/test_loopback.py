"""The contract on loopback, and what only it can show."""

from __future__ import annotations

import threading

import pytest

from mpifs.core.errors import PeerDeadError, ProtocolError
from mpifs.core.messages import TAG_REPLY_BASE, Kind
from mpifs.transport.client import Client
from mpifs.transport.endpoint import Endpoint
from mpifs.transport.loopback import make_loopbacks, make_world
from tests.transport import contract


@pytest.mark.parametrize("size", [1, 2, 4])
def test_contract(size: int) -> None:
    failures: list[BaseException] = []

    def run(endpoint: Endpoint) -> None:
        try:
            contract.run(endpoint)
        except BaseException as error:  # noqa: BLE001  # Raised by the caller.
            failures.append(error)

    world = make_world(size)
    threads = [threading.Thread(target=run, args=(endpoint,)) for endpoint in world]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for endpoint in world:
        endpoint.close()
    if failures:
        raise failures[0]


def test_death_ends_requests_and_settles_buffers() -> None:
    asker, victim = make_loopbacks(2)
    client = Client(asker)
    before = client.start(1, Kind.PUT, body=bytes(1 << 20))
    victim.die()
    with pytest.raises(PeerDeadError):
        before.wait()
    assert before.is_settled
    with pytest.raises(PeerDeadError):
        client.call(1, Kind.PING)
    assert asker.dead() == {1}
    assert client.retired_count == 0
    asker.close()
    victim.close()


def test_long_message_for_short_receive_fails_and_the_send_completes() -> None:
    one, two = make_loopbacks(2)
    receive = two.irecv(0, TAG_REPLY_BASE, bytearray(3))
    assert one.isend(1, TAG_REPLY_BASE, b"four").test()
    with pytest.raises(ProtocolError):
        receive.test()
    one.close()
    two.close()


def test_cancelled_receive_leaves_the_message_for_the_next() -> None:
    one, two = make_loopbacks(2)
    buffer = bytearray(4)
    receive = two.irecv(0, TAG_REPLY_BASE, buffer)
    assert receive.cancel()
    send = one.isend(1, TAG_REPLY_BASE, b"four")
    assert send.test()
    assert buffer == bytes(4)
    assert two.irecv(0, TAG_REPLY_BASE, buffer).test()
    assert buffer == b"four"
    one.close()
    two.close()
