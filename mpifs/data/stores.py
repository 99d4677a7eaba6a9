"""What the data path asks of whoever knows the workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol


class Stores(Protocol):
    """The stores of a volume as they are served at the moment.  Any thread."""

    @property
    def free(self) -> Mapping[int, int]:
        """Bytes that each store could take when it was opened."""
        ...

    @property
    def disk_of(self) -> Mapping[int, str]:
        """A name of each store's disk, equal for stores that share one."""
        ...

    def rank_of(self, store: int) -> int:
        """The rank that serves a store.

        Raises LostStoreError when nobody does, for now (`may_return`) or in this job.
        """
        ...

    def is_serving(self, store: int) -> bool:
        """Whether a store answers at the moment."""
        ...

    def live_stores(self) -> list[int]:
        """The stores that answer, in the order of placement."""
        ...

    def placement_stores(self) -> list[int]:
        """The stores that get new chunks, in the order of placement; never empty."""
        ...

    def expected_count(self) -> int:
        """How many stores get new chunks once all that may return are back."""
        ...

    def may_return(self, stores: Iterable[int]) -> bool:
        """Whether one of the stores answers, or is waited for."""
        ...

    def await_serving(self, stores: Iterable[int], deadline: float) -> bool:
        """Waits until one of the stores answers; False when none may any more, or at the deadline
        (time.monotonic).  Whoever got no answer from a store calls this: it is looked at now."""
        ...
