"""What the stores tell about themselves: how much they hold and can still take."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

from mpifs.core.errors import MpifsError
from mpifs.core.kinds import Kind
from mpifs.core.limits import STATS_TIMEOUT_S
from mpifs.core.messages import StoreStats, decode_args
from mpifs.job.roster import Worker
from mpifs.transport.client import Client, Pending

log = logging.getLogger(__name__)


def store_figures(client: Client, workers: Iterable[Worker]) -> dict[int, StoreStats]:
    """Figures of the workers' stores, asked for all at once; without those that do not answer."""
    pending: dict[int, Pending] = {}
    found: dict[int, StoreStats] = {}
    for worker in workers:
        with _telling_of(worker.store):
            pending[worker.store] = client.start(worker.rank, Kind.STATS, timeout_s=STATS_TIMEOUT_S)
    for store, answer in pending.items():
        with _telling_of(store):
            found[store] = stats_of(answer)
    return found


def stats_of(answer: Pending) -> StoreStats:
    """The figures in the answer to SERVE or STATS.  Waits; raises MpifsError."""
    return decode_args(answer.wait().args, StoreStats)


@contextlib.contextmanager
def _telling_of(store: int) -> Iterator[None]:
    """A store that gives no figures goes into the log."""
    try:
        yield
    except MpifsError as error:
        log.warning("store %d gives no figures: %s", store, error)
