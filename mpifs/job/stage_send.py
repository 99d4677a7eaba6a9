"""Parts of files that a worker does not see: rank 0 reads them and sends them as any write goes.

Belongs to a run's thread; only what the scatter thread has finished comes from there, in a queue.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import SETTLE_LOOK_S, STAGE_SENT_BYTES_MAX
from mpifs.core.types import ChunkKey
from mpifs.data.scatter import Outgoing, Scatter
from mpifs.job.stage_file import InPart
from mpifs.store.stage_in import read_part


class Sender:
    """`count` and `bytes` are of what is under way."""

    def __init__(self, scatter: Scatter) -> None:
        self._scatter = scatter
        self._done: queue.SimpleQueue[tuple[InPart, Outgoing, OSError | None]] = queue.SimpleQueue()
        self.count = 0
        self.bytes = 0

    def send(self, part: InPart, check: Callable[[], None]) -> None:
        """Reads a part and sends it to its stores; waits while much is under way, and `check` may
        end that by raising."""
        while self.count and self.bytes + part.length > STAGE_SENT_BYTES_MAX:
            check()
            self.pump(SETTLE_LOOK_S)
        file = part.file
        buffer = bytearray(IMAGE_HEADER_BYTES + part.length)
        payload = memoryview(buffer)[IMAGE_HEADER_BYTES:]
        try:
            read_part(None, file.path, file.identity, payload, part.offset)
        except OSError as error:
            part.sent(b"", error)
            return
        finally:
            payload.release()
        self.count += 1
        self.bytes += part.length
        key = ChunkKey(file.numbers.ino, part.chunk, part.generation)

        def done(item: Outgoing, error: OSError | None) -> None:
            self._done.put((part, item, error))

        self._scatter.submit(Outgoing(key, buffer, part.length, part.stores, done))

    def pump(self, timeout_s: float = 0.0) -> None:
        """Takes what is finished."""
        try:
            part, item, error = self._done.get(timeout_s > 0, timeout_s or None)
            while True:
                self.count -= 1
                self.bytes -= part.length
                part.sent(item.checksum, error)
                part, item, error = self._done.get_nowait()
        except queue.Empty:
            return
