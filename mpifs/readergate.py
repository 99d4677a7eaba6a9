"""A gate that readers pass, and that can be held shut once nobody is inside.

An environment with a small map needs it: while LMDB exchanges the map nobody may look into it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mpifs.core.errors import FullError


class ReaderGate:
    """Any thread.  `_changed` guards both fields."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._inside = 0
        self._is_shut = False

    def enter(self) -> None:
        """Waits while the gate is held shut, which ends for certain."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut, 2 * self._wait_s)
            if self._is_shut:
                raise FullError("the map of an environment is being exchanged; try again")
            self._inside += 1

    def leave(self) -> None:
        """Once per `enter`; another thread may do it."""
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    @contextmanager
    def shut(self) -> Iterator[bool]:
        """Holds it shut for the block, if all leave it in time; whether they have.

        Requires: one thread at a time; it is not inside itself.
        """
        deadline = time.monotonic() + self._wait_s
        with self._changed:
            self._is_shut = True
            while self._inside and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)
            is_empty = not self._inside
            if not is_empty:
                self._is_shut = False
                self._changed.notify_all()
        try:
            yield is_empty
        finally:
            with self._changed:
                self._is_shut = False
                self._changed.notify_all()
