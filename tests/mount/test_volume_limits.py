"""Limits of a rank's process, and a worker that lags: an error for the call at most, bounded memory."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.calls import opened, pattern, put
from tests.mount.harness import Volume

pytestmark = [
    pytest.mark.limit(150),
    pytest.mark.skipif(os.geteuid() != 0, reason="limits of other processes need root"),
]
KIB, MIB = 1024, 1024 * 1024
ALLOWED = {errno.ENOMEM, errno.EMFILE, errno.EIO, errno.EAGAIN}
MEMORY_BOUND = 64 * MIB + 64 * MIB + 48 * MIB  # dirty buffers, their pool, packed and received.
Make = Callable[..., Volume]


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * KIB
    raise AssertionError


def mapped_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def limited(pid: int, what: int, value: int) -> Iterator[None]:
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (value, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


@contextlib.contextmanager
def lagging(pid: int) -> Iterator[None]:
    """A process that stands still four fifths of the time."""
    quit = threading.Event()

    def stutter() -> None:
        while not quit.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.08)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.02)

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        quit.set()
        thread.join()


def test_memory_and_files_run_out_and_a_worker_lags(volume: Make) -> None:
    one = volume(workers=2)
    status = one.status()
    master, workers = status["mount"]["pid"], [w["pid"] for w in status["workers"]]
    data = pattern(12 * MIB)
    put_for_good(one / "before", data)
    answers = []
    for pid in (*workers, master):
        for what, value in (
            (resource.RLIMIT_AS, mapped_bytes(pid) + 2 * MIB),
            (resource.RLIMIT_NOFILE, 5),
        ):
            with limited(pid, what, value):
                for number in range(3):
                    answers.append(try_all(one / f"x{number}", data))
            with opened(one / "before") as fd:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert (one / "before").read_bytes() == data
            put_for_good(one / "after", data)
            assert (one / "after").read_bytes() == data
    assert set().union(*answers) <= ALLOWED, answers
    status = one.status()
    assert [status["mount"]["pid"], *(w["pid"] for w in status["workers"])] == [master, *workers]
    check_lag(one, master, workers[0])
    one.umount()


def put_for_good(path: Path, data: bytes) -> None:
    """Nothing of it is on its way any more; sync(2) does not tell a FUSE file system anything."""
    put(path, data)
    with opened(path) as fd:
        os.fsync(fd)


def check_lag(one: Volume, master: int, worker: int) -> None:
    """Rank 0's memory stays bounded; the writer waits instead."""
    before, peak = anonymous_bytes(master), 0
    block = pattern(4 * MIB)
    with lagging(worker), opened(one / "long", os.O_RDWR | os.O_CREAT) as fd:
        for number in range(int(os.environ.get("MPIFS_LAG_MIB", "128")) // 4):
            os.pwrite(fd, block, number * len(block))
            peak = max(peak, anonymous_bytes(master))
        os.fsync(fd)
    print(f"rank 0: {before >> 20} MiB before, {peak >> 20} MiB at most")
    assert peak - before < MEMORY_BOUND


def try_all(path: Path, data: bytes) -> set[int]:
    """Writes, syncs, reads and removes; the errnos of what failed."""
    failed = set()

    def attempt(function: Callable[[], object]) -> None:
        try:
            function()
        except OSError as error:
            failed.add(error.errno)

    attempt(lambda: path.write_bytes(data))

    def sync() -> None:
        with opened(path) as fd:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    attempt(sync)

    def read() -> None:
        content = path.read_bytes()
        assert data.startswith(content), "wrong bytes"

    attempt(read)
    attempt(lambda: os.listdir(path.parent))
    attempt(path.unlink)
    return failed


@pytest.mark.skipif(os.environ.get("MPIFS_FAULTS") != "long", reason="MPIFS_FAULTS=long")
@pytest.mark.limit(400)
@pytest.mark.timeout(400)
def test_workers_that_never_finish_a_commit(volume: Make) -> None:
    """They answer pings and reads.  Who writes has an error at a deadline; readers notice nothing."""
    one = volume(workers=2, env={"MPIFS_FAULT": "store.writer:12:hang"})
    data = pattern(2 * MIB)
    put(one / "before", data)
    os.sync()
    began = time.monotonic()
    failed = None
    for number in range(40):
        try:
            with opened(one / f"f{number}", os.O_RDWR | os.O_CREAT) as fd:
                os.write(fd, data)
                os.fsync(fd)
        except OSError as error:
            failed = error
            break
    took_s = time.monotonic() - began
    print(f"{failed} after {took_s:.0f} s")
    assert failed is not None
    assert failed.errno == errno.EIO
    assert took_s < 200
    began = time.monotonic()
    assert (one / "before").read_bytes() == data
    assert len(os.listdir(one.mnt)) >= 1
    assert time.monotonic() - began < 5
    one.kill()
    one.mpifs("umount", one.mnt, check=False)
