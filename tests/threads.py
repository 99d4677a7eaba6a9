"""Threads that do the same thing at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def all_at_once(work: Callable[[T], object], values: Iterable[T], limit_s: float = 60) -> None:
    """Calls `work` with each value, in a thread of its own each; fails if one has not ended after
    the limit."""
    threads = [threading.Thread(target=work, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(limit_s)
    assert not any(thread.is_alive() for thread in threads)
