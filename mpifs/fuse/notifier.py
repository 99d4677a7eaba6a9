"""Tells the kernel what has changed without it: a file whose bytes could not be stored, names that
were made or replaced by another way.

One thread, because the kernel may wait for requests while it drops pages: those that are locked by
a READ or WRITE under way, and dirty ones, which it writes first.  So nobody who serves a request
may wait for it.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable

from mpifs.core.limits import IDLE_LOOK_S, INVALIDATE_TIMEOUT_S
from mpifs.fuse.protocol import (
    INVAL_ENTRY_OUT,
    INVAL_INODE_OUT,
    NOTIFY_INVAL_ENTRY,
    NOTIFY_INVAL_INODE,
    OUT_HEADER,
)

log = logging.getLogger(__name__)

_EXPECTED = (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.EBADF)
"""ENOENT: the kernel knows nothing of it; the others: the mount is at its end."""
Entry = tuple[int, bytes]
"""(folder's inode, name)."""


class Notifier:
    """`_ready` guards the fields below it.  Any thread may call `changed`."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._thread = threading.Thread(target=self._run, name="fuse-notifier", daemon=True)
        self._ready = threading.Condition()
        self._queue: deque[int | Entry] = deque()
        self._asked = 0
        self._done = 0
        self._is_stopped = False

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread.  What is queued is given up: the mount is gone."""
        with self._ready:
            self._is_stopped = True
            self._queue.clear()
            self._ready.notify_all()
        if self._thread.is_alive():
            self._thread.join(INVALIDATE_TIMEOUT_S)

    def changed(self, inodes: Iterable[int], entries: Iterable[Entry] = ()) -> None:
        """Has pages and attributes of inodes and what is known of names dropped; does not wait."""
        with self._ready:
            before = len(self._queue)
            self._queue.extend(inodes)
            self._queue.extend(entries)
            self._asked += len(self._queue) - before
            self._ready.notify_all()

    def settle(self, timeout_s: float = INVALIDATE_TIMEOUT_S) -> bool:
        """Waits until all that was asked for before is done.  Not for who serves a request."""
        deadline = time.monotonic() + timeout_s
        with self._ready:
            asked = self._asked
            while self._done < asked and not self._is_stopped:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    log.warning("the kernel still holds cached pages or names")
                    return False
                self._ready.wait(left_s)
        return True

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._queue and not self._is_stopped:
                    self._ready.wait(IDLE_LOOK_S)
                if self._is_stopped:
                    return
                job = self._queue.popleft()
            self._tell(job)
            with self._ready:
                self._done += 1
                self._ready.notify_all()

    def _tell(self, job: int | Entry) -> None:
        if isinstance(job, int):
            code, body = NOTIFY_INVAL_INODE, INVAL_INODE_OUT.pack(job, 0, 0)
        else:
            folder, name = job
            code = NOTIFY_INVAL_ENTRY
            body = INVAL_ENTRY_OUT.pack(folder, len(name), 0) + name + b"\0"
        head = OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0)
        try:
            os.write(self._device, head + body)
        except OSError as error:
            if error.errno not in _EXPECTED:
                log.warning("the kernel's cache of %s was not dropped: %s", job, error)
