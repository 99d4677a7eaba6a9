"""The service loop by hand: `tick` without threads."""

from __future__ import annotations

import errno
import struct
import threading
import time

import pytest

from mpifs.core import limits
from mpifs.core.errors import ProtocolError, RemoteError, SilentError
from mpifs.core.kinds import Kind
from mpifs.core.messages import TAG_REPLY_BASE, encode_message
from mpifs.transport import server as server_module
from mpifs.transport.client import Client, Pending
from mpifs.transport.endpoint import TAG_REPLY_DATA_BASE
from mpifs.transport.loopback import make_loopbacks
from mpifs.transport.request import Request
from mpifs.transport.server import Server


class Rig:
    """Rank 0 asks, rank 1 answers when ticked; requests are kept in `got`."""

    def __init__(self) -> None:
        self.asker, self.worker = make_loopbacks(2)
        self.client = Client(self.asker)
        self.got: list[Request] = []
        self.lent = 0
        self.server = Server(self.worker, self.got.append, self.take, self.give)

    def take(self, size: int) -> bytearray:
        self.lent += 1
        return bytearray(size + 64)

    def give(self, buffer: bytearray) -> None:
        self.lent -= 1

    def drive(self, pending: Pending) -> None:
        deadline = time.monotonic() + 5
        while not pending.poll():
            self.server.tick()
            assert time.monotonic() < deadline

    def close(self) -> None:
        self.asker.close()
        self.worker.close()


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    assert rig.lent == 0
    rig.close()


def test_body_lies_at_the_start_of_a_longer_lent_buffer(rig: Rig) -> None:
    for size in (5, 100_000):
        pending = rig.client.start(1, Kind.PUT, args=b"a", body=b"b" * size, items=3)
        while not rig.got:
            assert rig.server.tick()
        request = rig.got.pop()
        assert request.buffer is not None
        assert len(request.buffer) == size + 64
        assert request.buffer[:size] == request.body == b"b" * size
        assert (request.args, request.header.items, request.source) == (b"a", 3, 0)
        request.reply()
        request.done()
        request.done()
        rig.drive(pending)
        pending.wait()
    assert rig.server.heard_s(0) is not None
    assert rig.server.heard_s(1) is None


def test_a_body_that_somebody_still_refers_to_is_not_lent_again(rig: Rig) -> None:
    """As a receive whose sender died: the service goes on."""
    pending = rig.client.start(1, Kind.PUT, body=b"b" * 100_000)
    while not rig.got:
        assert rig.server.tick()
    request = rig.got.pop()
    assert request.body is not None
    held = struct.iter_unpack("c", request.body)
    request.reply()
    request.done()
    assert next(held) == (b"b",)
    assert rig.lent == 1
    rig.lent = 0
    rig.drive(pending)
    assert rig.server._held_bytes == 0


def test_on_sent_once_and_only_when_the_body_is_received(rig: Rig) -> None:
    pending = rig.client.start(1, Kind.GET)
    rig.server.tick()
    sent: list[int] = []
    request = rig.got.pop()
    request.reply(body=bytes(1 << 20), on_sent=lambda: sent.append(1))
    rig.server.tick()
    assert not sent
    rig.drive(pending)
    rig.server.tick()
    assert sent == [1]
    request.reply(on_sent=lambda: sent.append(2))
    assert sent == [1, 2]


def test_on_sent_when_the_asker_dies(rig: Rig) -> None:
    rig.client.start(1, Kind.GET)
    rig.server.tick()
    sent: list[int] = []
    rig.got[0].reply(body=bytes(1 << 20), on_sent=lambda: sent.append(1))
    rig.asker.die()
    rig.server.tick()
    assert sent == [1]
    assert rig.server.flush(1)


def test_memory_is_bounded_and_control_messages_pass(rig: Rig, monkeypatch) -> None:
    monkeypatch.setattr(server_module, "RECEIVE_BYTES_MAX", 150_000)
    pendings = [rig.client.start(1, Kind.PUT, body=bytes(100_000)) for _ in range(4)]
    for _ in range(5):
        rig.server.tick()
    assert len(rig.got) == 2
    ping = rig.client.start(1, Kind.PING)
    rig.server.tick()
    assert rig.got[-1].header.kind == Kind.PING
    rig.got.pop().reply()
    ping.wait()
    for _ in range(4):
        while not rig.got:
            rig.server.tick()
        request = rig.got.pop(0)
        request.reply()
        request.done()
    for pending in pendings:
        pending.wait()


def test_errors_of_the_handler_are_answered(rig: Rig, caplog) -> None:
    for error, code in ((OSError(errno.ENOSPC, "full"), errno.ENOSPC), (KeyError(1), errno.EIO)):

        def handle(request: Request, error: Exception = error) -> None:
            raise error

        rig.server._handler = handle
        pending = rig.client.start(1, Kind.PUT, body=bytes(100_000))
        rig.drive(pending)
        with pytest.raises(RemoteError) as caught:
            pending.wait()
        assert caught.value.errno == code


def test_silent_peer_costs_the_deadline_and_no_more(rig: Rig) -> None:
    start = time.monotonic()
    with pytest.raises(SilentError):
        rig.client.call(1, Kind.PUT, body=bytes(100_000), timeout_s=0.1)
    assert 0.09 < time.monotonic() - start < 0.3
    assert rig.client.retired_count == 1
    rig.server.tick()
    request = rig.got.pop()
    request.reply()
    request.done()
    swept_by = rig.client.start(1, Kind.PING)
    assert rig.client.retired_count == 0
    assert not swept_by.poll()


def test_slots_are_bounded(rig: Rig, monkeypatch) -> None:
    monkeypatch.setattr("mpifs.transport.client.SLOT_COUNT_MAX", 2)
    first = rig.client.start(1, Kind.PING)
    rig.client.start(1, Kind.PING)
    with pytest.raises(OSError, match="under way"):
        rig.client.start(1, Kind.PING)
    rig.server.tick()
    for request in rig.got:
        request.reply()
    first.wait()
    rig.client.start(1, Kind.PING)


def test_reply_of_another_epoch_is_ignored(rig: Rig) -> None:
    pending = rig.client.start(1, Kind.GET, timeout_s=0.05)
    rig.server.tick()
    request = rig.got.pop()
    request.header = request.header._replace(epoch=3)
    request.reply(body=bytes(100_000))
    with pytest.raises(SilentError):
        pending.wait()


def test_limits_agree() -> None:
    assert limits.INLINE_BYTES_MAX < limits.RECEIVE_BYTES_MAX


@pytest.mark.parametrize("cut", [b"", b"short", bytes(64), bytes(100)])
def test_bad_reply_is_an_error_and_its_slot_is_not_used_again(rig: Rig, cut: bytes) -> None:
    pending = rig.client.start(1, Kind.PING)
    rig.server.tick()
    slot = rig.got.pop().header.slot
    rig.worker.isend(0, TAG_REPLY_BASE + slot, cut)
    with pytest.raises(ProtocolError):
        pending.wait()
    rig.client.start(1, Kind.PING)
    rig.server.tick()
    assert rig.got.pop().header.slot != slot


def test_body_shorter_than_its_header_says_is_an_error(rig: Rig) -> None:
    pending = rig.client.start(1, Kind.GET, into=bytearray(200_000))
    rig.server.tick()
    header = rig.got.pop().header
    answer = header._replace(body_bytes=100_000, bell=b"")
    rig.worker.isend(0, TAG_REPLY_BASE + header.slot, encode_message(answer))
    rig.worker.isend(0, TAG_REPLY_DATA_BASE + header.slot, bytes(100))
    with pytest.raises(ProtocolError):
        pending.wait()


def test_body_under_way_at_the_deadline_leaves_the_buffer_alone(rig: Rig) -> None:
    into = bytearray(100_000)
    pending = rig.client.start(1, Kind.GET, into=into, timeout_s=0.05)
    rig.server.tick()
    header = rig.got.pop().header
    answer = header._replace(body_bytes=100_000, bell=b"")
    rig.worker.isend(0, TAG_REPLY_BASE + header.slot, encode_message(answer))
    with pytest.raises(SilentError):
        pending.wait()
    assert pending.is_settled
    rig.worker.isend(0, TAG_REPLY_DATA_BASE + header.slot, b"x" * 100_000)
    assert into == bytes(100_000)
    swept_by = rig.client.start(1, Kind.PING)
    assert rig.client.retired_count == 0
    assert not swept_by.poll()


def test_a_quiet_loop_naps_longer_and_a_lost_ring_costs_no_more_than_that(
    rig: Rig, monkeypatch
) -> None:
    naps: list[float] = []

    def wait(timeout_s: float) -> bool:
        naps.append(timeout_s)
        time.sleep(timeout_s)
        if sum(naps) > 2 and not pendings:
            monkeypatch.setattr(rig.asker, "ring", lambda rank, address: None)
            pendings.append(rig.client.start(1, Kind.PING))
        return False

    pendings: list[Pending] = []
    monkeypatch.setattr(rig.worker.server_bell(), "wait", wait)
    rig.server.run(lambda: bool(rig.got), lambda: None)
    assert naps[0] == limits.BELL_TIMEOUT_S
    assert naps == sorted(naps)
    assert naps[-1] == limits.BELL_QUIET_TIMEOUT_S <= limits.HEARTBEAT_S / 2
    rig.got.pop().reply()
    pendings[0].wait()


def test_a_ring_without_a_message_makes_the_loop_look_soon_again(rig: Rig, monkeypatch) -> None:
    """The message may still wait in its sender's library."""
    naps: list[float] = []

    def wait(timeout_s: float) -> bool:
        naps.append(timeout_s)
        time.sleep(timeout_s)
        return timeout_s == limits.BELL_QUIET_TIMEOUT_S

    monkeypatch.setattr(rig.worker.server_bell(), "wait", wait)
    rig.server.run(lambda: naps[-2:-1] == [limits.BELL_QUIET_TIMEOUT_S], lambda: None)
    assert naps[-1] == limits.BELL_TIMEOUT_S


def test_an_answer_of_another_thread_that_ends_the_service_wakes_the_loop(rig: Rig) -> None:
    pending = rig.client.start(1, Kind.STOP)
    stopped = threading.Event()
    rig.server.tick()
    rig.worker.server_bell().wait(0)
    thread = threading.Thread(target=lambda: rig.got.pop().reply(on_sent=stopped.set))
    thread.start()
    thread.join()
    assert stopped.is_set()
    assert rig.worker.server_bell().wait(1)
    pending.wait()


def test_a_heartbeat_is_no_traffic(rig: Rig, monkeypatch) -> None:
    naps: list[float] = []
    pings: list[Pending] = []

    def wait(timeout_s: float) -> bool:
        naps.append(timeout_s)
        if timeout_s < limits.BELL_QUIET_TIMEOUT_S:
            time.sleep(timeout_s)
            return False
        pings.append(rig.client.start(1, Kind.PING))
        return True

    monkeypatch.setattr(rig.worker.server_bell(), "wait", wait)
    rig.server.run(lambda: len(rig.got) == 3, lambda: None)
    assert naps[-3:] == [limits.BELL_QUIET_TIMEOUT_S] * 3
    for request in rig.got:
        request.reply()
    for ping in pings:
        ping.wait()


def test_the_loop_spins_after_slow_work_too(rig: Rig, monkeypatch) -> None:
    worked: list[float] = []
    slept: list[float] = []

    def handle(request: Request) -> None:
        time.sleep(5 * limits.SPIN_S)
        request.reply()
        worked.append(time.monotonic())

    def wait(timeout_s: float) -> bool:
        slept.append(time.monotonic())
        return False

    rig.server._handler = handle
    pending = rig.client.start(1, Kind.GET)
    monkeypatch.setattr(rig.worker.server_bell(), "wait", wait)
    rig.server.run(lambda: bool(worked and slept), lambda: None)
    assert slept[0] - worked[0] >= limits.SPIN_S
    pending.wait()
