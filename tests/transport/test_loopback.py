"""The contract on loopback, and what only it can show."""

from __future__ import annotations

import gc

import pytest

from mpifs.core.errors import PeerDeadError, ProtocolError
from mpifs.core.kinds import Kind
from mpifs.core.messages import MESSAGE_BYTES_MAX, TAG_REPLY_BASE, decode_header, encode_message
from mpifs.transport.client import Client
from mpifs.transport.endpoint import TAG_REPLY_DATA_BASE, Endpoint
from mpifs.transport.loopback import make_loopbacks, make_world
from tests.threads import all_at_once
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
    all_at_once(run, world)
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


def _answer(peer: Endpoint, body: bytes) -> int:
    """Answers the next request with a long body; its slot."""
    incoming = peer.probe()
    assert incoming is not None
    message = bytearray(MESSAGE_BYTES_MAX)
    incoming.receive(message)
    header = decode_header(message)
    answer = header._replace(args_bytes=0, body_bytes=len(body), bell=b"")
    peer.isend(0, TAG_REPLY_BASE + header.slot, encode_message(answer))
    peer.isend(0, TAG_REPLY_DATA_BASE + header.slot, body)
    return header.slot


def test_a_dropped_request_lives_until_its_answer_has_come() -> None:
    """Its buffers are MPI's until then: freed, they would be written into when others use them."""
    asker, peer = make_loopbacks(2)
    client = Client(asker)
    client.start(1, Kind.GET, args=b"key")  # nobody keeps it.
    gc.collect()
    assert client.retired_count == 1
    second = client.start(1, Kind.GET, args=b"key")
    assert client.retired_count == 1
    slots = [_answer(peer, bytes(100_000)), _answer(peer, b"2" * 100_000)]
    assert slots == [0, 1]
    assert second.wait().body == b"2" * 100_000
    third = client.start(1, Kind.GET, args=b"key")  # sweeps: the late answer is thrown away.
    fourth = client.start(1, Kind.GET, args=b"key")
    assert client.retired_count == 0
    assert {_answer(peer, b"3" * 100_000), _answer(peer, b"4" * 100_000)} == {0, 1}
    assert third.wait().body == b"3" * 100_000
    assert fourth.wait().body == b"4" * 100_000
    asker.close()
    peer.close()
