"""Keeps the copies of the index fresh: while mounted in a thread, at rest when it is asked to.

    resting ──interval over and index changed──► copying ──done or failed──► resting
    any ──finish()──► the copy under way is given up, a last one written ──► finished

A failure is a warning, never an error: the volume is as good without its copy.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from mpifs.core.errors import MpifsError
from mpifs.core.limits import (
    INDEX_COPY_INTERVAL_S,
    INDEX_COPY_RATE_BYTES,
    INDEX_COPY_REST,
    REQUEST_TIMEOUT_S,
)
from mpifs.repair.copies import CopyStores, Manifest, find_copies
from mpifs.repair.copy_source import CopySource, check_every_row_is_whole
from mpifs.repair.copy_writer import CopyStoppedError, CopyWriter, Pace

log = logging.getLogger(__name__)


class IndexCopier:
    """Made right after the index was opened, before anything changes it.

    `_lock` is held while a copy is written or checked; `_copied` (the last commit that a copy
    has), `_due_s` and `_is_known` are guarded by it.
    """

    def __init__(
        self,
        source: CopySource,
        stores: CopyStores,
        *,
        interval_s: float = INDEX_COPY_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._stores = stores
        self._writer = CopyWriter(stores)
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.RLock()
        self._opened_transaction = source.last_transaction()
        self._opened_generation = source.opened_generation
        self._copied = -1
        self._is_known = False
        self._due_s = clock() + interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="index-copier", daemon=True)

    def start(self) -> None:
        """From now on copies are made in the background; for a mounted volume."""
        self._thread.start()

    def tick(self) -> float:
        """Writes a copy if one is due; seconds until the next look.  Never raises MpifsError."""
        with self._lock:
            left_s = self._due_s - self._clock()
            if left_s > 0:
                return left_s
            started_s = self._clock()
            try:
                if not self._is_current():
                    self._write(Pace(rate_bytes=INDEX_COPY_RATE_BYTES, stop=self._stop))
            except CopyStoppedError:
                pass
            except MpifsError as error:
                log.warning("the index could not be copied to the workers: %s", error)
            now = self._clock()
            rest_s = max(self._interval_s, INDEX_COPY_REST * (now - started_s))
            self._due_s = now + rest_s
            return rest_s

    def finish(self, timeout_s: float = REQUEST_TIMEOUT_S) -> bool:
        """Ends the thread and, if the newest copy is older than the index, writes a last one.

        True when the newest copy is that of the index as it is; a failure is logged.  May be
        called without start(), and more than once.
        Requires: everything is committed; the stores are still served.
        """
        deadline_s = time.monotonic() + timeout_s
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if not self._lock.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            log.warning("the copy of the index under way does not end")
            return False
        try:
            if not self._is_current():
                self._write(Pace(deadline_s=deadline_s))
            return True
        except MpifsError as error:
            log.warning(
                "the index could not be copied to the workers at the end: %s; "
                "the copy before it stays",
                error,
            )
            return False
        finally:
            self._lock.release()

    def refresh(self) -> Manifest:
        """Writes a copy now, whether or not the index has changed.

        Raises MpifsError; DamageError if the index itself has damaged records."""
        with self._lock:
            return self._write(Pace())

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No copy is written by another thread during the block: what is read of them stays."""
        with self._lock:
            yield

    def _run(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(self.tick())

    def _write(self, pace: Pace) -> Manifest:
        """Requires: the lock."""
        check_every_row_is_whole(self._source, pace.rest)
        generation = self._source.next_generation()
        copied = self._source.last_transaction()  # before the snapshot: rather too old than new
        started_s = time.monotonic()
        manifest = self._writer.write(
            self._source.copy_to, self._source.geometry, generation, pace=pace
        )
        self._copied = copied
        self._is_known = True
        log.info(
            "copy %d of the index (%d bytes) is on workers %s after %.2f s",
            generation,
            manifest.size_bytes,
            list(manifest.holders),
            time.monotonic() - started_s,
        )
        return manifest

    def _is_current(self) -> bool:
        """Whether the index has not changed since the newest copy.  Requires: the lock.

        The copy at the end of a clean session has taken the last generation: then the limit found
        by the next session is one above it.  What that session's open commits itself (a range
        of numbers) is no change.
        """
        if not self._is_known:
            self._is_known = True
            copies = find_copies(self._stores)
            if (
                copies
                and copies[0].is_whole
                and (copies[0].manifest.generation + 1 == self._opened_generation)
            ):
                self._copied = self._opened_transaction
        return self._copied == self._source.last_transaction()
