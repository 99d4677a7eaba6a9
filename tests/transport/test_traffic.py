"""Counting by many threads loses nothing, those that have ended included."""

from __future__ import annotations

import threading

from mpifs.transport.traffic import Sum, Traffic


def test_threads_count_together() -> None:
    """Sums are exact once the threads have ended, and never fall while they run."""
    traffic = Traffic()

    def count() -> None:
        for number in range(1000):
            traffic.count(number % 3, 0.5, 10, 1)

    seen = 0
    for _ in range(5):
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            now = sum(row.requests for row in traffic.sums().values())
            assert now >= seen
            seen = now
        for thread in threads:
            thread.join()
    sums = traffic.sums()
    assert sum(row.requests for row in sums.values()) == 20000
    assert sums[1] == Sum(333 * 20, 333 * 200, 333 * 20, 333 * 10.0)
