"""`-o lowlatency`: processors stay awake while many requests come, and only then."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpifs.core.errors import StartError
from mpifs.core.limits import LATENCY_LOOK_S, LATENCY_RATE_MIN
from mpifs.fuse.latency import DEVICE, CpuLatency
from tests.fuse.conftest import Mounted

ANY = 2_000_000_000


def told(path: Path) -> list[int]:
    return [value for (value,) in struct.iter_unpack("=i", path.read_bytes())]


def test_only_while_many_requests_come(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.touch()
    latency = CpuLatency(str(device))
    step = 0.0625  # exact in binary
    assert step / 2 < LATENCY_LOOK_S <= step
    many = int(LATENCY_RATE_MIN * step) + 1
    latency.note(1, 100.0)
    latency.note(1 + many, 100.0 + step / 2)  # too early to tell.
    assert told(device) == []
    latency.note(1 + many, 100.0 + step)
    latency.note(1 + 2 * many, 100.0 + 2 * step)
    assert told(device) == [0]
    latency.note(2 + 2 * many, 100.0 + 3 * step)
    assert told(device) == [0, ANY]
    latency.note(2 + 4 * many, 100.0 + 4 * step)
    latency.relax()
    latency.relax()
    assert told(device) == [0, ANY, 0, ANY]
    latency.close()


def test_a_machine_without_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"'lowlatency' needs .*/device: No such file"):
        CpuLatency(str(tmp_path / "device"))


def current() -> int:
    """What holds for the machine just now."""
    with open(DEVICE, "rb", buffering=0) as file:
        (value,) = struct.unpack("=i", file.read(4))
    assert isinstance(value, int)
    return value


def becomes(wanted: Callable[[int], bool], act: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 10.0
    while not wanted(current()):
        if time.monotonic() > deadline:
            return False
        act()
    return True


@pytest.mark.skipif(not os.access(DEVICE, os.R_OK | os.W_OK), reason=f"{DEVICE} is not ours")
@pytest.mark.parametrize("major", [3, 2])
@pytest.mark.parametrize("threads", [1, 8])
def test_of_a_mount(mount_with: Callable[[str], Mounted], threads: int) -> None:
    before = current()
    if before == 0:
        pytest.skip("somebody else keeps this machine awake")
    mounted = mount_with(f"lowlatency,threads={threads},attr_timeout=0")

    def ask() -> None:
        for _ in range(200):
            mounted.path.stat()

    assert current() == before
    assert becomes(lambda value: value == 0, ask)
    assert becomes(lambda value: value == before, lambda: time.sleep(0.02))
