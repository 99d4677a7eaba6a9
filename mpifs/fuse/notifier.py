"""Drops the kernel's caches of the other names of a file that has changed."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from mpifs.core.limits import (
    IDLE_LOOK_S,
    INVALIDATE_TIMEOUT_S,
)
from mpifs.fuse.open_files import OpenFiles
from mpifs.fuse.serving import Serving

log = logging.getLogger(__name__)


class Kernel(Protocol):
    """What the notifier wants of a session."""

    @property
    def can_invalidate_paths(self) -> bool: ...

    def invalidate_inode(self, nodeid: int) -> int: ...

    def invalidate_path(self, path: bytes) -> int: ...


class Target(NamedTuple):
    """A kernel inode, by its number or (number 0) by the path under which libfuse knows it."""

    nodeid: int
    path: bytes


class _Waiter(NamedTuple):
    """A request inside `on_change`: the kernel may hold pages of its inode until it is answered."""

    nodeid: int
    path: bytes | None

    def is_at(self, target: Target) -> bool:
        if target.nodeid:
            return target.nodeid == self.nodeid
        return target.path == self.path


class _Job:
    __slots__ = ("done", "since", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.since = time.monotonic()
        self.done = threading.Event()


class Notifier:
    """One thread that does the invalidations; others wait for it, with a deadline.

    Why a thread, and who may wait for whom.  While the kernel waits for the answer to a WRITE (or
    a READ) it keeps the pages concerned locked, and dropping a page waits for its lock.  Dropping
    a dirty page of a shared mapping even sends a WRITE first and waits for the answer.  So:

    1. A request never waits for the invalidation of its own inode: that waits for the answer.
    2. A request A that waits for the invalidation of b's pages may meet a request B on b that
       waits for a's.  The second to come sees the first among `_waiters` and does not wait for
       that target: it is answered, its pages are unlocked, and A's invalidation goes through,
       then B's.
    3. Invalidating b may make the kernel write b's dirty pages back.  The request that does so
       sees that its own inode is `_current`, waits for nothing, and so lets the invalidation end.
       What it asked for follows at once, since nobody is ahead of it for long.
       For the same reason a target whose own request is waiting here is passed over in the queue
       until that request has left, unless it is old: a stream of writers must not starve it.
    4. READs in flight on other names wait for nobody here, so they end by themselves; what they
       put into the cache is dropped behind them.
    5. Every wait has a deadline all the same.  After it the request is answered, and the
       invalidation, still queued, is done as soon as the kernel lets it.

    Nobody may hold a lock that a request needs while calling `on_change`: dropping dirty pages
    makes requests.  The invalidation is never called in the thread that serves a request.

    `_ready` guards the fields below it.  The queue holds each target once: its length is bounded by
    the number of names that the kernel knows.
    """

    def __init__(
        self,
        kernel: Kernel,
        files: OpenFiles,
        serving: Serving,
        inode_of: Callable[[bytes | None, int | None], int],
        timeout_s: float = INVALIDATE_TIMEOUT_S,
    ) -> None:
        self._kernel = kernel
        self._files = files
        self._serving = serving
        self._inode_of = inode_of
        self._timeout_s = timeout_s
        self._thread = threading.Thread(target=self._run, name="fuse-notifier", daemon=True)
        self._ready = threading.Condition()
        self._queue: dict[Target, _Job] = {}
        self._waiters: list[_Waiter] = []
        self._current: Target | None = None
        self._is_stopped = False
        self.late = 0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread.  What is queued is given up: the mount is gone."""
        with self._ready:
            self._is_stopped = True
            for job in self._queue.values():
                job.done.set()
            self._queue.clear()
            self._ready.notify_all()
        if self._thread.is_alive():
            self._thread.join(self._timeout_s)

    def on_change(self, paths: Iterable[bytes], handles: Iterable[int] = ()) -> bool:
        """Drops pages and attributes that the kernel has of these names and open handles.

        The name and handle of the request that the calling thread serves may be among them and are
        left out.  Returns when all is dropped, or after the deadline (False then).  Any thread.

        Requires: no lock is held that any file system call needs.
        """
        names = list(paths)
        served = self._served()
        targets = self._targets(names, set(handles) | self._hidden_of(names))
        targets = [target for target in targets if not served.is_at(target)]
        return self._drop(targets, served) if targets else True

    def hidden_changed(self, fh: int) -> None:
        """A file has changed through a handle while removed names are still open: theirs may be
        handles of the same file, of which no name is left to tell the notifier."""
        others = self._files.hidden - {fh}
        if not others:
            return
        try:
            inode = self._inode_of(None, fh)
        except OSError:
            return
        same = [other for other in others if self._is_inode(other, inode)]
        if same:
            self.on_change((), same)

    def _is_inode(self, fh: int, inode: int) -> bool:
        try:
            return self._inode_of(None, fh) == inode
        except OSError:
            return False

    def _hidden_of(self, names: list[bytes]) -> set[int]:
        """Open handles of the file whose names these are that have lost their own name."""
        if not self._files.hidden:
            return set()
        for name in names:
            try:
                inode = self._inode_of(name, None)
            except OSError:
                continue
            return {fh for fh in set(self._files.hidden) if self._is_inode(fh, inode)}
        return set()

    def _served(self) -> _Waiter:
        """The inode whose request the calling thread serves; (0, None) outside of requests."""
        serving = self._serving
        if serving.request is None:
            return _Waiter(0, None)
        if serving.fh is not None:
            return _Waiter(self._files.nodeid(serving.fh), self._files.path(serving.fh))
        return _Waiter(serving.request.nodeid, serving.path)

    def _targets(self, names: list[bytes], handles: set[int]) -> list[Target]:
        """Kernel inodes to drop, by path where the library can, else by open handles."""
        if self._kernel.can_invalidate_paths:
            targets = {Target(0, name) for name in names}
        else:
            targets = {
                Target(nodeid, name) for name in names for nodeid in self._files.nodeids(name)
            }
        for fh in handles:
            nodeid, path = self._files.nodeid(fh), self._files.path(fh)
            if nodeid and Target(0, path or b"") not in targets:
                targets.add(Target(nodeid, path or b""))
        return sorted(targets)

    def _drop(self, targets: list[Target], served: _Waiter) -> bool:
        deadline = time.monotonic() + self._timeout_s
        with self._ready:
            if self._is_stopped:
                return True
            waits_for = (
                []
                if self._current is not None and served.is_at(self._current)
                else [
                    target
                    for target in targets
                    if not any(waiter.is_at(target) for waiter in self._waiters)
                ]
            )
            jobs = {target: self._enqueue(target) for target in targets}
            self._waiters.append(served)
            self._ready.notify()
        try:
            in_time = all(
                jobs[target].done.wait(max(0.0, deadline - time.monotonic()))
                for target in waits_for
            )
        finally:
            with self._ready:
                self._waiters.remove(served)
                self._ready.notify()
        if not in_time:
            self.late += 1
            log.warning("the kernel still holds cached pages of %r", targets[0].path)
        return in_time and len(waits_for) == len(targets)

    def _enqueue(self, target: Target) -> _Job:
        job = self._queue.get(target)
        if job is None:
            job = self._queue[target] = _Job(target)
        return job

    def _next(self) -> _Job | None:
        """The first job whose target no waiting request keeps locked."""
        now = time.monotonic()
        for target, job in self._queue.items():
            is_held = any(waiter.is_at(target) for waiter in self._waiters)
            if not is_held or now - job.since > self._timeout_s:
                return self._queue.pop(target)
        return None

    def _run(self) -> None:
        while True:
            with self._ready:
                job = self._next()
                while job is None and not self._is_stopped:
                    self._ready.wait(self._timeout_s if self._queue else IDLE_LOOK_S)
                    job = self._next()
                if job is None or self._is_stopped:
                    return
                target = self._current = job.target
            try:
                self._invalidate(target)
            finally:
                with self._ready:
                    self._current = None
                job.done.set()

    def _invalidate(self, target: Target) -> None:
        if target.nodeid:
            result = self._kernel.invalidate_inode(target.nodeid)
        else:
            result = self._kernel.invalidate_path(target.path)
        if result not in (0, -errno.ENOENT, -errno.ENODEV, -errno.ENOTCONN, -errno.EBADF):
            log.warning("dropping cached pages of %r failed: errno %d", target.path, -result)
