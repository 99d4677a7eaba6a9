"""Which request the calling thread is serving, and for whom."""

from __future__ import annotations

import threading

from mpifs.core.types import Caller
from mpifs.fuse.request import Request

_NOBODY = Caller(0, 0, 0)


class Serving(threading.local):
    """Per thread: the raw request, and path and handle that it names."""

    def __init__(self) -> None:
        self.request: Request | None = None
        self.path: bytes | None = None
        self.fh: int | None = None

    def caller(self) -> Caller:
        """The process behind the request."""
        request = self.request
        return request.caller if request is not None else _NOBODY
