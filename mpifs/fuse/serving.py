"""Which request the calling thread is serving, and for whom."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from mpifs.core.types import Caller
from mpifs.fuse.session import Request

_NOBODY = Caller(0, 0, 0)


class _Context(ctypes.Structure):
    """struct fuse_context, as far as both libraries agree."""

    _fields_ = (
        ("fuse", ctypes.c_void_p),
        ("uid", ctypes.c_uint),
        ("gid", ctypes.c_uint),
        ("pid", ctypes.c_int),
    )


class Serving(threading.local):
    """Per thread: the raw request, and path and handle that it names.

    libfuse keeps one context per thread at one address for the thread's life, and mpifs's loop
    threads live as long as the mount, so the address is asked for once.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._context: Any = None
        self._caller = _NOBODY
        self.request: Request | None = None
        self.path: bytes | None = None
        self.fh: int | None = None

    def caller(self) -> Caller:
        """The process behind the request."""
        context = self._context
        if context is None:
            address = ctypes.cast(self._library.fuse_get_context(), ctypes.c_void_p).value
            if not address:
                return _NOBODY
            self._context = context = _Context.from_address(address)
        uid, gid, pid = context.uid, context.gid, context.pid
        known = self._caller
        if known.pid == pid and known.uid == uid and known.gid == gid:
            return known
        self._caller = known = Caller(uid, gid, pid)
        return known
