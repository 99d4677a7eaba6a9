"""Write-back: sends dirty chunks, takes the refs of what is durable into the index.

The order of DESIGN section 4 is kept here: a chunk's ref enters the index (`Index.set_refs`) only
when its stores have said that it is durable.  Bounded by `dirty_bytes_max`: over it, writers wait.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from mpifs.core.errors import FullError, MpifsError, SilentError
from mpifs.core.layout import extents
from mpifs.core.limits import (
    FLUSH_COUNT,
    PACKED_BYTES_MAX,
    RECOVERY_S,
    REQUEST_TIMEOUT_S,
    SMALL_FILE_BYTES_MAX,
)
from mpifs.core.placement import place
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.data.scatter import Outgoing, Scatter
from mpifs.data.space import Space
from mpifs.data.stores import Stores
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.vfs.chunk_buffer import ChunkBuffer
from mpifs.vfs.dirty_chunks import DirtyChunks
from mpifs.vfs.dirty_memory import DirtyMemory
from mpifs.vfs.file_data import FileData, Locked
from mpifs.vfs.reader import Reader
from mpifs.vfs.resend import Resend

log = logging.getLogger(__name__)

_STORED = object()


class WriteBack(DirtyChunks):
    """All dirty data of the mount.

    `make_room(True)` flushes, commits and reclaims before it returns, `make_room(False)` only has
    that begun.

    Locks: FileData.lock, then index.lock.  `done` callbacks come on the scatter thread.
    """

    def __init__(
        self,
        index: Index,
        scatter: Scatter,
        reader: Reader,
        space: Space,
        stores: Stores,
        memory: DirtyMemory,
        on_dirty: Callable[[], None],
        make_room: Callable[[bool], None],
    ) -> None:
        super().__init__(index, memory, on_dirty)
        self._scatter = scatter
        self._reader = reader
        self.space = space
        self._stores = stores
        self._make_room = make_room
        self._resend = Resend(index, scatter, stores, self._arrived)
        self.short_count = 0
        """Chunks stored with fewer copies than wanted, because a worker was away: healing is due.
        Grows only; written by the scatter thread."""
        self.on_lost: Callable[[Inode], None] = lambda inode: None

    def locked(self, inode: Inode) -> Locked:
        """For a `with` block: the inode's FileData with its lock held, made if there is none."""
        return Locked(inode, self._index.lock)

    @property
    def dirty_bytes(self) -> int:
        """Memory in dirty and in-flight chunks."""
        return self._memory.bytes_used

    def free_bytes(self) -> int:
        """Payload bytes that can still be written, as the stores last told."""
        return max(0, self.space.free_bytes(self._index.geometry.replicas) - self.dirty_bytes)

    def admit(self, size: int, *, is_growth: bool = True) -> None:
        """Waits until `size` more dirty bytes fit.  Takes no other lock.
        Raises FullError when the stores have no room for them.  What is not `is_growth` may take
        the place of something: the stores decide, and say so at the next flush.
        """
        if self.free_bytes() < size:
            self._make_room(True)
            if is_growth and self.free_bytes() < size:
                raise FullError("no space left on the stores; delete files or add workers")
        self._memory.wait_for(size, lambda: self._make_room(False))

    def zero(self, data: FileData, offset: int, end: int) -> None:
        """Makes [offset, end) read as zeros: whole chunks become holes, edges are written.

        Requires: data.lock is held, admit() was called for the edges, end <= inode.size.
        """
        inode = data.inode
        for extent in extents(offset, end - offset, inode.chunk_size):
            is_whole = extent.start == 0 and (
                extent.length == inode.chunk_size
                or extent.chunk * inode.chunk_size + extent.length >= inode.size
            )
            if is_whole:
                self._cancel(data, extent.chunk, extent.chunk)
                self._index.drop_refs(inode, extent.chunk, extent.chunk)
            elif (
                extent.chunk in data.dirty
                or data.on_its_way(extent.chunk)
                or self._index.ref(inode, extent.chunk)
            ):
                buffer = self._open_buffer(data, extent.chunk, extent.start, extent.length)
                buffer.write_zeros(extent.start, extent.start + extent.length)
        self._settle(data)

    def truncate(self, data: FileData, size: int) -> None:
        """Sets the size, both ways.  Requires: data.lock is held."""
        inode = data.inode
        if size > inode.size:
            self.extend(data)
        rest: int | None = None
        with self._index.lock:  # a commit has the refs that are dropped with the size, or neither
            if size < inode.size:
                keep, part = divmod(size, inode.chunk_size)
                first = keep if part == 0 else keep + 1
                self._cancel(data, first, None)
                rest = self._index.drop_refs(inode, first)
                if part and keep in data.dirty:
                    data.dirty[keep].truncate(part)
            inode.size = size
            inode.stable_size = min(inode.stable_size, size)
            self._settle(data)
        while rest is not None:  # behind the end, where nobody looks any more
            rest = self._index.drop_refs(inode, rest)

    def _cancel(self, data: FileData, first: int, last: int | None) -> None:
        """Drops what is dirty of chunks `first` to `last` and voids what is in flight."""

        def inside(chunk: int) -> bool:
            return chunk >= first and (last is None or chunk <= last)

        for chunk in [chunk for chunk in data.dirty if inside(chunk)]:
            self._drop(data.dirty.pop(chunk))
        for buffer in data.in_flight:
            if inside(buffer.chunk):
                buffer.is_cancelled = True

    def abandon(self, data: FileData) -> None:
        """The file is removed and nobody has it open: its data need not be stored.

        Requires: data.lock is held.
        """
        self._cancel(data, 0, None)
        self._unpin_if_idle(data)

    def submit(self, data: FileData, buffers: Iterable[ChunkBuffer]) -> None:
        """Freezes dirty chunks and sends them, lower ones that also extend the file first.

        Requires: data.lock is held.
        """
        self._scatter.submit_many(self._frozen(data, buffers))

    def _frozen(self, data: FileData, buffers: Iterable[ChunkBuffer]) -> list[Outgoing]:
        """As `submit`, but the caller sends them, with or without the lock."""
        inode = data.inode
        chosen = {buffer.chunk: buffer for buffer in buffers}
        grown = inode.stable_size // inode.chunk_size
        highest = max(chosen, default=-1)
        if highest >= grown:
            chosen.update(
                (chunk, buffer) for chunk, buffer in data.dirty.items() if grown <= chunk < highest
            )
        outgoing = []
        for chunk in sorted(chosen):
            buffer = chosen[chunk]
            if not buffer.length:
                self._drop(data.dirty.pop(chunk))
                self._settle(data)
                continue
            try:
                self._reader.fill(inode, buffer)
            except OSError as error:
                data.error = error
                log.error("%s: chunk %d is lost: %s", self._name(inode), chunk, error)
                self._drop(data.dirty.pop(chunk))
                self._settle(data)
                continue
            outgoing.append(self._freeze(data, buffer))
        return outgoing

    def _freeze(self, data: FileData, buffer: ChunkBuffer) -> Outgoing:
        inode = data.inode
        item = Outgoing(
            ChunkKey(inode.ino, buffer.chunk, self._index.next_generation()),
            buffer.buffer,
            buffer.length,
            place(inode.start, buffer.chunk, inode.replicas, self._stores.placement_stores()),
            lambda item, error: self._arrived(data, buffer, item, error),
        )
        buffer.outgoing = item
        data.in_flight.append(buffer)
        del data.dirty[buffer.chunk]  # afterwards, for readers that look without the lock
        return item

    def _arrived(
        self, data: FileData, buffer: ChunkBuffer, item: Outgoing, error: OSError | None
    ) -> None:
        """On the scatter thread: one chunk is durable, or could not be stored."""
        inode = data.inode
        lost = False
        with data.lock:
            if isinstance(error, SilentError) and self._resend.again(data, buffer, item):
                return
            buffer.is_done = True
            if error is not None:
                lost = not buffer.is_cancelled  # what is void already is no loss, and no error
                if lost:
                    data.error = error
                buffer.is_cancelled = True
                self._index.add_garbage(item.key, item.stores)
            with self._index.lock:  # a commit has the refs with the size that they make, or neither
                while data.in_flight and data.in_flight[0].is_done:
                    first = data.in_flight[0]
                    self._apply(data, first)
                    data.in_flight.popleft()  # after its ref is in: readers look without the lock
                    first.outgoing = _STORED  # which names the buffer: no cycle for the collector
                if lost:
                    self._forget_lost(data, buffer.chunk)
                self._settle(data)
            if not data.in_flight:
                data.tell_idle()
        if lost:
            self.on_lost(inode)

    def _apply(self, data: FileData, buffer: ChunkBuffer) -> None:
        """Takes the ref of a durable chunk into the index, or its garbage."""
        item = buffer.outgoing
        assert isinstance(item, Outgoing)
        inode = data.inode
        follower = data.dirty.get(buffer.chunk)
        if follower is not None and follower.base is buffer:
            follower.fill(buffer.view(0, buffer.length))
        is_ours = item.error is None  # else MPI may still read it.
        if item.error is None:
            if buffer.is_cancelled:
                self._index.add_garbage(item.key, item.stores)
            else:
                ref = ChunkRef(item.key.generation, item.length, item.checksum, item.stores)
                self._index.set_refs(inode, [(buffer.chunk, ref)])
                if data.is_past_cache and inode.size <= SMALL_FILE_BYTES_MAX:
                    # Else what is read soon after would come all the way back.
                    cache = self._reader.cache
                    is_ours = not cache.adopt(item.key, buffer.buffer, item.length)
                if len(item.stores) < inode.replicas:
                    wanted = min(inode.replicas, self._stores.expected_count())
                    self.short_count += len(item.stores) < wanted
        self._memory.give(buffer.buffer, keep=is_ours)

    def _settle(self, data: FileData) -> None:
        """After chunks have become durable or void.  Requires: data.lock is held."""
        self._advance(data)
        self._unpin_if_idle(data)

    def _advance(self, data: FileData) -> None:
        """Moves stable_size up to what is durable without a gap."""
        inode = data.inode
        size = inode.size
        if data.has_unwritten:
            chunk_size = inode.chunk_size
            grown = inode.stable_size // chunk_size
            waiting = [b.chunk for b in data.in_flight if not b.is_cancelled]
            waiting += [b.chunk for b in data.dirty.values()]
            lowest = min((c for c in waiting if c >= grown), default=None)
            if lowest is not None:
                size = min(size, lowest * chunk_size)
        inode.stable_size = max(inode.stable_size, size)
        self._index.touch(inode)

    def _forget_lost(self, data: FileData, chunk: int) -> None:
        """A chunk could not be stored: the file falls back to its last durable state there; what
        would have made it longer is taken off, so that no hole stands where bytes were written."""
        inode = data.inode
        if (chunk + 1) * inode.chunk_size > inode.stable_size < inode.size:
            self.truncate(data, max(inode.stable_size, chunk * inode.chunk_size))

    def _unpin_if_idle(self, data: FileData) -> None:
        """Requires: data.lock is held."""
        if not data.has_unwritten and self.files.pop(data.inode.ino, None) is not None:
            data.closing = False
            self._index.unpin(data.inode)
            data.detach_if_idle()

    def flush(self, *files: FileData) -> None:
        """Starts sending everything dirty of the files; of many small ones in few messages."""
        outgoing: list[Outgoing] = []
        try:
            for data in files:
                with data.lock:
                    if data.dirty:
                        outgoing += self._frozen(data, list(data.dirty.values()))
                is_large = outgoing and outgoing[-1].length > PACKED_BYTES_MAX
                if is_large or len(outgoing) >= FLUSH_COUNT:
                    outgoing, full = [], outgoing
                    self._scatter.submit_many(full)
        finally:
            if outgoing:
                self._scatter.submit_many(outgoing)

    def wait(self, data: FileData) -> None:
        """Waits until nothing of the file is on its way.  Raises MpifsError at the deadline."""
        deadline = time.monotonic() + REQUEST_TIMEOUT_S + RECOVERY_S
        with data.lock:
            while data.in_flight:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise MpifsError(f"{self._name(data.inode)}: workers do not take its data")
                data.await_idle(left)

    def _name(self, inode: Inode) -> str:
        return self._index.path_of(inode.ino).decode(errors="backslashreplace")

    def is_tight(self) -> bool:
        """Whether the stores are so full that a close had better wait for its data."""
        return self.free_bytes() < 4 * self._memory.bytes_max
