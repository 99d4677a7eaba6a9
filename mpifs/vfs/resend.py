"""What becomes of a dirty chunk whose worker died: other stores, or a wait for the worker.

sent ──no answer──▶ sent to other stores, as a new generation (_TRIES times)
              └──none is left──▶ put aside ──after PARKED_LOOK_S──▶ sent again
put aside for RECOVERY_S, or no store may come back ──▶ failed, as any other error
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mpifs.core.limits import PARKED_LOOK_S, RECOVERY_S
from mpifs.core.placement import place
from mpifs.data.scatter import Outgoing, Scatter
from mpifs.data.stores import Stores
from mpifs.index.index import Index
from mpifs.vfs.chunk_buffer import ChunkBuffer
from mpifs.vfs.file_data import FileData

log = logging.getLogger(__name__)

_TRIES = 3  # workers that may die one after another under one chunk before it is put aside.

Arrived = Callable[[FileData, ChunkBuffer, Outgoing, "OSError | None"], None]


class Resend:
    """Chunks that got no answer.  `arrived` is called again with the old error for a chunk that was
    put aside, without a lock; it asks `again` once more.

    What is put aside stays in flight for its file: its memory counts, and who waits for the file
    waits for it.
    """

    def __init__(self, index: Index, scatter: Scatter, stores: Stores, arrived: Arrived) -> None:
        self._index = index
        self._scatter = scatter
        self._stores = stores
        self._arrived = arrived
        self._aside: deque[tuple[FileData, ChunkBuffer, Outgoing]] = deque()

    def again(self, data: FileData, buffer: ChunkBuffer, item: Outgoing) -> bool:
        """Sends a chunk once more, now or later; False when it has failed for good.

        Requires: data.lock is held, the chunk's error was a SilentError.
        """
        if buffer.is_cancelled:
            return False
        live = set(self._stores.live_stores()) - item.failed
        able = [store for store in self._stores.placement_stores() if store in live]
        if not able or buffer.tries >= _TRIES:
            return self._put_aside(data, buffer, item)
        buffer.tries += 1
        inode = data.inode
        self._index.add_garbage(item.key, item.stores)
        again = Outgoing(
            item.key._replace(generation=self._index.next_generation()),
            item.buffer,
            item.length,
            place(inode.start, buffer.chunk, inode.replicas, able),
            item.done,
            failed=item.failed,
        )
        buffer.outgoing = again
        log.warning("inode %d: chunk %d is sent again", inode.ino, buffer.chunk)
        self._scatter.submit(again)
        return True

    def _put_aside(self, data: FileData, buffer: ChunkBuffer, item: Outgoing) -> bool:
        now = time.monotonic()
        buffer.parked_s = buffer.parked_s or now
        is_late = now - buffer.parked_s > RECOVERY_S
        if is_late or not self._stores.may_return(self._stores.placement_stores()):
            return False
        self._aside.append((data, buffer, item))
        timer = threading.Timer(PARKED_LOOK_S, self._take_up)
        timer.daemon = True
        timer.start()
        return True

    def _take_up(self) -> None:
        """In a thread of its own."""
        for _ in range(len(self._aside)):
            try:
                data, buffer, item = self._aside.popleft()
            except IndexError:  # another timer was quicker.
                return
            item.failed.clear()
            buffer.tries = 0
            self._arrived(data, buffer, item, item.error)
