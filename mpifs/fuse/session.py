"""One mount's connection to the kernel, from INIT to its end."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable

from mpifs.core.errors import PosixError
from mpifs.fuse.handshake import Agreement, agree
from mpifs.fuse.protocol import BODY_AT, Opcode
from mpifs.fuse.request import Request

log = logging.getLogger(__name__)


class Session:
    """`device` is the descriptor of /dev/fuse; `unmount` closes it and frees what mounted it.

    `destroy` may be called by any thread and repeated; after it nothing else may be.
    """

    def __init__(self, device: int, unmount: Callable[[], None]) -> None:
        self.on_agreed: Callable[[Agreement], None] = lambda agreement: None
        """Hears what INIT has come to before the kernel does."""
        self.device = device
        self.agreement: Agreement | None = None
        """What INIT has come to; None before."""
        self._unmount = unmount
        self._lock = threading.Lock()  # guards _alive.
        self._alive = True

    def request(self) -> Request:
        """A place for one loop thread's requests."""
        return Request(self.device)

    def answer_init(self, request: Request, *, writeback: bool) -> bool:
        """Serves INIT, the first request; False if it cannot be agreed on, and the log says why."""
        try:
            if request.opcode != Opcode.INIT:
                raise PosixError(
                    errno.EPROTO, f"the kernel began with request {request.opcode}, not INIT"
                )
            body = request.view[BODY_AT : request.length]
            self.agreement, answer = agree(body, writeback=writeback)
        except PosixError as error:
            log.error("%s", error)
            request.refuse(error.errno or errno.EPROTO)
            return False
        self.on_agreed(self.agreement)
        request.answer(answer)
        return True

    def destroy(self) -> None:
        """Closes the device and frees everything; unmounts what is still mounted."""
        with self._lock:
            if not self._alive:
                return
            self._alive = False
        self._unmount()
