"""Files that this rank fetches from another one by order of rank 0, which asks how far they are."""

from __future__ import annotations

import errno
import itertools
import logging
import threading

from mpifs.core.errors import MpifsError, PosixError, ProtocolError
from mpifs.core.limits import TRANSFER_PULLS_KEPT, TRANSFER_PULLS_MAX
from mpifs.core.transfer_messages import Pull
from mpifs.transfer.mover import Mover
from mpifs.transfer.remote import RemoteSource
from mpifs.transfer.sink import LocalSink
from mpifs.transfer.tally import Tally
from mpifs.transport.client import Client

_log = logging.getLogger(__name__)


class Pulls:
    """A thread for each pull; `_tallies` is guarded by `_lock`."""

    def __init__(self, peers: Client) -> None:
        self._peers = peers
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._tallies: dict[int, Tally] = {}

    def start(self, sink: LocalSink, asked: Pull) -> int:
        """Begins to fetch; its number.  Raises PosixError(EAGAIN)."""
        if asked.source == self._peers.endpoint.rank:
            raise PosixError(errno.EINVAL, "a rank cannot fetch files from itself")
        if not 0 < asked.source < self._peers.endpoint.size:
            raise PosixError(errno.ENXIO, f"this rank knows no rank {asked.source}")
        with self._lock:
            ended = [number for number, tally in self._tallies.items() if tally.is_over]
            if len(self._tallies) - len(ended) >= TRANSFER_PULLS_MAX:
                raise PosixError(errno.EAGAIN, "this rank fetches too many files already")
            for number in ended[: max(0, len(self._tallies) - TRANSFER_PULLS_KEPT)]:
                del self._tallies[number]
            number, tally = next(self._numbers), Tally()
            self._tallies[number] = tally
        work = (sink, asked, tally)
        threading.Thread(target=self._work, args=work, name=f"pull-{number}", daemon=True).start()
        return number

    def tally(self, number: int) -> Tally:
        """How far a pull is.  Raises ProtocolError for an unknown one."""
        with self._lock:
            tally = self._tallies.get(number)
        if tally is None:
            raise ProtocolError("a pull that this rank does not know; it may have been restarted")
        return tally

    def stop(self) -> None:
        """Ends all at their next step."""
        with self._lock:
            for tally in self._tallies.values():
                tally.cancel()

    def _work(self, sink: LocalSink, asked: Pull, tally: Tally) -> None:
        try:
            source = RemoteSource(self._peers, asked.source, tally.check)
            Mover(source, sink, asked.into, tally).move(asked.names)
        except Exception as error:  # noqa: BLE001 - who asked must hear
            _log.exception("a pull failed")
            tally.fail(b"", MpifsError(f"internal error ({error!r}), see the log"))
        tally.is_over = True
