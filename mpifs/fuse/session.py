"""One FUSE session of libfuse 2 or 3: raw requests, invalidations, the end.  No Python binding is
imported here; the library comes from `binding`."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

from mpifs.fuse.handshake import agreed
from mpifs.fuse.request import Request


class Session:
    """One mount: the raw calls of its loop, of its notifier and of its end.

    `receive` and `process` may run in many threads at once; `invalidate_*` in any thread that
    does not serve a request.  After `destroy` nothing may be called.
    """

    def __init__(
        self,
        library: Any,
        major: int,
        handle: int,
        channel: int | None,
        mountpoint: bytes,
        kept: Any,
    ) -> None:
        self._kept = kept
        self._library = library
        self._major = major
        self._handle = handle
        self._channel = channel
        self._mountpoint = mountpoint
        self._session: int = library.fuse_get_session(handle)
        self._lock = threading.Lock()  # guards _alive: no invalidation after destroy.
        self._alive = True

    def request(self) -> Request:
        """A place for one loop thread's requests."""
        size = self._library.fuse_chan_bufsize(self._channel) if self._channel else 0
        return Request(self._library, self._session, self._channel, size, self.device)

    @property
    def device(self) -> int:
        """The file descriptor of /dev/fuse."""
        if self._channel:
            number: int = self._library.fuse_chan_fd(self._channel)
        else:
            number = self._library.fuse_session_fd(self._session)
        return number

    def answer_init(self, request: Request) -> None:
        """Serves INIT, the first request: the library's answer, completed by `agreed`.

        The library writes to a pipe that has the device's number meanwhile; the kernel sends
        nothing else before it has the answer.
        """
        asked = bytes(request.view[: request.length])
        device = self.device
        kept = os.dup(device)
        source, sink = os.pipe()
        try:
            os.dup2(sink, device, inheritable=False)
            try:
                request.process()
            finally:
                os.dup2(kept, device, inheritable=False)
            os.set_blocking(source, False)
            try:
                answer = os.read(source, 4096)
            except BlockingIOError:
                return  # the library has given the session up, and says why in the log
            os.write(device, agreed(asked, answer))
        finally:
            for number in (kept, source, sink):
                os.close(number)

    def exit(self) -> None:
        """Tells the library that the session is over; threads that wait do not wake from it."""
        self._library.fuse_session_exit(self._session)

    @property
    def can_invalidate_paths(self) -> bool:
        """libfuse 2 has no call for it."""
        return self._major == 3

    def invalidate_inode(self, nodeid: int) -> int:
        """Drops the kernel's pages and attributes of a kernel inode.  Blocks while pages of it are
        locked by a request.  Returns -errno; ENOENT means that there was nothing."""
        if not self._alive:
            return -errno.ENODEV
        target = self._channel if self._channel else self._session
        result: int = self._library.fuse_lowlevel_notify_inval_inode(target, nodeid, 0, 0)
        return result

    def invalidate_path(self, path: bytes) -> int:
        """The same for the kernel inode that the library knows under a path."""
        if not self._alive:
            return -errno.ENODEV
        result: int = self._library.fuse_invalidate_path(self._handle, path)
        return result

    def destroy(self) -> None:
        """Closes the device and frees everything; unmounts what is still mounted."""
        with self._lock:
            if not self._alive:
                return
            self._alive = False
        self._library.fuse_session_exit(self._session)
        if self._major == 3:
            self._library.fuse_unmount(self._handle)
        else:
            self._library.fuse_unmount(self._mountpoint, self._channel)
        self._library.fuse_destroy(self._handle)
