"""The answering side: takes requests off the endpoint, hands them to a handler, sends replies.

One thread runs the loop (`run`, or `tick` in tests); replies may come from any thread.  The loop
alone posts receives and probes; it also looks after the sends that replies have left unfinished.
A header that makes no sense is answered with EPROTO if it tells where to, else dropped.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

from mpifs import faultpoint
from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError, ProtocolError
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    BELL_QUIET_TIMEOUT_S,
    BELL_TIMEOUT_S,
    HEADER_BYTES,
    INLINE_BYTES_MAX,
    NO_BELL_QUIET_S,
    NO_BELL_QUIET_SLEEP_S,
    NO_BELL_SLEEP_S,
    RECEIVE_BYTES_MAX,
    RECEIVES_MAX,
    SEND_PROGRESS_S,
    SERVER_BATCH_COUNT,
    SLOT_COUNT_MAX,
    SPIN_S,
)
from mpifs.core.messages import (
    MAGIC,
    MESSAGE_BYTES_MAX,
    TAG_DATA_BASE,
    TAG_REPLY_BASE,
    VERSION,
    Header,
    decode_message,
    encode_message,
)
from mpifs.transport.endpoint import TAG_REPLY_DATA_BASE, Endpoint, Incoming, Operation
from mpifs.transport.request import Request

_log = logging.getLogger(__name__)

_RETURN_ADDRESS = struct.Struct("<HBBiIIQIII16s")
"""The header's fields up to the bell: enough to answer a header that `decode_header` refuses."""
_NO_MEMORY = OSError(errno.ENOMEM, "this worker is out of memory (a limit of its process)")


class _Sending:
    """Sends of one reply that are not complete."""

    __slots__ = ("on_sent", "operations")

    def __init__(self, operations: list[Operation], on_sent: Callable[[], None] | None) -> None:
        self.operations = operations
        self.on_sent = on_sent

    def is_over(self) -> bool:
        """Tests; calls `on_sent` when all are complete or their receiver is dead."""
        while self.operations:
            try:
                if not self.operations[-1].test():
                    return False
            except MpifsError as error:
                _log.info("reply not delivered: %s", error)
            self.operations.pop()
        if self.on_sent is not None:
            self.on_sent()
        return True


class Server:
    """Serves one rank.  The fields below `_sending` belong to the loop's thread.

    `handler` is called on the loop's thread with each complete request; it answers at once or
    passes the request on to another thread.  OSErrors it raises are answered.  `take_buffer` and
    `give_buffer` (any thread) lend memory for bodies.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        handler: Callable[[Request], None],
        take_buffer: Callable[[int], bytearray],
        give_buffer: Callable[[bytearray], None],
    ) -> None:
        self.endpoint = endpoint
        self._handler = handler
        self._take_buffer = take_buffer
        self._give_buffer = give_buffer
        self._lock = threading.Lock()
        self._held_bytes = 0  # Bodies lent out; guarded by _lock.
        self._sending: deque[_Sending] = deque()  # Appended to by any thread.
        self._thread = 0
        self._message = bytearray(MESSAGE_BYTES_MAX)
        self._waiting: deque[Request] = deque()
        self._receiving: list[tuple[Request, Operation]] = []
        self._heard: dict[int, float] = {}
        self._is_busy = False  # Something but PINGs has come since `run` has looked.
        self._is_far = not all(map(endpoint.is_near, range(endpoint.size)))

    def heard_s(self, rank: int) -> float | None:
        """When (time.monotonic) the last request of `rank` came; None if there was none."""
        return self._heard.get(rank)

    def run(self, should_stop: Callable[[], bool], idle: Callable[[], None]) -> None:
        """Serves until `should_stop`; `idle` is called before each sleep.

        Both are called at least each BELL_QUIET_TIMEOUT_S.  Replies that are still on their way
        are left to `flush`.
        """
        bell = self.endpoint.server_bell()
        busy_s = time.monotonic()
        spin_until = busy_s + SPIN_S
        is_rung = False
        while not should_stop():
            if self.tick():
                if self._is_busy:
                    self._is_busy = False
                    busy_s = time.monotonic()
                    spin_until = busy_s + SPIN_S
                is_rung = False
                continue
            now = time.monotonic()
            if now < spin_until:
                os.sched_yield()
                continue
            if is_rung:  # for nothing: its message may still wait in the sender's library.
                busy_s = now
            idle()
            is_rung = bell.wait(self._nap_s(now - busy_s))
            if is_rung:
                spin_until = time.monotonic() + SPIN_S

    def flush(self, timeout_s: float) -> bool:
        """Waits until all replies have been delivered; False at the time limit."""
        deadline = time.monotonic() + timeout_s
        while self._sending:
            self._finish_sends()
            if time.monotonic() > deadline:
                return False
            os.sched_yield()
        return True

    def tick(self) -> bool:
        """A bounded batch of work; True if something moved."""
        self._thread = threading.get_ident()
        moved = False
        if self._sending:
            moved = self._finish_sends()
        if self._receiving or self._waiting:
            moved = self._finish_receives() or moved
        self._is_busy = self._is_busy or moved
        for _ in range(SERVER_BATCH_COUNT):
            incoming = self.endpoint.probe()
            if incoming is None:
                break
            moved = True
            self._accept(incoming)
        return moved

    def _nap_s(self, quiet_s: float) -> float:
        if self._sending or self._receiving:
            return SEND_PROGRESS_S
        if not self._is_far:
            return min(max(2 * quiet_s, BELL_TIMEOUT_S), BELL_QUIET_TIMEOUT_S)
        return NO_BELL_SLEEP_S if quiet_s < NO_BELL_QUIET_S else NO_BELL_QUIET_SLEEP_S

    # Requests coming in.

    def _accept(self, incoming: Incoming) -> None:
        """Takes one header message."""
        source, message = incoming.source, self._message
        try:
            incoming.receive(message)
            whole = memoryview(message)[: incoming.size]
            faultpoint.alter("transport.request.header", whole)
            header = decode_message(whole)
            end = HEADER_BYTES + header.args_bytes
        except ProtocolError as error:
            self._refuse(source, incoming.size, error)
            return
        self._heard[source] = time.monotonic()
        if header.kind != Kind.PING:  # a rank that only hears the heartbeat is quiet.
            self._is_busy = True
        request = Request(self, header, source, bytes(message[HEADER_BYTES:end]))
        if not header.body_bytes:
            self._handle(request)
        elif header.is_inline:
            if not self._lend(request):
                request.refuse(_NO_MEMORY)
                return
            assert request.body is not None
            request.body[:] = memoryview(message)[end : end + header.body_bytes]
            self._handle(request)
        elif not self._has_room() or not self._receive(request):
            self._waiting.append(request)

    def _refuse(self, source: int, size: int, error: ProtocolError) -> None:
        """Answers a bad header message, if its first fields tell where to."""
        _log.warning("message from rank %d refused: %s", source, error)
        if size < HEADER_BYTES:
            return
        magic, version, kind, _, epoch, slot, number, _, _, _, bell = _RETURN_ADDRESS.unpack_from(
            self._message
        )
        if (magic == MAGIC or version == VERSION) and slot < SLOT_COUNT_MAX:
            header = Header(kind, 0, epoch, slot, number, 0, 0, 0, bell, 0)
            Request(self, header, source, b"").refuse(error)

    def _has_room(self) -> bool:
        if len(self._receiving) >= RECEIVES_MAX:
            return False
        return self._held_bytes < RECEIVE_BYTES_MAX

    def _lend(self, request: Request) -> bool:
        """Gives the request a buffer for its body; False if there is no memory for it."""
        size = request.header.body_bytes
        try:
            request.buffer = self._take_buffer(size)
        except MemoryError:
            _log.warning("no memory for a request of %d bytes: it waits", size)
            return False
        request.body = memoryview(request.buffer)[:size]
        with self._lock:
            self._held_bytes += size
        return True

    def give_back(self, buffer: bytearray | None, size: int) -> None:
        """Called by a request that is done; None: its buffer cannot be used again."""
        with self._lock:
            self._held_bytes -= size
        if buffer is not None:
            self._give_buffer(buffer)

    def _receive(self, request: Request) -> bool:
        """Posts the receive of a long body; False if there is no memory for it."""
        if not self._lend(request):
            return False
        assert request.body is not None
        tag = TAG_DATA_BASE + request.header.slot
        try:
            operation = self.endpoint.irecv(request.source, tag, request.body)
        except MpifsError as error:
            self._drop(request, error)
            return True
        if not self._finish_receive(request, operation):
            self._receiving.append((request, operation))
        return True

    def _finish_receive(self, request: Request, operation: Operation) -> bool:
        """Hands the request on if its body has come; True if the receive is over."""
        try:
            if not operation.test():
                return False
            if operation.received != request.header.body_bytes:
                raise ProtocolError("body is not as long as its header says")
        except MpifsError as error:
            self._drop(request, error)
            return True
        assert request.body is not None
        faultpoint.alter("transport.request.body", request.body)
        self._handle(request)
        return True

    def _finish_receives(self) -> bool:
        """Looks after all receives, posts those of waiting requests; True if one is over."""
        before = len(self._receiving)
        self._receiving = [each for each in self._receiving if not self._finish_receive(*each)]
        moved = len(self._receiving) < before
        for _ in range(len(self._waiting)):
            if not self._has_room():
                break
            if not self._receive(self._waiting[0]):
                break
            self._waiting.popleft()
            moved = True
        return moved

    def _drop(self, request: Request, error: MpifsError) -> None:
        _log.warning("request of rank %d dropped: %s", request.source, error)
        if isinstance(error, ProtocolError):
            request.refuse(error)
        request.done()

    def _handle(self, request: Request) -> None:
        try:
            self._handler(request)
        except OSError as error:
            request.refuse(error)
            request.done()
        except MemoryError:
            request.refuse(_NO_MEMORY)
            request.done()
        except Exception:  # noqa: BLE001  # The loop must go on and the asker must hear.
            _log.exception("request of kind %d failed", request.header.kind)
            request.refuse(OSError(errno.EIO, "internal error, see the log"))
            request.done()

    # Replies going out.

    def answer(
        self,
        request: Request,
        status: int,
        args: Buffer,
        body: Buffer | None,
        items: int,
        free: int,
        on_sent: Callable[[], None] | None,
    ) -> None:
        """Sends a reply; any thread."""
        asked, source = request.header, request.source
        size = 0 if body is None else len(body)
        kind, _, epoch, slot, number, *_ = asked
        header = Header(kind, status, epoch, slot, number, len(args), size, items, b"", free)
        operations: list[Operation] = []
        is_inline = size <= INLINE_BYTES_MAX
        message = encode_message(header, args, body if body and is_inline else b"")
        try:
            operations.append(self.endpoint.isend(source, TAG_REPLY_BASE + slot, message))
            if body is not None and not is_inline:
                tag = TAG_REPLY_DATA_BASE + slot
                operations.append(self.endpoint.isend(source, tag, body))
        except MpifsError as error:
            _log.info("reply not delivered: %s", error)
        address = asked.bell.rstrip(b"\0")
        if address:
            self.endpoint.ring(source, address)
        sending = _Sending(operations, on_sent)
        is_over = sending.is_over()
        if not is_over:
            self._sending.append(sending)
        # The loop must look after it, or may have been waiting for what `on_sent` has done (STOP).
        if threading.get_ident() != self._thread and (on_sent is not None or not is_over):
            self.endpoint.ring(self.endpoint.rank, b"")

    def _finish_sends(self) -> bool:
        """Tests the replies under way once each; True if one is complete."""
        done = 0
        for _ in range(len(self._sending)):
            sending = self._sending.popleft()
            if sending.is_over():
                done += 1
            else:
                self._sending.append(sending)
        return done > 0
