"""The work of healing inside the job of a volume, while it is used: lost copies made anew, stores
that are being drained emptied, bytes evened out between stores.

Nothing is remembered between two passes: index and stores say what is left to do.  Used by the one
thread of HealService, which has the turn of the checks meanwhile (ChecksTurn).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mpifs.core.errors import FullError, MpifsError
from mpifs.core.types import StoreState
from mpifs.index.index import Index
from mpifs.job.crew import Crew
from mpifs.job.roster import LOST
from mpifs.repair.check_chunks import check_chunks
from mpifs.repair.findings import LEFTOVER, Finding, Progress
from mpifs.repair.findings import LOST as LOST_BYTES
from mpifs.repair.heal import Cure, Healing
from mpifs.repair.moves import Departure, Evening, Targets
from mpifs.repair.shortfall import Shortfall, shortfall
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume_live import LiveVolume
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs

log = logging.getLogger(__name__)

_HEALED = frozenset(
    (
        "check_copy_is_listed",
        "check_copy_header",
        "check_copy_is_there",
        "check_copy_is_in_its_place",
        "check_copy_length",
        "check_copy_checksum",
        "check_copy_store",
        "check_chunk_has_its_replicas",
        "check_no_store_holds_a_copy_too_many",
    )
)
"""What healing puts right; anything else that is wrong is for `mpifs fsck`."""


@dataclass(slots=True)
class PassResult:
    """What a pass has done: copies that are right now, and chunks that still lack one, either
    because no store can take it (`waiting`) or because no copy is left (`lost`)."""

    healed: int = 0
    waiting: int = 0
    lost: int = 0


class HealWork:
    """`on_copied` hears of payload bytes after each step; it may wait and raise CancelledError."""

    def __init__(
        self,
        index: Index,
        vfs: Vfs,
        client: Client,
        crew: Crew,
        on_copied: Callable[[int], None],
    ) -> None:
        self._index = index
        self._vfs = vfs
        self._client = client
        self._crew = crew
        self._on_copied = on_copied

    def lost_stores(self) -> frozenset[int]:
        """The stores that this job has given up."""
        return frozenset(w.store for w in self._crew.workers if w.state == LOST)

    def draining(self) -> frozenset[int]:
        """The stores that are to be emptied."""
        entries = self._index.stores()
        return frozenset(int(e.store) for e in entries if e.state is StoreState.DRAINING)

    def shortfall(self, progress: Progress) -> tuple[Shortfall, int]:
        """What is missing, and the bytes that are to be made anew.  Raises CancelledError."""
        lost, draining = self.lost_stores(), self.draining()
        found = shortfall(
            self._view(),
            lost=lost,
            draining=draining - lost,
            placing=len(self._index.stores()) - len(draining),
            progress=progress,
        )
        held = {store: stats.bytes for store, stats in self._crew.stats().items()}
        return found, found.missing + found.unfilled(held)

    def heal(
        self, start: bytes, progress: Progress, reached: Callable[[bytes], None]
    ) -> PassResult:
        """One look at all chunks behind the position `start`, headers only; what lacks a copy gets
        one.  `reached` hears of positions before which all is done, and may raise to end it.

        Raises CancelledError, MpifsError.
        """
        result = PassResult()
        checks = check_chunks(
            self._view(),
            self._access(),
            data=False,
            progress=progress,
            start=start,
            on_position=reached,
        )
        for finding in checks:
            if finding.check in _HEALED:
                self._remedy(finding, result)
        return result

    def _remedy(self, finding: Finding, result: PassResult) -> None:
        if finding.remedy is not None:
            try:
                finding.repaired = finding.remedy()
            except MpifsError as error:
                log.warning("heal: %s: %s", finding.check, error)
        if finding.repaired:
            result.healed += 1
        elif finding.severity == LOST_BYTES:
            result.lost += 1
        elif finding.severity != LEFTOVER:
            result.waiting += 1

    def depart(self, progress: Progress) -> Departure:
        """Moves what it can off the stores that are being drained: one pass over the index.

        Chunks that are being written go where the index does not yet say, so a pass finds none
        left only if `settle` came before it.  Raises CancelledError, MpifsError.
        """
        view = self._view()
        view.settle()
        departure = Departure(self.draining(), self.targets())
        self._move(departure.plan(view, progress), departure.targets)
        return departure

    def plan_evening(self, progress: Progress) -> Evening:
        """What there is to even out.  Raises CancelledError."""
        self._view().settle()
        targets = self.targets()
        used = self.shortfall(progress)[0].named_on(targets.order)
        return Evening(used, targets, self._index.geometry.chunk_size // 2)

    def even_out(self, evening: Evening, progress: Progress) -> None:
        """Carries it out.  Raises CancelledError, MpifsError."""
        self._move(evening.plan(self._view(), progress), evening.targets)

    def _move(self, batches: Iterator[list[Cure]], targets: Targets) -> None:
        access = self._access()
        for cures in batches:
            Healing(self._view(), access).run(cures)
            for cure in cures:
                error = cure.error
                if isinstance(error, FullError) or (error and error.errno == errno.ENOSPC):
                    targets.full.update(cure.copies)

    def targets(self) -> Targets:
        """The stores that take chunks, and what they can still take as they say now."""
        stats = self._crew.stats()
        draining = self.draining()
        order = [store for store in self._crew.live_stores() if store not in draining]
        free = {store: stats[store].free for store in order if store in stats}
        return Targets(order, free, frozenset(self._crew.live_stores()))

    def view(self) -> LiveVolume:
        """The index."""
        return self._view()

    def _view(self) -> LiveVolume:
        return LiveVolume(self._index, self._vfs.committer.settle)

    def _access(self) -> StoreAccess:
        """Stores that serve.  Of one that is being brought back nothing is known: it counts as
        having fallen silent, lest all that it holds be copied."""
        live = set(self._crew.live_stores())
        access = StoreAccess(
            self._client,
            self._crew.rank_of,
            live,
            self._index.geometry.checksum,
            await_serving=self._crew.await_serving,
        )
        for worker in self._crew.workers:
            if worker.store not in live and worker.state != LOST:
                access.silent[worker.store] = worker.reason
        access.can_talk = self._client.endpoint.can_talk
        access.on_copied = self._on_copied
        return access
