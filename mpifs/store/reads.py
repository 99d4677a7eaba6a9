"""Answers to GET and LIST.  A GET is sent straight from LMDB's pages: its read transaction lives
until `on_sent`, and at most LEASES_MAX live at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mpifs.core.errors import ProtocolError
from mpifs.core.image import KEY_BYTES, decode_key
from mpifs.core.limits import LEASES_MAX, LIST_COUNT_MAX
from mpifs.core.messages import ListKeys, decode_args
from mpifs.store.chunks import ChunkStore, Lease
from mpifs.transport.request import Request


class Reads:
    """`open_store` gives the store that is served or raises; `free` what it can still take.

    Used by the service loop's thread.
    """

    def __init__(self, open_store: Callable[[], ChunkStore], free: Callable[[], int]) -> None:
        self._open_store = open_store
        self._free = free
        self._leases = threading.BoundedSemaphore(LEASES_MAX)

    def get(self, request: Request) -> None:
        """Answers GET."""
        store = self._open_store()
        if len(request.args) != KEY_BYTES:
            raise ProtocolError("GET without one chunk key")
        lease = store.get(decode_key(request.args))
        if not self._leases.acquire(blocking=False):
            with lease:
                copy = bytes(lease.image)
            request.reply(body=copy, items=1, free=self._free())
            return
        give_back = self._give_back(lease)
        try:
            request.reply(body=lease.image, items=1, free=self._free(), on_sent=give_back)
        except BaseException:
            give_back()
            raise

    def _give_back(self, lease: Lease) -> Callable[[], None]:
        once = [lease]

        def sent() -> None:
            if once:
                once.pop().close()
                self._leases.release()

        return sent

    def list(self, request: Request) -> None:
        """Answers LIST."""
        store = self._open_store()
        asked = decode_args(request.args, ListKeys)
        if len(asked.after) not in (0, KEY_BYTES) or asked.count < 1:
            raise ProtocolError("LIST with an impossible key or count")
        headers = store.headers(asked.after, min(asked.count, LIST_COUNT_MAX))
        request.reply(body=b"".join(headers), items=len(headers), free=self._free())
