"""The control socket: calls, errors, bounds, clients that go away or send rubbish."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mpifs.core.errors import InUseError, MasterSilentError, PosixError
from mpifs.core.limits import CONTROL_CLIENTS_MAX, CONTROL_FRAME_BYTES_MAX
from mpifs.job import control
from mpifs.job.control import Answer, ControlClient, ControlServer, Session
from tests.threads import all_at_once


def _fail(args: dict[str, Any]) -> dict[str, Any]:
    raise OSError(args["errno"], "no such thing; look elsewhere")


def _break(args: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("a defect")


class Served:
    """A server with the calls that the tests use."""

    def __init__(self, path: str) -> None:
        self.server = ControlServer(path)
        self.ended: list[int] = []
        self.release = threading.Event()
        self.server.register("echo", lambda args: args)
        self.server.register("fail", _fail)
        self.server.register("break", _break)
        self.server.register("stop", self._stop)
        self.server.register("wait", self._wait)
        self.server.register_data("reverse", self._reverse)
        self.server.register_data("hold", self._hold)
        self.server.start()

    def _stop(self, args: dict[str, Any]) -> dict[str, Any]:
        self.server.close()
        return {"stopped": True}

    def _wait(self, args: dict[str, Any]) -> dict[str, Any]:
        self.release.wait(20)
        return {"waited": True}

    def _reverse(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        return Answer({"uid": session.caller.uid, "pid": session.caller.pid}, bytes(body[::-1]))

    def _hold(self, session: Session, args: dict[str, Any], body: memoryview) -> Answer:
        session.on_end(lambda: self.ended.append(args["number"]))
        return Answer({})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A running server in a folder whose path is longer than sun_path."""
    folder = tmp_path / ("long" * 30) / ("er" * 20)
    found = Served(str(folder / "control.sock"))
    yield found
    found.release.set()
    found.server.close()


def _until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_call_gives_back_every_kind_of_value(served: Served) -> None:
    args = {"bytes": b"\xff\0\n", "text": "ä", "int": -(2**62), "list": [1, None, True], "name": 1}
    with ControlClient(served.server.path) as client:
        assert client.call("echo", **args) == args
        assert client.call("echo") == {}


def test_socket_and_folder_are_closed_to_others(served: Served) -> None:
    path = served.server.path
    assert len(path) > 150
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


def test_raw_bytes_go_both_ways(served: Served) -> None:
    data = os.urandom(3 << 20)
    into = memoryview(bytearray(4 << 20))
    with ControlClient(served.server.path) as client:
        for size in (0, 1, 1 << 20, len(data)):
            result, count = client.call_data("reverse", {}, data[:size], into)
            assert result == {"uid": os.geteuid(), "pid": os.getpid()}
            assert count == size
            assert into[:count] == data[:size][::-1]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EEXIST, FileExistsError),
        (errno.ENOTDIR, NotADirectoryError),
        (errno.EISDIR, IsADirectoryError),
        (errno.ENOSPC, PosixError),
    ],
)
def test_handlers_oserror_comes_out_again(served: Served, code: int, kind: type[OSError]) -> None:
    with ControlClient(served.server.path) as client:
        with pytest.raises(kind) as caught:
            client.call("fail", errno=code)
        assert isinstance(caught.value, PosixError)
        assert caught.value.errno == code
        assert str(caught.value) == "no such thing; look elsewhere"
        assert client.call("echo", still=1) == {"still": 1}


def test_defect_in_a_handler_is_eio_and_logged(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with ControlClient(served.server.path) as client:
        with pytest.raises(PosixError, match="log") as caught:
            client.call("break")
        assert caught.value.errno == errno.EIO
        assert client.call("echo", still=1) == {"still": 1}
    assert "a defect" in caplog.text


def test_unknown_call_is_enosys(served: Served) -> None:
    with ControlClient(served.server.path) as client, pytest.raises(PosixError) as caught:
        client.call("nonsense")
    assert caught.value.errno == errno.ENOSYS


def test_silence_ends_at_the_deadline_and_closes_the_connection(served: Served) -> None:
    with ControlClient(served.server.path, 0.2) as client:
        start = time.monotonic()
        with pytest.raises(MasterSilentError, match=r"did not answer 'wait' within 0\.2 s"):
            client.call("wait")
        assert time.monotonic() - start < 5
        # The late answer must not be taken for that of another call.
        with pytest.raises(PosixError) as caught:
            client.call("echo")
        assert caught.value.errno == errno.ENOTCONN


def test_nothing_listens(tmp_path: Path) -> None:
    for path in (tmp_path / "control.sock", tmp_path / "no" / "control.sock"):
        with pytest.raises(PosixError, match="not mounted") as caught:
            ControlClient(str(path))
        assert caught.value.errno == errno.ECONNREFUSED


def test_socket_of_a_dead_server_is_replaced_and_of_a_living_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "control.sock")
    os.mkdir(os.path.dirname(path), 0o755)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    first = Served(path)
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    with pytest.raises(InUseError):
        ControlServer(path).start()
    first.server.close()
    first.server.close()
    assert not os.path.exists(path)


def test_what_a_client_held_is_undone_when_it_goes_away(served: Served) -> None:
    client = ControlClient(served.server.path)
    client.call("hold", number=1)
    client.call("hold", number=2)
    assert served.ended == []
    client.close()
    _until(lambda: served.ended == [2, 1])


def test_many_clients_at_once_and_one_too_many(served: Served) -> None:
    clients = [ControlClient(served.server.path) for _ in range(CONTROL_CLIENTS_MAX)]
    for number, client in enumerate(clients):
        assert client.call("echo", n=number) == {"n": number}
    assert served.server.client_count == CONTROL_CLIENTS_MAX
    with ControlClient(served.server.path) as late:
        with pytest.raises(PosixError) as caught:
            late.call("echo")
        assert caught.value.errno in (errno.EAGAIN, errno.ENOTCONN)
    clients.pop().close()
    _until(lambda: served.server.client_count < CONTROL_CLIENTS_MAX)
    with ControlClient(served.server.path) as next_one:
        assert next_one.call("echo", n=1) == {"n": 1}
    for client in clients:
        client.close()


def test_threads_may_share_a_client(served: Served) -> None:
    wrong = []
    with ControlClient(served.server.path) as client:

        def work(number: int) -> None:
            for turn in range(50):
                if client.call("echo", n=number, t=turn) != {"n": number, "t": turn}:
                    wrong.append((number, turn))

        all_at_once(work, range(4))
    assert wrong == []


def test_close_lets_the_answer_under_way_out(served: Served) -> None:
    with ControlClient(served.server.path) as client:
        assert client.call("stop") == {"stopped": True}
        with pytest.raises(PosixError) as caught:
            client.call("echo")
        assert caught.value.errno == errno.ENOTCONN
    assert not os.path.exists(served.server.path)


def _frame(document: bytes) -> bytes:
    return struct.pack("<I", len(document)) + document


@pytest.mark.parametrize(
    "rubbish",
    [
        struct.pack("<I", CONTROL_FRAME_BYTES_MAX + 1),
        struct.pack("<I", 0xFFFFFFFF) + b"x" * 100,
        _frame(b""),
        _frame(b"\xc1"),
        _frame(b"\xdd\xff\xff\xff\xff"),
        _frame(b"\x91" * 100_000),
        _frame(msgspec.msgpack.encode({"name": 1})),
        _frame(msgspec.msgpack.encode({"name": "echo", "args": [1]})),
        _frame(msgspec.msgpack.encode({"name": "echo", "body": -1})),
        _frame(msgspec.msgpack.encode({"name": "echo", "body": 1 << 40})),
        _frame(msgspec.msgpack.encode({"name": "echo", "other": 1})),
    ],
)
def test_rubbish_ends_its_own_connection_only(served: Served, rubbish: bytes) -> None:
    with ControlClient(served.server.path) as good:
        with control._connect(served.server.path, 5.0) as bad:
            bad.sendall(rubbish)
            answer = b""
            # Closed with bytes of ours unread, the kernel may drop the answer: that is allowed.
            with contextlib.suppress(ConnectionResetError):
                while piece := bad.recv(65536):
                    answer += piece
        if answer:
            assert msgspec.msgpack.decode(answer[4:])["errno"] == errno.EPROTO
        assert good.call("echo", a=1) == {"a": 1}


def test_client_that_stops_within_a_frame_is_dropped(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CONTROL_FRAME_TIMEOUT_S", 0.2)
    with control._connect(served.server.path, 5.0) as bad:
        bad.sendall(struct.pack("<I", 100) + b"half")
        assert bad.recv(1) == b""


def test_another_user_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    real = control._caller_of
    monkeypatch.setattr(control, "_caller_of", lambda c: control.Caller(12345, 12345, real(c).pid))
    with control._connect(served.server.path, 5.0) as stranger:
        answer = stranger.recv(65536)
        assert msgspec.msgpack.decode(answer[4:])["errno"] == errno.EACCES
        assert stranger.recv(1) == b""
