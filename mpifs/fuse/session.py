"""One FUSE session of libfuse 2 or 3: raw requests, invalidations, the end.  No Python binding is
imported here; the library comes from `binding`."""

from __future__ import annotations

import ctypes
import errno
import threading
from typing import Any


class Buffer(ctypes.Structure):
    """struct fuse_buf: one raw request."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("mem", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("pos", ctypes.c_longlong),
    )


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
        return Request(self._library, self._session, self._channel, size)

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


class Request:
    """The request that one loop thread is serving, as raw bytes of the kernel's protocol.

    struct fuse_in_header: len 4, opcode 4, unique 8, nodeid 8, uid 4, gid 4, pid 4, 4 of padding.
    """

    __slots__ = ("_buffer", "_channel", "_library", "_memory", "_pointer", "_session", "_size")

    GETATTR = 3
    UNLINK = 10
    RENAME = 12
    RENAME2 = 45
    OPEN = 14

    def __init__(self, library: Any, session: int, channel: int | None, size: int) -> None:
        self._library = library
        self._session = session
        self._channel = ctypes.c_void_p(channel)
        self._size = size
        self._memory = ctypes.create_string_buffer(size) if size else None
        self._buffer = Buffer()
        self._pointer = ctypes.byref(self._buffer)

    def receive(self) -> int:
        """Waits for a request.  Bytes received, 0 at the end of the mount, or -errno."""
        buffer = self._buffer
        if self._memory is None:
            result: int = self._library.fuse_session_receive_buf(self._session, self._pointer)
            return result
        buffer.mem = ctypes.addressof(self._memory)
        buffer.size = self._size
        buffer.flags = 0
        result = self._library.fuse_session_receive_buf(
            self._session, self._pointer, ctypes.byref(self._channel)
        )
        return result

    def process(self) -> None:
        """Serves it: the callbacks run in this thread."""
        if self._memory is None:
            self._library.fuse_session_process_buf(self._session, self._pointer)
        else:
            self._library.fuse_session_process_buf(self._session, self._pointer, self._channel)

    @property
    def opcode(self) -> int:
        """Kind of the request."""
        return ctypes.c_uint32.from_address(self._buffer.mem + 4).value

    @property
    def nodeid(self) -> int:
        """The kernel's number of the inode that it is about."""
        return ctypes.c_uint64.from_address(self._buffer.mem + 16).value

    @property
    def new_name(self) -> bytes | None:
        """The new name that a RENAME asks for, None in any other request.

        Behind the header stand fuse_rename_in (8 bytes) or fuse_rename2_in (16), then both names.
        """
        sizes = {self.RENAME: 8, self.RENAME2: 16}
        start = sizes.get(self.opcode)
        if start is None:
            return None
        length = ctypes.c_uint32.from_address(self._buffer.mem).value
        names = ctypes.string_at(self._buffer.mem + 40 + start, length - 40 - start)
        return names.split(b"\0")[1]

    @property
    def read_size(self) -> int:
        """Bytes that the reply to READDIR may have: fuse_read_in.size."""
        return ctypes.c_uint32.from_address(self._buffer.mem + 40 + 16).value
