"""Regular files of a stage-out on their way: orders to the workers of their chunks, and their ends.

A file of one chunk is made, proved and named by one worker.  Of a larger one rank 0 makes the
unfinished file (a name that a later run finds again, so that only what is missing is written),
workers write and prove their chunks, and rank 0 gives it its looks and its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from mpifs import faultpoint
from mpifs.core.errors import DamageError, PosixError
from mpifs.core.kinds import Kind
from mpifs.core.limits import STAGE_LOOK_S, STAGE_WORK_S
from mpifs.core.stage_messages import Dress, StageOutOrder, StageOutPart
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.data.stores import Stores
from mpifs.index.inode import Inode
from mpifs.job.stage_orders import Orders
from mpifs.job.stage_out_file import OutFile, OutPart, encode_out_order, state_of
from mpifs.job.stage_run import CancelledError, StageRun, part_name
from mpifs.store.stage_out import UNSEEN, carry_out, dress
from mpifs.transport.client import Client
from mpifs.vfs.facade import Vfs

_CHANGED = "changed while it was staged; run the same command again"
_UNSEEN = (UNSEEN, errno.ENOENT, errno.ENOTDIR, errno.EACCES)


class OutFiles:
    """An OutEnd; used by the run's thread.  `on_done(file)` hears of files that have their name.

    `probe` is a path that shows a worker whether it sees the target.
    """

    def __init__(
        self, vfs: Vfs, client: Client, stores: Stores, run: StageRun, probe: bytes
    ) -> None:
        self._vfs = vfs
        self._index = vfs.index
        self._stores = stores
        self._run = run
        self._probe = probe
        encode = partial(encode_out_order, probe)
        self._orders = Orders(client, stores, Kind.STAGE_OUT, encode, run.check)
        self._blind: set[int] = set()
        self._turn = 0
        self._is_ending = False
        self._anew: deque[OutFile] = deque()
        """Not ordered where it is found out: that is inside the taking of another order."""
        self.active = 0
        self.on_done: Callable[[OutFile], None] = lambda file: None
        self.on_failed: Callable[[OutFile, OSError], None] = lambda file, error: None

    def begin(self, path: bytes, inode: Inode, folder: bytes, name: bytes, looks: Dress) -> None:
        """Orders the parts of a file.  Raises OSError if it cannot be begun."""
        refs = self._refs(inode)
        file = OutFile(self, path, inode, refs, folder, name, part_name(name), looks)
        is_likely = self._is_likely(file)
        self.active += 1
        file.is_whole = len(refs) == 1 and not file.has_holes
        file.checks = is_likely
        file.is_check = is_likely and not file.is_whole
        self._order_all(file)

    def _refs(self, inode: Inode) -> list[tuple[int, ChunkRef]]:
        self._index.check_holes(inode)
        end = -(-inode.size // inode.chunk_size)
        found: list[tuple[int, ChunkRef]] = []
        first = 0
        while page := self._index.refs(inode.ino, first, 1024):
            found += [row for row in page if row[0] < end]
            first = page[-1][0] + 1
        return found

    @staticmethod
    def _is_likely(file: OutFile) -> bool:
        """Whether what lies there may be this file, so that it is compared first."""
        try:
            there = os.lstat(os.path.join(file.folder, file.name))
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(there.st_mode):
            raise PosixError(errno.EISDIR, "a folder is where this is to go; remove it first")
        is_same = there.st_size == file.inode.size and there.st_mtime_ns == file.dress.mtime_ns
        return stat.S_ISREG(there.st_mode) and is_same

    def _order_all(self, file: OutFile) -> None:
        try:
            if not file.is_whole and not file.is_check:
                file.checks = self._make_part(file)
            for chunk, ref in file.refs:
                if file.error is not None:
                    break
                self._order(OutPart(file, chunk, ref))
        except OSError as error:
            file.error = file.error or error
            if isinstance(error, CancelledError):
                file.part_done()
                raise
        file.part_done()

    def _make_part(self, file: OutFile) -> bool:
        """Makes the unfinished file, or finds it; whether it may hold parts already.  One with
        holes is begun anew: what lies in a hole would not be compared."""
        path = os.path.join(file.folder, file.part_name)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        opened = os.open(path, flags, 0o600)
        try:
            size = file.state.size
            is_left = os.fstat(opened).st_size == size and size > 0
            is_left = is_left and not file.has_holes
            if not is_left:
                os.ftruncate(opened, 0)
                os.ftruncate(opened, size)
            return is_left
        finally:
            os.close(opened)

    def _order(self, part: OutPart) -> None:
        """To one of the stores that have the chunk, in turn; else rank 0 does it."""
        stores = [s for s in part.ref.stores if s not in part.tried and s not in self._blind]
        serving = [store for store in stores if self._stores.is_serving(store)] or stores
        if serving:
            self._turn += 1
            self._orders.add(serving[self._turn % len(serving)], part)
        else:
            self._do_here(part)

    def _do_here(self, part: OutPart) -> None:
        """Rank 0 writes a part that no worker can."""
        self._run.helped += 1
        ref = part.ref

        def fetch(item: StageOutPart) -> bytes:
            data = bytearray(ref.length)
            key = ChunkKey(item.inode, item.chunk, item.generation)
            self._vfs.reader.cache.copy(key, ref, 0, memoryview(data))
            return bytes(data)

        order = StageOutOrder([part.folder], [part.row(0)], self._probe)
        kind = self._index.geometry.checksum
        part.tried.add(0)
        try:
            done = carry_out(order, kind, fetch, time.monotonic() + STAGE_WORK_S)[0]
        except OSError as error:
            part.failed(0, error)
        else:
            part.answered(0, done)

    # What comes back (OutEnd)

    def again(self, part: OutPart, store: int, error: OSError) -> bool:
        """See OutEnd."""
        if self._is_ending or 0 in part.tried:
            return False
        part.tried.add(store)
        if error.errno == UNSEEN:
            self._blind.add(store)
        elif error.errno not in _UNSEEN and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return False  # nobody can
        try:
            newer = self._index.ref(part.file.inode, part.chunk)
        except OSError:
            return False
        if newer is None or newer.generation != part.ref.generation:
            return False
        part.ref = newer  # it may have been moved
        self._order(part)
        return True

    def over(self, file: OutFile) -> None:
        """See OutEnd."""
        if file.is_check and not self._is_ending and not isinstance(file.error, CancelledError):
            if file.error is None and self._is_zero_else(file):
                self._skipped(file)
                return
            # Other bytes lie there: it is written anew, beside them.
            file.is_check, file.error, file.waiting, file.parts_there = False, None, 1, 0
            self._anew.append(file)
            return
        failure = file.error
        if failure is None:
            try:
                self._finish(file)
            except OSError as error:
                failure = error
        self.active -= 1
        if failure is not None:
            self._give_up(file, failure)
        else:
            self.on_done(file)

    def _skipped(self, file: OutFile) -> None:
        self.active -= 1
        self._run.skipped += 1
        self.on_done(file)

    @staticmethod
    def _is_zero_else(file: OutFile) -> bool:
        """Whether a file with the right chunks has nothing but zeros in its holes."""
        size, chunk_size = file.state.size, file.inode.chunk_size
        if not file.has_holes:
            return True
        spans = [(c * chunk_size, c * chunk_size + file.kept(c, ref)) for c, ref in file.refs]
        with open(os.path.join(file.folder, file.name), "rb", buffering=0) as opened:
            position = 0
            for start, end in [*spans, (size, size)]:
                while position < start:
                    try:
                        position = os.lseek(opened.fileno(), position, os.SEEK_DATA)
                    except OSError as error:
                        if error.errno == errno.ENXIO:
                            return True
                        raise
                    data = os.pread(
                        opened.fileno(), min(1 << 20, max(0, start - position)), position
                    )
                    if data.strip(b"\0"):
                        return False
                    position += max(1, len(data))
                position = max(position, end)
        return True

    def _finish(self, file: OutFile) -> None:
        inode, run = file.inode, self._run
        data = inode.data
        if state_of(inode) != file.state or getattr(data, "has_unwritten", False):
            if file.is_whole:  # a whole older state of it: as good as if it had come earlier
                pass
            else:
                raise PosixError(errno.ESTALE, _CHANGED)
        if file.is_whole:
            if file.parts_there:
                run.skipped += 1
            else:
                run.files += 1
                run.bytes += file.state.size
            return
        path = os.path.join(file.folder, file.part_name)
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(opened).st_size != file.state.size:
                raise DamageError("another program has written to the file meanwhile")
            dress(opened, file.dress)
            os.fsync(opened)
        finally:
            os.close(opened)
        faultpoint.reach("stage.written")
        os.rename(path, os.path.join(file.folder, file.name))
        run.files += 1
        run.bytes += file.state.size

    def _give_up(self, file: OutFile, error: OSError) -> None:
        """A file that could not be written stays unfinished; one that has changed is begun anew."""
        if error.errno == errno.ESTALE and not file.is_whole:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(file.folder, file.part_name))
        if state_of(file.inode) != file.state and not isinstance(error, CancelledError):
            error = PosixError(errno.ESTALE, _CHANGED)
        self.on_failed(file, error)

    # Waiting

    def turn(self) -> None:
        """Sends and takes what can be; raises what the run's `check` raises."""
        self._run.check()
        self._orders.pump(0.0)
        self._begin_anew()

    def _begin_anew(self) -> None:
        while self._anew:
            self._order_all(self._anew.popleft())

    def drain(self, check: Callable[[], None]) -> None:
        """Waits for everything under way; `check` may end that by raising."""
        while self.active or not self._orders.is_idle:
            check()
            self._begin_anew()
            self._orders.flush()
            self._orders.pump(STAGE_LOOK_S)

    def abandon(self, deadline_s: float) -> None:
        """Takes what is under way until then, gives up the rest."""
        self._is_ending = True
        stopped = CancelledError("not staged: the command was ended")
        self._orders.drop_unsent(stopped)

        def check() -> None:
            if time.monotonic() > deadline_s:
                raise stopped

        try:
            self.drain(check)
        except CancelledError:
            self._orders.drop_all(stopped)
