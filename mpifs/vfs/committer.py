"""When dirty data is flushed and the index committed; garbage and orphans cleared behind it.

One background thread ticks while anything is dirty.  Any thread may commit: who waits for the
commit lock finds its changes already committed by the one before (group commit).

Rename-over: the new content must be durable before the index says that it has the name.  Files
renamed over another one are put behind a barrier: every commit first flushes what is behind it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable

from mpifs import faultpoint
from mpifs.core.errors import FullError, MpifsError, PosixError
from mpifs.core.limits import (
    BATCH_COUNT_MAX,
    CLEAN_DELAY_MAX_S,
    CLEAN_REST_S,
    CLEAN_ROUNDS_MAX,
    DIRTY_AGE_MAX_S,
    IDLE_LOOK_S,
    REQUEST_TIMEOUT_S,
    SETTLE_LOOK_S,
)
from mpifs.data.reclaim import Reclaim
from mpifs.index.batch import Batch
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs.file_data import FileData
from mpifs.vfs.writeback import WriteBack

log = logging.getLogger(__name__)


class Committer:
    """Owns the order of commits.

    Locks, in order: `rename_gate` or `_commit_lock` → FileData.lock → index.lock.  A commit takes
    `_commit_lock`, then `rename_gate`; a rename takes only `rename_gate`.
    """

    def __init__(
        self,
        index: Index,
        reclaim: Reclaim,
        interval_s: float,
    ) -> None:
        self._index = index
        self._reclaim = reclaim
        self._interval_s = interval_s
        self._commit_lock = threading.Lock()
        self._clean_lock = threading.Lock()
        self.rename_gate = threading.Lock()
        self._barrier: dict[int, FileData] = {}
        self._wake = threading.Event()
        self._quit = threading.Event()
        self._orphan = 0
        self._seals = 0
        self._named_s = float("-inf")
        self._clean_until_s = 0.0
        self._committed = 0
        self.commits = 0
        self.commit_seconds = 0.0
        self.error: OSError | None = None
        self.settlers: list[Callable[[float], None]] = []
        """Called by `settle` with its deadline: others who have chunks stored (stage-in) take what
        is on its way into the index, or make it garbage.  A list is replaced, never changed."""
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self, writeback: WriteBack) -> None:
        """Begins ticking."""
        self._writeback = writeback
        self._thread.start()
        self.kick()  # what a crash has left is cleared now

    def kick(self) -> None:
        """Something is dirty: tick within half the commit interval."""
        if not self._wake.is_set():  # it is cleared before a tick begins, so none is missed
            self._wake.set()

    def names_changed(self) -> None:
        """A name was made, moved or taken away: as `kick`, and garbage may wait a little."""
        self._named_s = time.monotonic()
        self.kick()

    def renamed_over(self, data: FileData | None) -> None:
        """A file has a new name; `data` (if it is dirty) goes behind the barrier.

        Requires: rename_gate is held."""
        if data is not None and data.has_unwritten:
            self._barrier[data.inode.ino] = data

    def removed(self, inode: Inode) -> None:
        """A file has lost a name or a handle: if that was the last, its dirty data is dropped."""
        data = inode.data
        if not inode.nlink and isinstance(data, FileData):
            with data.lock:
                if not data.handles:
                    self._writeback.abandon(data)

    def commit(self) -> None:
        """Makes all changes of the index so far durable.  Raises what the disk says."""
        seals = self._seals
        with self._commit_lock:
            if self._committed > seals:
                return  # another thread sealed after this call began, and has committed
            self._flush_barrier()
            with self.rename_gate:
                batch = self._seal()
            if batch is not None:
                faultpoint.reach("commit.sealed")
                begun_s = time.monotonic()
                self._index.commit(batch)
                self.commits += 1
                self.commit_seconds += time.monotonic() - begun_s
            self._committed = self._seals

    def _seal(self) -> Batch | None:
        """Requires: _commit_lock and rename_gate are held."""
        self._flush_barrier()
        with self._index.lock:
            self._seals += 1
            return self._index.seal()

    def _flush_barrier(self) -> None:
        """Flushes what is behind the barrier.  Each file is taken out before its flush: a rename
        that comes meanwhile puts it there again."""
        while self._barrier:
            waiting: list[FileData] = []
            while self._barrier:
                waiting.append(self._barrier.popitem()[1])
            try:
                self._writeback.flush(*waiting)
                for data in waiting:
                    self._writeback.wait(data)
                faultpoint.reach("commit.barrier")
            except OSError:
                for data in waiting:
                    self._barrier.setdefault(data.inode.ino, data)
                raise

    def sync_file(self, data: FileData | None) -> None:
        """fsync(2): data and index durable.  Raises the file's remembered error, once."""
        if data is not None:
            self._writeback.flush(data)
            self._writeback.wait(data)
            error = data.take_error()
            if error is not None:
                raise error
        self.commit()

    def flush_all(self) -> None:
        """Sends everything dirty and waits for it."""
        waiting = list(self._writeback.files.values())
        self._writeback.flush(*waiting)
        for data in waiting:
            self._writeback.wait(data)

    def sync(self) -> None:
        """sync(2): everything durable."""
        self.flush_all()
        self.commit()

    def settle(self) -> None:
        """When it returns, every chunk that was stored before the call is committed or garbage.

        Waits for what is on its way now, not for what is written meanwhile: a busy writer cannot
        keep a check waiting.  Raises MpifsError at the deadline, and what the disk says.
        """
        deadline = time.monotonic() + REQUEST_TIMEOUT_S * 2
        for data in list(self._writeback.files.values()):
            with data.lock:
                flying = list(data.in_flight)
                while not all(buffer.is_done for buffer in flying):
                    if time.monotonic() > deadline:
                        raise MpifsError("workers do not take the data on its way to them")
                    data.await_idle(SETTLE_LOOK_S)
        for settle in self.settlers:
            settle(deadline)
        self.commit()

    def claim_room(self, size: int, *, is_growth: bool = True) -> None:
        """Raises the index's full disk: what is not committed must not grow without bound, and
        what was accepted must fit when it is committed."""
        if isinstance(self.error, FullError):
            raise self.error
        self._index.room.claim(size, is_growth=is_growth)

    @property
    def is_full(self) -> bool:
        """Whether the index takes nothing new."""
        return isinstance(self.error, FullError) or self._index.room.is_full

    def after_removal(self) -> None:
        """A name was taken away: on a nearly full disk not too many may go in one commit."""
        if self._index.room.is_strained:
            with contextlib.suppress(FullError):  # it is tried again, with what comes then
                self.commit()

    def make_room(self, is_full: bool) -> None:
        """Write-back is at its bound (`is_full` false), or the stores are."""
        if not is_full:
            self._wake.set()
            idle = [data for data in list(self._writeback.files.values()) if not data.in_flight]
            self._writeback.flush(*idle)
            return
        self.sync()
        self.clean_up()
        self.commit()

    def clean_up(self) -> bool:
        """Purges removed files and deletes committed garbage, a bounded part of it.

        True if anything was done: then commit, and there may be more to do.
        """
        with self._clean_lock:
            purged = self._purge()
            if purged:
                faultpoint.reach("garbage.reaped")
            if self._index.room.is_strained:
                return True
            garbage = self._index.garbage(BATCH_COUNT_MAX * 4)
            gone = self._reclaim.delete(garbage) if garbage else []
            if gone:
                faultpoint.reach("garbage.deleted")
                with self._index.lock:
                    self._index.forget_garbage(gone)
            return bool(purged or gone)

    def _purge(self) -> bool:
        """Reaps some removed files that nobody has open; False if there was none."""
        reaped = False
        with self._index.lock:
            listed = self._index.orphans(BATCH_COUNT_MAX, self._orphan)
            for ino in listed:
                try:
                    inode = self._index.inode(ino)
                except MpifsError:
                    continue  # a damaged row must not stop every commit; verify tells of it
                if not inode.nlink and not inode.pins:
                    self._index.reap(inode)
                    reaped = True
                    if self._index.room.is_strained:
                        break
            self._orphan = listed[-1] if len(listed) == BATCH_COUNT_MAX and not reaped else 0
        return reaped

    def _run(self) -> None:
        while not self._quit.is_set():
            self._wake.wait(IDLE_LOOK_S)
            self._wake.clear()
            if self._quit.wait(self._interval_s / 2):
                return
            try:
                self._tick()
                self.error = None
            except (OSError, MemoryError) as failure:
                error = failure if isinstance(failure, OSError) else PosixError(errno.ENOMEM)
                if self.error is None or str(self.error) != str(error):
                    log.error("commit failed, will be tried again: %s", error)
                self.error = error
                self._wake.set()
                self._quit.wait(self._interval_s)

    def _tick(self) -> None:
        """Flushes what is due, commits, cleans up; asks for another tick if anything is left."""
        now = time.monotonic()
        due = [data for data in list(self._writeback.files.values()) if self._is_due(data, now)]
        self._writeback.flush(*due)
        for data in due:
            try:
                self._writeback.wait(data)
            except MpifsError as error:
                log.error("%s", error)
        self.commit()
        can_wait = self._can_clean_later(time.monotonic())
        rounds = 0
        if not can_wait:
            while self.clean_up() and rounds < CLEAN_ROUNDS_MAX and not self._quit.is_set():
                rounds += 1
                self.commit()
        if self._writeback.files or rounds or can_wait:
            self._wake.set()

    def _can_clean_later(self, now: float) -> bool:
        """Whether the garbage waits, because somebody is just making or removing many names: they
        and the cleaning would halve each other's speed (Python's lock).  Bounded by time, and only
        while there is room: who overwrites large files makes no names."""
        can_wait = (
            now - self._named_s < CLEAN_REST_S
            and now < self._clean_until_s
            and not self._index.room.is_tight
            and not self._writeback.is_tight()
        )
        if not can_wait:
            self._clean_until_s = now + CLEAN_DELAY_MAX_S
        return can_wait

    @staticmethod
    def _is_due(data: FileData, now: float) -> bool:
        if data.closing or not data.handles:
            return bool(data.dirty)
        oldest = min((b.since for b in list(data.dirty.values())), default=now)
        return now - oldest > DIRTY_AGE_MAX_S

    def close(self) -> None:
        """Ends the thread, then flushes and commits everything.  Raises what the disk says."""
        self._quit.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self.sync()
        faultpoint.reach("umount.flushed")
        for _ in range(CLEAN_ROUNDS_MAX):
            if not self.clean_up():
                break
            self.commit()
        self.commit()
