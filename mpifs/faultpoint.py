"""Named places at which a test makes a process fail: die, hang, meet a full disk, damage a byte.

`reach("name")` and `alter("name", buffer)` cost one comparison while nothing is asked for, and
nothing in mpifs asks.  A test does, in the environment of the process:

    MPIFS_FAULT=name:N[:action]     from the Nth time that this process comes to `name`
        kill    SIGKILL of the process, as a crash would (the default; the Nth time)
        hang    reach() never returns, now and later
        full    reach() raises OSError(ENOSPC), now and later
        flip    alter() changes one byte of the buffer (the Nth time only)
    MPIFS_FAULT_ONCE=PATH           a kill or flip is done only by the process that makes this
                                    file: a restarted process with the same environment lives on
    MPIFS_FAULT_ARMED=PATH          nothing is counted before this file is there

The names and what they mean are listed in mpifs/doc/faults.md.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

_ACTIONS = ("kill", "hang", "full", "flip")
_STEP_S = 60.0  # a hanging thread sleeps in steps; it has no end.


def _parse(text: str) -> tuple[str, int, str]:
    """(name, times, action) of MPIFS_FAULT.  Raises ValueError."""
    name, _, rest = text.partition(":")
    times, _, action = rest.partition(":")
    if (times and not times.isdigit()) or action not in ("", *_ACTIONS):
        raise ValueError(f"MPIFS_FAULT={text} is not name[:N[:{'|'.join(_ACTIONS)}]]")
    return name, int(times or 1), action or "kill"


_wanted, _times, _action = _parse(os.environ.get("MPIFS_FAULT", ""))
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


def _strike() -> None:
    if _action == "flip" or not _is_due():
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
        return _count == _times or (_count > _times and _action in ("hang", "full"))


def _is_first() -> bool:
    """Whether no other process has struck before."""
    if not _once:
        return True
    try:
        os.close(os.open(_once, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True
