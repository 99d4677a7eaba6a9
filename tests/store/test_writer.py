"""The writing thread: who is told when, and for whom it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from mpifs.core.errors import FullError, MpifsError
from mpifs.core.limits import KIB, MIB, STREAM_BYTES_MIN, STREAM_GROUP_BYTES
from mpifs.core.types import ChunkKey
from mpifs.store import writer as writer_module
from mpifs.store.chunks import Change
from mpifs.store.writer import Job, Writer
from tests.threads import all_at_once

LONG_S = 30.0
"""That nobody waits in these tests, but where something is wrong."""


class Disk:
    """A store that notes what is done with it; its transactions wait while `gate` is closed."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.bad: set[int] = set()

    def apply(self, changes: Sequence[Change]) -> None:
        self.entered.set()
        assert self.gate.wait(LONG_S)
        self.events.append(f"apply {len(changes)}")
        if any(key.inode in self.bad for change in changes for key in change.deletes):
            raise FullError("full")

    def delete_many(self, keys: Sequence[ChunkKey]) -> None:
        self.events.append("delete")
        if any(key.inode in self.bad for key in keys):
            raise FullError("full")

    def looked(self) -> None:
        self.events.append("look")

    @property
    def groups(self) -> list[int]:
        return [int(event.split()[1]) for event in self.events if event.startswith("apply")]


class Queue:
    """A writer with that store; jobs of any size, and who was told what."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.writer = Writer(self.disk, after_commit=self.disk.looked)
        self.told: list[MpifsError | None] = []
        self._told = threading.Semaphore(0)

    def submit(self, size: int, number: int = 1, action: Callable[[], None] | None = None) -> None:
        change = Change(deletes=[ChunkKey(number, 0, 1)])
        assert self.writer.submit(Job(change, size, self._done, action))

    def _done(self, failure: MpifsError | None) -> None:
        self.disk.events.append("told")
        self.told.append(failure)
        self._told.release()

    def await_told(self, count: int, timeout_s: float = 5.0) -> None:
        for _ in range(count):
            assert self._told.acquire(timeout=timeout_s)

    def hold(self) -> None:
        """A job is being committed, until the disk's gate is opened."""
        self.disk.gate.clear()
        self.disk.entered.clear()
        self.submit(1)
        assert self.disk.entered.wait(5)

    def together(self, *sizes: int, first: int = 1) -> None:
        """Jobs that gather while a single one before them is being committed."""
        self.hold()
        for number, size in enumerate(sizes, first):
            self.submit(size, number)
        self.disk.gate.set()
        self.await_told(1 + len(sizes))

    def stream(self) -> None:
        """Now it knows that large jobs come in a row; a group of two has shown it."""
        self.together(MIB, MIB)
        assert self.disk.groups[-1] == 2
        self.disk.events.clear()


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """It would wait for long."""
    monkeypatch.setattr(writer_module, "STREAM_WAIT_S", LONG_S)
    made = Queue()
    yield made
    made.disk.gate.set()
    made.writer.stop(lambda: None)
    assert made.writer.join(5)


def test_a_look_after_each_transaction_before_anybody_is_told(queue: Queue) -> None:
    queue.submit(1)
    queue.await_told(1)
    assert queue.disk.events == ["apply 1", "look", "told"]
    queue.disk.events.clear()
    queue.together(1, 1, 1)
    assert queue.disk.events == ["apply 1", "look", "told", "apply 3", "look", *["told"] * 3]
    assert queue.told == [None] * 5


def test_a_look_after_each_attempt_of_a_failed_group(queue: Queue) -> None:
    queue.disk.bad = {2}
    queue.together(1, 1, 1)
    assert queue.disk.events == [
        *("apply 1", "look", "told"),
        *("apply 3", "look"),
        *("delete", "look", "told") * 3,
    ]
    assert [failure is None for failure in queue.told] == [True, True, False, True]


def test_a_failed_put_is_tried_once(queue: Queue) -> None:
    """Alone it would fail again."""

    def fail(changes: Sequence[Change]) -> None:
        queue.disk.events.append("apply")
        raise FullError("full")

    queue.disk.apply = fail  # type: ignore[method-assign]  # a test's store
    assert queue.writer.submit(Job(Change(), 1, queue._done))
    queue.await_told(1)
    assert queue.disk.events == ["apply", "look", "told"]
    assert isinstance(queue.told[0], FullError)


def test_an_action_is_alone_and_not_looked_after(queue: Queue) -> None:
    queue.hold()
    queue.submit(1)
    queue.submit(1, action=lambda: queue.disk.events.append("action"))
    queue.submit(1)
    queue.disk.gate.set()
    queue.await_told(4)
    once = ["apply 1", "look", "told"]
    assert queue.disk.events == [*once, *once, "action", "told", *once]


def test_a_stream_is_gathered(queue: Queue) -> None:
    """As soon as enough is there, and not before; then it is a stream still."""
    count = STREAM_GROUP_BYTES // MIB
    queue.stream()
    for turn in range(1, 4):
        for _ in range(count - 1):
            queue.submit(MIB)
            time.sleep(0.005)
        time.sleep(0.05)
        assert queue.disk.groups == [count] * (turn - 1)
        queue.submit(MIB)
        queue.await_told(count)
        assert queue.disk.groups == [count] * turn


def test_one_large_job_may_be_enough(queue: Queue) -> None:
    queue.stream()
    queue.submit(STREAM_GROUP_BYTES)
    queue.await_told(1)
    assert queue.disk.groups == [1]


def test_it_waits_for_a_moment_only(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come is not waited for twice: it is no stream any more."""
    monkeypatch.setattr(writer_module, "STREAM_WAIT_S", 0.3)
    queue.stream()
    begun = time.monotonic()
    queue.submit(MIB)
    queue.await_told(1)
    assert 0.25 < time.monotonic() - begun < 3
    monkeypatch.setattr(writer_module, "STREAM_WAIT_S", LONG_S)
    for _ in range(3):
        queue.submit(MIB)
        queue.await_told(1)


def test_what_is_queued_when_the_moment_is_over_goes_together(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "STREAM_WAIT_S", 0.5)
    queue.stream()
    for _ in range(3):
        queue.submit(MIB)
    queue.await_told(3)
    assert queue.disk.groups == [3]


@pytest.mark.parametrize("size", [1, 4 * KIB, MIB, STREAM_BYTES_MIN, 3 * MIB])
def test_jobs_one_by_one_never_wait(queue: Queue, size: int) -> None:
    begun = time.monotonic()
    for _ in range(50):
        queue.submit(size)
        queue.await_told(1)
    assert time.monotonic() - begun < 5
    assert queue.disk.groups == [1] * 50


def test_small_jobs_never_wait(queue: Queue) -> None:
    """However many come at once."""
    size = (STREAM_BYTES_MIN - 1) // 50
    for _ in range(10):
        queue.together(*[size] * 50)
    assert queue.disk.groups == [1, 50] * 10
    queue.submit(size)
    queue.await_told(1)


def test_the_moment_is_short() -> None:
    """With the real limits a stream that ends, and one that trickles, lose hardly anything."""
    queue = Queue()
    begun = time.monotonic()
    for _ in range(20):
        queue.together(MIB, MIB)
        queue.submit(MIB)
        queue.await_told(1)
    assert time.monotonic() - begun < 5
    queue.writer.stop(lambda: None)
    assert queue.writer.join(5)


def test_the_end_does_not_wait(queue: Queue) -> None:
    """Neither for more of a stream, nor without telling whoever is queued."""
    queue.stream()
    queue.submit(MIB)
    queue.submit(MIB)
    time.sleep(0.05)
    assert queue.disk.groups == []
    begun = time.monotonic()
    ended = threading.Event()
    assert queue.writer.stop(ended.set)
    assert queue.writer.join(5)
    assert time.monotonic() - begun < 5
    assert ended.is_set()
    assert queue.disk.events == ["apply 2", "look", "told", "told"]
    assert not queue.writer.submit(Job(Change(), 1, queue._done))
    assert not queue.writer.stop(ended.set)


def test_the_end_comes_before_the_stream_goes_on(queue: Queue) -> None:
    queue.stream()
    begun = time.monotonic()
    assert queue.writer.stop(lambda: None)
    assert queue.writer.join(5)
    assert time.monotonic() - begun < 5


def test_submitters_of_a_stream(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has one job at a time under way, so the last ones never come: nobody is forgotten."""
    monkeypatch.setattr(writer_module, "STREAM_WAIT_S", 0.003)
    told = [0] * 4

    def work(number: int) -> None:
        done = threading.Semaphore(0)
        for _ in range(60):
            job = Job(Change(deletes=[ChunkKey(1, 0, 1)]), MIB, lambda _: done.release())
            assert queue.writer.submit(job)
            assert done.acquire(timeout=10)
            told[number] += 1

    all_at_once(work, range(4), 30)
    assert told == [60] * 4
    assert sum(queue.disk.groups) == 240
    assert queue.disk.events.count("look") == len(queue.disk.groups)
