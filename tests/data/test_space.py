"""Free bytes of stores that share disks."""

from __future__ import annotations

from mpifs.data.space import Space


def test_shared_disks_count_once() -> None:
    """Four stores on one disk see its free bytes four times."""
    one = Space(dict.fromkeys(range(1, 5), 1000), dict.fromkeys(range(1, 5), "a"))
    assert one.free_bytes(1) == 1000
    assert one.free_bytes(2) == 500
    own = Space(dict.fromkeys(range(1, 5), 1000), {n: str(n) for n in range(1, 5)})
    assert own.free_bytes(1) == 4000


def test_the_disk_that_is_full_first_decides() -> None:
    """Three quarters of all bytes go to the disk with three stores."""
    space = Space({1: 300, 2: 300, 3: 300, 4: 1000}, {1: "a", 2: "a", 3: "a", 4: "b"})
    assert space.free_bytes(1) == 400
    space.told(4, 20)
    assert space.free_bytes(1) == 80
    assert Space({}, {}).free_bytes(1) == 0
