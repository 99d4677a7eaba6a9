"""Named places at which a test may end this process, as a crash would.

`reach("name")` costs one comparison.  MPIFS_FAULT="name:3" in the environment ends the process
with SIGKILL when `name` is reached for the third time; nothing in mpifs sets it.
"""

from __future__ import annotations

import os
import signal
import threading

_wanted, _, _times = os.environ.get("MPIFS_FAULT", "").partition(":")
_left = int(_times) if _times.isdigit() else 1
_lock = threading.Lock()


def reach(name: str) -> None:
    """Dies here if a test has asked for it; any thread."""
    if name == _wanted:
        _strike()


def _strike() -> None:
    global _left  # noqa: PLW0603 - counts down to the one strike of this process.
    with _lock:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
