"""Fault points: each action in a process of its own, as a test of the product uses them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from mpifs import faultpoint
for number in range(1, 5):
    try:
        faultpoint.reach("other")
        faultpoint.reach("here")
        buffer = bytearray(8)
        faultpoint.alter("here", bytearray())
        faultpoint.alter("here", memoryview(buffer))
        print(number, buffer.hex().strip("0") or "-", flush=True)
    except OSError as error:
        print(number, error.strerror, flush=True)
"""


def run(fault: str, timeout_s: float = 20, **more: object) -> tuple[int, list[str]]:
    """Exit code and lines of the program above under a fault."""
    env = {"MPIFS_FAULT": fault} | {f"MPIFS_FAULT_{key}": str(more[key]) for key in more}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode <= 0 or "ValueError" in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


CLEAN = ["1 -", "2 -", "3 -", "4 -"]


@pytest.mark.parametrize("fault", ["", "elsewhere:1", "here:5", "here:5:hang"])
def test_nothing_happens_unasked(fault: str) -> None:
    assert run(fault) == (0, CLEAN)


@pytest.mark.parametrize(("fault", "lines"), [("here", 0), ("here:1", 0), ("here:3:kill", 2)])
def test_kill_at_the_nth_time(fault: str, lines: int) -> None:
    assert run(fault) == (-signal.SIGKILL, CLEAN[:lines])


def test_only_the_first_process_strikes(tmp_path: Path) -> None:
    once = tmp_path / "struck"
    assert run("here:2", ONCE=once) == (-signal.SIGKILL, CLEAN[:1])
    assert once.exists()
    assert run("here:2", ONCE=once) == (0, CLEAN)


def test_nothing_is_counted_before_it_is_armed(tmp_path: Path) -> None:
    armed = tmp_path / "armed"
    assert run("here:1", ARMED=armed) == (0, CLEAN)
    armed.touch()
    assert run("here:1", ARMED=armed) == (-signal.SIGKILL, [])


def test_flip_changes_one_byte_once() -> None:
    assert run("here:2:flip") == (0, ["1 -", "2 1", "3 -", "4 -"])


def test_full_from_the_nth_time_on() -> None:
    full = "No space left on device"
    assert run("here:3:full") == (0, ["1 -", "2 -", f"3 {full}", f"4 {full}"])


def test_hang_never_returns() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run("here:2:hang", timeout_s=2)
    assert caught.value.stdout == b"1 -\n"


@pytest.mark.parametrize(
    "fault",
    ["here:x", "here:1:explode", "here:-1", "here:1:delay", "here:1:delay=x", "here:1:kill=5"],
)
def test_a_wrong_request_is_refused(fault: str) -> None:
    assert run(fault) == (1, [])


LATE = """
import threading, time
from mpifs import faultpoint
began, done, all_done = time.monotonic(), [], threading.Event()
for number in range(8):
    def act(number=number):
        done.append(number)
        if number == 7:
            all_done.set()
    assert faultpoint.is_late("here") == (number > 0)
    assert not faultpoint.is_late("other")
    faultpoint.reach("here")
    faultpoint.later(act)
asked = time.monotonic() - began
assert all_done.wait(10)
took = time.monotonic() - began
print(done == list(range(8)), asked < 0.1, 0.2 <= took < 1.0)
"""


def test_late_actions_wait_side_by_side() -> None:
    env = {"MPIFS_FAULT": "here:2:delay=200"}
    done = subprocess.run([sys.executable, "-c", LATE], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True True True\n", "")
