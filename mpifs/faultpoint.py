"""Named places at which a test makes a process fail: die, hang, meet a full disk, damage a byte,
answer late.

`reach("name")`, `alter("name", buffer)` and `is_late("name")` cost one comparison while nothing is
asked for, and nothing in mpifs asks.  A test does, in the environment of the process:

    MPIFS_FAULT=name:N[:action]     from the Nth time that this process comes to `name`
        kill    SIGKILL of the process, as a crash would (the default; the Nth time)
        hang    reach() never returns, now and later
        full    reach() raises OSError(ENOSPC), now and later
        flip    alter() changes one byte of the buffer (the Nth time only)
        delay=T is_late() is true, now and later: the place hands what it does to later(), which
                does it T ms afterwards; many wait at once
    MPIFS_FAULT_ONCE=PATH           a kill or flip is done only by the process that makes this
                                    file: a restarted process with the same environment lives on
    MPIFS_FAULT_ARMED=PATH          nothing is counted before this file is there

The names and what they mean are listed in mpifs/doc/faults.md.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable

_ACTIONS = ("kill", "hang", "full", "flip", "delay")
_STEP_S = 60.0  # a hanging thread sleeps in steps; it has no end.


def _parse(text: str) -> tuple[str, int, str, float]:
    """(name, times, action, seconds of a delay) of MPIFS_FAULT.  Raises ValueError."""
    name, _, rest = text.partition(":")
    times, _, words = rest.partition(":")
    action, _, late_ms = words.partition("=")
    is_number = late_ms.replace(".", "", 1).isdigit()
    is_known = action in ("", *_ACTIONS) and (is_number if action == "delay" else words == action)
    if (times and not times.isdigit()) or not is_known:
        raise ValueError(f"MPIFS_FAULT={text} is not name[:N[:{'|'.join(_ACTIONS)}=MS]]")
    return name, int(times or 1), action or "kill", float(late_ms or 0) / 1000


_wanted, _times, _action, _late_s = _parse(os.environ.get("MPIFS_FAULT", ""))
_once = os.environ.get("MPIFS_FAULT_ONCE", "")
_armed = os.environ.get("MPIFS_FAULT_ARMED", "")
_count = 0  # guarded by _lock.
_lock = threading.Lock()


def reach(name: str) -> None:
    """Dies, hangs or raises OSError(ENOSPC) here if a test has asked for it; any thread."""
    if name == _wanted:
        _strike()


def alter(name: str, buffer: bytearray | memoryview) -> None:
    """Changes one byte in the middle of `buffer` (writable, of bytes) if a test has asked for it;
    any thread.  An empty buffer is not counted."""
    if name == _wanted and len(buffer) and _action == "flip" and _is_due() and _is_first():
        buffer[len(buffer) // 2] ^= 0x10


def is_asked(name: str) -> bool:
    """Whether a test wants something to happen at `name`: then nothing may go past it."""
    return name == _wanted


def is_late(name: str) -> bool:
    """Whether a test has asked that what is done here be done late, by `later`; any thread."""
    return name == _wanted and _action == "delay" and _is_due()


def later(action: Callable[[], None]) -> None:
    """Calls `action` after the time asked for, on a thread of its own that all share; returns at
    once, so that the caller serves others meanwhile."""
    global _timer  # noqa: PLW0603 - one thread in a process, made when it is needed.
    with _has_late:
        heapq.heappush(_late, (time.monotonic() + _late_s, next(_numbers), action))
        if _timer is None:
            _timer = threading.Thread(target=_do_late, name="late", daemon=True)
            _timer.start()
        _has_late.notify()


_numbers = itertools.count()  # of two actions due at one moment the first comes first.
_has_late = threading.Condition()
_late: list[tuple[float, int, Callable[[], None]]] = []  # guarded by _has_late, as is _timer.
_timer: threading.Thread | None = None


def _do_late() -> None:
    while True:
        with _has_late:
            while not _late or _late[0][0] > time.monotonic():
                _has_late.wait(_late[0][0] - time.monotonic() if _late else None)
            action = heapq.heappop(_late)[2]
        action()


def _strike() -> None:
    if _action in ("flip", "delay") or not _is_due():
        return
    if _action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if _action == "kill" and _is_first():
        os.kill(os.getpid(), signal.SIGKILL)
    while _action == "hang":
        time.sleep(_STEP_S)


def _is_due() -> bool:
    """Counts; whether the Nth time has come (once for kill and flip, from then on otherwise)."""
    global _count  # noqa: PLW0603 - counts the times of this process.
    if _armed and not os.path.exists(_armed):
        return False
    with _lock:
        _count += 1
        return _count == _times or (_count > _times and _action in ("hang", "full", "delay"))


def _is_first() -> bool:
    """Whether no other process has struck before."""
    if not _once:
        return True
    try:
        os.close(os.open(_once, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True
