"""The thread of a worker that does what takes long and changes no store that is served.

VERIFY, INSPECT and REBUILD are answered from it, one after the other, so that the service loop goes
on answering PING and the rest.  It is started by the first of them.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
from collections.abc import Callable

from mpifs.core.checksum import ChecksumFunction
from mpifs.core.errors import FormatError, InUseError, MpifsError, PosixError, ProtocolError
from mpifs.core.image import KEY_BYTES
from mpifs.core.limits import (
    CHECKUPS_MAX,
    IDLE_LOOK_S,
    STORES_MAX,
    VERIFY_COUNT_MAX,
)
from mpifs.core.messages import (
    Inspect,
    Rebuild,
    VerifyKeys,
    VerifyReply,
    decode_args,
    encode_args,
)
from mpifs.core.types import ChecksumKind
from mpifs.store.chunks import ChunkStore
from mpifs.store.folder import store_folder
from mpifs.store.inspection import inspect
from mpifs.store.rebuild import rebuild
from mpifs.store.verify import verify
from mpifs.transport.request import Request

_log = logging.getLogger(__name__)


class Checkup:
    """`served` gives the store that is being served and its checksum, None before and after."""

    def __init__(
        self,
        volume_folder: str,
        served: Callable[[], tuple[ChunkStore, ChecksumFunction] | None],
    ) -> None:
        self._volume_folder = volume_folder
        self._served = served
        self._is_stopped = threading.Event()
        self._queue: queue.Queue[tuple[Callable[[Request], None], Request]] = queue.Queue(
            CHECKUPS_MAX
        )
        self._thread: threading.Thread | None = None

    def submit(self, action: Callable[[Request], None], request: Request) -> None:
        """Has `action` (a method of this class) answer a request; the service loop's thread.

        Raises EAGAIN if CHECKUPS_MAX are waiting.
        """
        try:
            self._queue.put_nowait((action, request))
        except queue.Full:
            raise PosixError(errno.EAGAIN, "this worker has too many checks to do") from None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkup", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends what is under way soon (a REBUILD at its end), and refuses what waits."""
        self._is_stopped.set()

    def verify(self, request: Request) -> None:
        """Answers VERIFY."""
        asked = decode_args(request.args, VerifyKeys)
        if len(asked.after) not in (0, KEY_BYTES) or asked.count < 1 or asked.bytes < 1:
            raise ProtocolError("VERIFY with an impossible key, count or size")
        served = self._served()
        if served is None:
            raise FormatError("this worker serves no store")
        store, checksum = served
        batch = verify(
            store.sides,
            asked.after,
            count=min(asked.count, VERIFY_COUNT_MAX),
            payload_bytes=asked.bytes,
            checksum=checksum if asked.data else None,
            is_stopped=self._is_stopped.is_set,
        )
        if self._is_stopped.is_set():
            raise InUseError("this worker is stopping")
        reply = VerifyReply(batch.payload_bytes, batch.is_end)
        request.reply(args=encode_args(reply), body=batch.reports, items=batch.items)

    def inspect(self, request: Request) -> None:
        """Answers INSPECT."""
        asked = decode_args(request.args, Inspect)
        served = self._served()
        store = served[0] if served is not None and served[0].store == asked.store else None
        folder = store_folder(self._volume_folder, asked.store)
        reply = inspect(folder, store, self._is_stopped.is_set)
        request.reply(args=encode_args(reply))

    def rebuild(self, request: Request) -> None:
        """Answers REBUILD."""
        wanted = decode_args(request.args, Rebuild)
        if (
            not 1 <= wanted.store <= STORES_MAX
            or len(wanted.volume_uuid) != 16
            or len(wanted.store_uuid) != 16
            or wanted.checksum not in list(ChecksumKind)
        ):
            raise ProtocolError("REBUILD names an impossible store")
        served = self._served()
        if served is not None and served[0].store == wanted.store:
            raise InUseError(f"this worker serves store {wanted.store}")
        request.reply(args=encode_args(rebuild(self._volume_folder, wanted)))

    def _run(self) -> None:
        while True:
            try:
                action, request = self._queue.get(timeout=IDLE_LOOK_S)
            except queue.Empty:
                continue
            try:
                if self._is_stopped.is_set():
                    raise InUseError("this worker is stopping")
                action(request)
            except MpifsError as error:
                request.refuse(error)
            except Exception:  # noqa: BLE001 - who asked must hear, and the thread must go on
                _log.exception("request of kind %d failed", request.header.kind)
                request.refuse(OSError(errno.EIO, "internal error, see the log"))
