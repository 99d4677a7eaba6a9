"""Who receives: one thread as a rule, and always somebody while others are held up."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable

from mpifs.fuse.options import THREADS_DEFAULT
from tests.fuse.conftest import Mounted

_SECONDS = 1.5


def sync(mounted: Mounted, number: int) -> None:
    """An fsync that takes a while."""
    path = mounted.path / f"slow{number}"
    path.write_bytes(b"takes %.1f" % _SECONDS)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def held_up(mounted: Mounted, count: int) -> list[threading.Thread]:
    """Threads whose fsyncs are under way."""
    threads = [threading.Thread(target=sync, args=(mounted, n)) for n in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    begun = 0
    while begun < count and time.monotonic() < deadline:
        begun += mounted.calls().get("fsync", 0)
    assert begun == count
    return threads


def test_held_up_requests_hold_up_no_others(mounted: Mounted) -> None:
    """Also with only one thread left; and those that wait do so side by side."""
    (mounted.path / "other").write_bytes(b"x")
    for count in (1, THREADS_DEFAULT - 1):
        began = time.monotonic()
        threads = held_up(mounted, count)
        for number in range(100):
            os.stat(mounted.path / "other")
            assert not os.path.exists(mounted.path / f"none{number}")
        assert all(thread.is_alive() for thread in threads)
        for thread in threads:
            thread.join(30)
        assert time.monotonic() - began < 3 * _SECONDS


def test_more_held_up_requests_than_threads_come_to_their_end(mounted: Mounted) -> None:
    threads = [threading.Thread(target=sync, args=(mounted, n)) for n in range(THREADS_DEFAULT + 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert os.listdir(mounted.path)


def test_after_a_rest_the_first_request_is_answered(mounted: Mounted) -> None:
    """The scout sleeps by then."""
    time.sleep(0.5)
    sync(mounted, 0)
    assert len(os.listdir(mounted.path)) == 1


def test_an_unmount_right_after_a_burst_ends_all_threads(
    mount_with: Callable[[str], Mounted],
) -> None:
    """They are let out of their parking all at once, while requests were dense."""
    for _ in range(6):
        mounted = mount_with("")
        end = time.monotonic() + 0.3
        number = 0
        while time.monotonic() < end:
            number += 1
            assert not os.path.exists(mounted.path / f"absent{number}")
        subprocess.run(["umount", "-l", str(mounted.path)], check=True)
        mounted.process.wait(20)
        assert "failed" not in mounted.log.read_text()
