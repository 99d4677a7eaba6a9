"""Garbage waits while names change, but not for long, and not while there is little room."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpifs.core.limits import CLEAN_DELAY_MAX_S, CLEAN_REST_S
from mpifs.core.types import Caller
from mpifs.job.assembly import VfsOptions
from mpifs.vfs import committer as committer_module
from mpifs.vfs.facade import Vfs
from tests.vfs.loopback import LoopbackVolume

ME = Caller(0, 0)
CHUNK = 64 * 1024
LONG_S = 600.0


class Busy:
    """Somebody moves a name to and fro without a pause (in a `with` block): no garbage of it."""

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.failure: OSError | None = None

    def _work(self) -> None:
        try:
            self._vfs.mkdir(b"/to", 0o755, ME)
            while not self._is_over.is_set():
                self._vfs.rename(b"/to", b"/fro")
                self._vfs.rename(b"/fro", b"/to")
                time.sleep(0.001)
        except OSError as error:
            self.failure = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(30)
        assert self.failure is None


class Cleaned:
    """A volume whose committer ticks often, with a file to remove; when it has cleaned up."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.volume = LoopbackVolume(folder, workers=2, chunk_size=CHUNK)
        self.vfs = self.volume.open(VfsOptions(commit_interval_s=0.02))
        fh = self.vfs.create(b"/file", 0o644, os.O_WRONLY, ME)
        self.vfs.write(fh, memoryview(os.urandom(4 * CHUNK)), 0)
        self.vfs.fsync(fh)
        self.vfs.release(fh)
        self.times: list[float] = []
        clean_up = self.vfs.committer.clean_up

        def noted() -> bool:
            self.times.append(time.monotonic())
            return clean_up()

        patch.setattr(self.vfs.committer, "clean_up", noted)

    def chunks(self) -> int:
        """In all stores."""
        count = 0
        for service in self.volume.services.values():
            assert service.store is not None, "it has heard nothing for long"
            count += service.store.stats().chunks
        return count

    def await_true(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10.0
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def await_turn(self) -> None:
        """Until it has cleaned up once while names change: from then on it may wait."""
        count = len(self.times)
        self.vfs.committer._clean_until_s = 0.0  # the turn may have been before the names changed
        self.await_true(lambda: len(self.times) > count)
        time.sleep(0.2)  # There is nothing to do, so it is over by now.


@pytest.fixture
def cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cleaned]:
    made = Cleaned(tmp_path / "volume", monkeypatch)
    assert made.chunks() == 4
    yield made
    made.volume.close()


def limit(patch: pytest.MonkeyPatch, *, rest_s: float, delay_s: float) -> None:
    patch.setattr(committer_module, "CLEAN_REST_S", rest_s)
    patch.setattr(committer_module, "CLEAN_DELAY_MAX_S", delay_s)


def test_it_waits_while_names_change_and_goes_once_they_rest(
    cleaned: Cleaned, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, rest_s=1.0, delay_s=LONG_S)
    vfs = cleaned.vfs
    with Busy(vfs):
        cleaned.await_turn()
        vfs.unlink(b"/file")
        cleaned.times.clear()
        commits = vfs.committer.commits
        time.sleep(1.0)
        assert vfs.committer.commits > commits + 3, "only the cleaning waits"
        assert not cleaned.times
        assert cleaned.chunks() == 4
    cleaned.await_true(lambda: not cleaned.chunks())
    assert not vfs.index.orphans(9)
    cleaned.await_true(lambda: not vfs.index.garbage(9))


def test_it_waits_no_longer_than_a_while(cleaned: Cleaned, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, rest_s=LONG_S, delay_s=0.4)
    with Busy(cleaned.vfs):
        cleaned.await_turn()
        cleaned.vfs.unlink(b"/file")
        cleaned.await_true(lambda: not cleaned.chunks())
        cleaned.times.clear()
        time.sleep(2.0)
        times = list(cleaned.times)
    assert 1 <= len(times) <= 6, "one in 0.4 s, of 100 ticks or more"


def test_it_never_waits_for_names_that_rest(
    cleaned: Cleaned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the middle of a long delay, nor for writers."""
    limit(monkeypatch, rest_s=0.0, delay_s=LONG_S)
    fh = cleaned.vfs.create(b"/other", 0o644, os.O_WRONLY, ME)
    with Busy(cleaned.vfs):
        cleaned.vfs.write(fh, memoryview(b"x" * CHUNK), 0)
        cleaned.vfs.unlink(b"/file")
        cleaned.await_true(lambda: cleaned.chunks() == 1)
        for number in range(5):
            cleaned.vfs.write(fh, memoryview(b"%d" % number * CHUNK), 0)
            cleaned.vfs.fsync(fh)
        cleaned.await_true(lambda: cleaned.chunks() == 1)


@pytest.mark.parametrize("what", ["index", "stores"])
def test_it_never_waits_where_room_is_scarce(
    cleaned: Cleaned, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    limit(monkeypatch, rest_s=LONG_S, delay_s=LONG_S)
    with Busy(cleaned.vfs):
        cleaned.await_turn()
        if what == "index":
            room = cleaned.vfs.index.room
            monkeypatch.setattr(room, "_free", lambda: room.reserve_bytes * 3 // 2)
            cleaned.await_true(lambda: room.is_tight)
            assert not room.is_full
        else:
            monkeypatch.setattr(cleaned.vfs.writeback, "is_tight", lambda: True)
        cleaned.vfs.unlink(b"/file")
        cleaned.await_true(lambda: not cleaned.chunks())


def test_the_end_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was removed just before is gone when the volume is closed."""
    limit(monkeypatch, rest_s=LONG_S, delay_s=LONG_S)
    made = Cleaned(tmp_path / "volume", monkeypatch)
    made.vfs.unlink(b"/file")
    made.volume.close()
    made.volume.open()
    assert made.chunks() == 0
    made.volume.close()


def test_the_limits_are_short() -> None:
    """Nobody sees deleted files take room for long."""
    assert CLEAN_REST_S <= 0.1
    assert CLEAN_DELAY_MAX_S <= 5
