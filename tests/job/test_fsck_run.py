"""A run of verify as its client sees it: backpressure, cancelling, turns; over a real socket."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mpifs.core.errors import DamageError, PosixError
from mpifs.core.limits import FSCK_PAGE_COUNT, FSCK_QUEUE_COUNT_MAX
from mpifs.job.control import ControlClient, ControlServer
from mpifs.job.fsck_run import CANCELLED, DONE, FAILED, RUNNING, FsckRun
from mpifs.job.fsck_service import ChecksTurn, FsckService
from mpifs.repair.findings import DAMAGE, CancelledError, Finding

Check = Callable[[FsckRun], None]


def finding(number: int, *, repaired: bool = False) -> Finding:
    return Finding("check_x", DAMAGE, f"number {number}", path=b"/\xff", repaired=repaired)


class Served:
    """A service with its control socket; `check` may be set before each run."""

    def __init__(self, folder: Path) -> None:
        self.check: Check = lambda run: None
        self.turn = ChecksTurn()
        self.service = FsckService(self._check, self.turn)
        self.control = ControlServer(str(folder / "run" / "control.sock"))
        self.service.register(self.control)
        self.control.start()

    def _check(self, run: FsckRun) -> None:
        self.check(run)

    def client(self) -> ControlClient:
        return ControlClient(self.control.path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.service.close()
    made.control.close()


def drain(client: ControlClient) -> tuple[list[str], list[str], str, str]:
    """Details, notes, state and reason of a run polled to its end."""
    found: list[str] = []
    notes: list[str] = []
    while True:
        answer = client.call("fsck.poll")
        assert len(answer["findings"]) <= FSCK_PAGE_COUNT
        found += [each["detail"] for each in answer["findings"]]
        notes += answer["notes"]
        if answer["state"] != RUNNING:
            assert answer["progress"]["found"] == len(found)
            return found, notes, answer["state"], answer["reason"]


def test_findings_come_in_order_and_the_checks_wait_for_the_reader(served: Served) -> None:
    count = 3 * FSCK_QUEUE_COUNT_MAX
    reported: list[int] = []

    def check(run: FsckRun) -> None:
        for number in range(count):
            run.report(finding(number, repaired=number % 2 == 0))
            reported.append(number)
        run.note("a note")

    served.check = check
    with served.client() as client:
        client.call("fsck.start", repair=False, data=True)
        time.sleep(0.5)
        assert len(reported) == FSCK_QUEUE_COUNT_MAX  # nobody has polled yet.
        found, notes, state, _ = drain(client)
    assert (notes, state) == (["a note"], DONE)
    assert found == [f"number {number}" for number in range(count)]


def test_document_of_a_finding(served: Served) -> None:
    served.check = lambda run: run.report(finding(1))
    with served.client() as client:
        client.call("fsck.start", repair=True, data=False)
        answer = client.call("fsck.poll")
    assert answer["findings"] == [
        {
            "check": "check_x",
            "severity": "damage",
            "path": "/\\xff",
            "inode": None,
            "chunk": None,
            "worker": None,
            "detail": "number 1",
            "repaired": False,
        }
    ]


@pytest.mark.parametrize("way", ["cancel", "gone", "close"])
def test_a_run_that_waits_for_its_reader_can_be_ended(served: Served, way: str) -> None:
    ended = threading.Event()

    def check(run: FsckRun) -> None:
        try:
            for number in range(FSCK_QUEUE_COUNT_MAX + 1):
                run.report(finding(number))
        except CancelledError:
            ended.set()
            raise

    served.check = check
    with ExitStack() as held:
        client = held.enter_context(served.client())
        client.call("fsck.start", repair=False, data=True)
        time.sleep(0.3)
        assert not ended.is_set()
        if way == "cancel":
            client.call("fsck.cancel")
            found, _, state, reason = drain(client)
            assert (len(found), state, reason) == (FSCK_QUEUE_COUNT_MAX, CANCELLED, "interrupted")
        elif way == "gone":
            client.close()
        else:
            closer = threading.Thread(target=served.service.close)
            closer.start()
            assert drain(client)[2:] == (CANCELLED, "the volume is being stopped")
            closer.join(10)
            with pytest.raises(PosixError, match="being stopped"):
                client.call("fsck.start", repair=False, data=True)
        assert ended.wait(5)


def test_one_run_at_a_time_and_it_belongs_to_its_client(served: Served) -> None:
    go = threading.Event()
    served.check = lambda run: (go.wait(20), None)[1]
    with served.client() as first, served.client() as second:
        first.call("fsck.start", repair=False, data=True)
        with pytest.raises(PosixError, match="another check") as refused:
            second.call("fsck.start", repair=False, data=True)
        assert refused.value.errno == errno.EBUSY
        for call in ("fsck.poll", "fsck.cancel"):
            with pytest.raises(PosixError, match="has started no check"):
                second.call(call)
        go.set()
        assert drain(first)[2] == DONE
        second.call("fsck.start", repair=False, data=True)
        assert drain(second)[2] == DONE


def test_a_run_that_fails_says_why(served: Served) -> None:
    def damaged(run: FsckRun) -> None:
        run.report(finding(1))
        raise DamageError("the index is a mess")

    def defect(run: FsckRun) -> None:
        raise KeyError("no sentence")

    with served.client() as client:
        served.check = damaged
        client.call("fsck.start", repair=False, data=True)
        assert drain(client) == (["number 1"], [], FAILED, "the index is a mess")
        served.check = defect
        client.call("fsck.start", repair=False, data=True)
        state, reason = drain(client)[2:]
    assert state == FAILED
    assert "its log" in reason


def test_arguments_are_checked(served: Served) -> None:
    with served.client() as client, pytest.raises(OSError, match="without its arguments"):
        client.call("fsck.start", repair="yes")


def test_turn_goes_to_who_waits_before_who_may() -> None:
    turn = ChecksTurn()
    order: list[str] = []
    with turn.take_if_free() as mine:
        assert mine
        waiter = threading.Thread(target=lambda: _take(turn, order))
        waiter.start()
        deadline = time.monotonic() + 5
        while not turn.is_wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert turn.is_wanted
        with turn.take_if_free() as again:
            assert not again
        order.append("scrub")
    waiter.join(5)
    assert order == ["scrub", "fsck"]
    assert not turn.is_wanted
    with turn.take(0.1), pytest.raises(PosixError, match="another check"), turn.take(0.1):
        pass


def _take(turn: ChecksTurn, order: list[str]) -> None:
    with turn.take(5):
        order.append("fsck")
