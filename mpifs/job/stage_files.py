"""Regular files of a stage-in on their way: from the order of their parts to their names.

When all parts of a file are durable, inode, refs and name go into the index in one step.  A large
file is in the index from its first part on, as an unfinished file beside its name, so that a later
run goes on where this one ended.  What a worker does not see, rank 0 reads and sends (stage_send).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from mpifs import faultpoint
from mpifs.core.errors import FullError, MpifsError
from mpifs.core.kinds import Kind
from mpifs.core.layout import chunk_bytes
from mpifs.core.limits import (
    SETTLE_LOOK_S,
    STAGE_ABANDON_S,
    STAGE_FULL_LOOK_S,
    STAGE_LOOK_S,
    STAGE_PARTIAL_BYTES,
)
from mpifs.core.placement import place
from mpifs.core.stage_messages import StageDone
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.data.stores import Stores
from mpifs.index.inode import Inode
from mpifs.job.stage_file import InPart, LinkKey, StagedFile, data_chunks, encode_order
from mpifs.job.stage_links import Links
from mpifs.job.stage_names import StagedNames
from mpifs.job.stage_orders import Orders
from mpifs.job.stage_place import Places, xattrs_of
from mpifs.job.stage_run import CancelledError, StageRun
from mpifs.job.stage_send import Sender
from mpifs.store.stage_in import identity_of
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs

_UNSEEN = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP)


class StagedFiles:
    """A FileEnd.  Used by the run's thread, but for `settle`, which any may call."""

    def __init__(
        self,
        vfs: Vfs,
        client: Client,
        stores: Stores,
        run: StageRun,
        places: Places,
        names: StagedNames,
        links: Links,
    ) -> None:
        self._vfs = vfs
        self._index = vfs.index
        self._stores = stores
        self._run = run
        self._places = places
        self._names = names
        self._links = links
        self._orders = Orders(
            client, stores, Kind.STAGE_IN, encode_order, run.check, vfs.writeback.space.told
        )
        self._sender = Sender(vfs.scatter)
        self._active: dict[StagedFile | InPart, None] = {}
        """What has parts ordered that are neither in the index nor garbage."""
        self._is_hurried = False
        self._blind: set[tuple[int, int]] = set()
        """(store, st_dev of sources that its worker does not see)."""
        self._full_s = 0.0
        self._placement: list[int] = []
        self._placed = 0

    def settle(self, deadline_s: float) -> None:
        """Returns when every part that was ordered before is in the index or garbage; any thread.
        Raises MpifsError at the deadline (time.monotonic)."""
        active = list(self._active)
        while any(each in self._active for each in active):
            self._is_hurried = True
            if time.monotonic() > deadline_s:
                raise MpifsError("files being staged in take too long; try again")
            time.sleep(SETTLE_LOOK_S)

    def turn(self) -> None:
        """Sends and takes what can be; raises what the run's `check` raises."""
        self._run.check()
        if self._is_hurried:
            self._is_hurried = False
            self._orders.flush()
        self._orders.pump(0.0)
        self._sender.pump()
        self._places.tell()

    def begin(
        self,
        folder: bytes,
        name: bytes,
        found: os.stat_result,
        parent: Inode,
        target: bytes,
        replaces: bool,
        key: LinkKey | None,
    ) -> None:
        """Orders the parts of a file.  Raises OSError if it cannot be begun; what comes later is
        told to the run."""
        is_large = found.st_size >= STAGE_PARTIAL_BYTES
        size = min(found.st_size, found.st_blocks * 512)
        left = self._places.there(parent, self._places.part_name(target)) if is_large else None
        self._admit(max(0, size - (left.bytes_stored if left is not None else 0)))
        file = StagedFile(self, folder, name, found, parent, target, self._index.next_inode())
        file.replaces, file.key = replaces, key
        path = file.path
        file.xattrs = xattrs_of(path)
        chunks = data_chunks(path, found, file.chunk_size)
        if is_large:
            self._resume(file)
        else:
            self._active[file] = None
        try:
            for chunk in chunks:
                if file.error is not None:
                    break
                self._order(file, chunk)
        except OSError as error:
            file.error = file.error or error
            if isinstance(error, CancelledError):
                file.part_done()
                raise
        file.part_done()

    def _resume(self, file: StagedFile) -> None:
        """A large file is in the index before it is whole."""
        part = self._places.part_name(file.target)
        self._names.claim(file.parent, part)
        inode = self._places.begin_partial(file.parent, part, file.numbers, file.identity)
        file.partial = inode
        file.numbers = file.numbers._replace(ino=inode.ino, start=inode.start)
        file.chunk_size, file.replicas = inode.chunk_size, inode.replicas

    def _order(self, file: StagedFile, chunk: int) -> None:
        """Has one chunk stored."""
        size = file.found.st_size
        length = chunk_bytes(chunk, size, file.chunk_size)
        if file.partial is not None:
            if self._index.ref(file.partial, chunk) is not None:
                self._run.skipped_bytes += length
                return
            if length + self._sender.bytes > self._vfs.writeback.free_bytes():
                self._admit(length)
        if not self._placed % 64:
            self._placement = self._stores.placement_stores()
        self._placed += 1
        stores = place(file.numbers.start, chunk, file.replicas, self._placement)
        part = InPart(file, chunk, self._index.next_generation(), length, stores)
        if file.partial is not None:
            self._active[part] = None
        device = file.found.st_dev
        if self._blind and any((store, device) in self._blind for store in stores):
            self._sender.send(part, self._run.check)
            self._run.helped += 1
            return
        for store in stores:
            self._orders.add(store, part)

    def _admit(self, size: int) -> None:
        """Raises FullError when the stores have no room for so much more."""
        writeback = self._vfs.writeback
        if writeback.free_bytes() >= size:
            return
        if time.monotonic() - self._full_s > STAGE_FULL_LOOK_S:
            self._full_s = time.monotonic()
            self._vfs.committer.make_room(True)
        if writeback.free_bytes() < size:
            raise FullError("no space left on the stores; delete files or add workers")

    # What comes back (FileEnd)

    def stored(self, file: StagedFile, chunk: int, ref: ChunkRef) -> None:
        """See FileEnd."""
        self._run.bytes += ref.length
        if file.partial is None:
            file.refs.append((chunk, ref))
        else:
            try:
                self._places.add_ref(file.partial, chunk, ref)
            except OSError as error:
                file.error = file.error or error
                self._drop(file.numbers.ino, chunk, ref)
        faultpoint.reach("stage.stored")

    def lost(self, part: InPart) -> None:
        """See FileEnd."""
        key = ChunkKey(part.file.numbers.ino, part.chunk, part.generation)
        self._index.add_garbage(key, part.stores)

    def settled(self, part: InPart) -> None:
        """See FileEnd."""
        self._active.pop(part, None)

    def _drop(self, ino: int, chunk: int, ref: ChunkRef) -> None:
        self._index.add_garbage(ChunkKey(ino, chunk, ref.generation), ref.stores)

    def is_blind(self, part: InPart, store: int, done: StageDone) -> bool:
        """See FileEnd."""
        file = part.file
        if done.code not in _UNSEEN:
            return False
        try:
            is_there = identity_of(os.lstat(file.path)) == file.identity
        except OSError:
            return False
        if is_there:
            self._blind.add((store, file.found.st_dev))
        return is_there

    def resend(self, part: InPart) -> None:
        """See FileEnd."""
        self._run.helped += 1
        self._sender.send(part, lambda: None)

    def over(self, file: StagedFile) -> None:
        """See FileEnd."""
        failure = file.error
        if failure is None:
            try:
                self._finish(file)
            except OSError as error:
                failure = error
        if failure is not None:
            self._give_up(file, failure)
        self._active.pop(file, None)

    def _finish(self, file: StagedFile) -> None:
        looks = self._places.looks(file.found, file.xattrs)
        if file.partial is None:
            file.refs.sort()
            fresh = self._places.fresh(looks, size=file.found.st_size, refs=file.refs)
            inode = self._names.make(file.parent, file.target, file.numbers, fresh, file.replaces)
        else:
            inode = self._names.end_partial(file, looks)
        faultpoint.reach("stage.placed")
        self._run.files += 1
        self._links.made(file.key, inode)

    def _give_up(self, file: StagedFile, error: OSError) -> None:
        """Its parts are garbage; an unfinished large file stays, unless its source is another."""
        if file.partial is None:
            for chunk, ref in file.refs:
                self._run.bytes -= ref.length
                self._drop(file.numbers.ino, chunk, ref)
        elif error.errno == errno.ESTALE:
            self._names.drop_partial(file)
        if file.partial is not None:
            self._names.release(file.parent, self._places.part_name(file.target))
        self._vfs.committer.kick()
        if not isinstance(error, CancelledError):
            self._run.fail(file.path, error)
        self._links.failed(file.key, error)

    def drain(self, check: Callable[[], None]) -> None:
        """Waits for everything under way; `check` may end that by raising."""
        while self._active or not self._orders.is_idle or self._sender.count:
            check()
            self._orders.flush()
            self._orders.pump(STAGE_LOOK_S)
            self._sender.pump()
            self._places.tell()

    def abandon(self) -> None:
        """Takes what is under way, gives up the rest."""
        stopped = CancelledError("not staged: the command was ended")
        self._orders.drop_unsent(stopped)
        deadline_s = time.monotonic() + STAGE_ABANDON_S

        def check() -> None:
            if time.monotonic() > deadline_s:
                raise stopped

        try:
            self.drain(check)
        except CancelledError:
            self._orders.drop_all(stopped)
