"""What the transfer commands do, each as the work of a TransferRun: send (from any rank to any),
broadcast, collect, scatter, gather."""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from mpifs.core.errors import MpifsError, PosixError
from mpifs.core.limits import TRANSFER_LINES_MAX, TRANSFER_ROWS_MAX
from mpifs.core.transfer_messages import LINK
from mpifs.job.transfer_run import (
    FAILED,
    NOTHING,
    Row,
    TransferRun,
    Work,
    list_of,
    plural,
    rank_name,
)
from mpifs.transfer.carrier import MASTER
from mpifs.transfer.dealing import DealtSource, Manifest, deal, plan, read_manifest
from mpifs.transfer.folder import joined, parts_of, shown
from mpifs.transfer.long_file import move_long
from mpifs.transfer.pattern import matching
from mpifs.transfer.tally import Tally

Names = Sequence[bytes]
_NAMES_SHOWN = 4  # in the line of a worker; more are only counted.


def _check_rows(count: int) -> None:
    if count > TRANSFER_ROWS_MAX:
        raise PosixError(
            errno.E2BIG,
            f"{count} transfers in one command, {TRANSFER_ROWS_MAX} are allowed: "
            "put the files into a folder and name that",
        )


def send(names: Names, source: int, targets: Sequence[int], into: bytes) -> Work:
    """Each name from one rank to each of the others."""

    def work(run: TransferRun) -> None:
        _check_rows(len(names) * len(targets))
        away = run.ready([source, *targets])
        rows = [run.add(name, source, target) for target in targets for name in names]
        works: list[Callable[[], None]] = []
        for row in rows:
            error = away.get(row.source) or away.get(row.target)
            if error is not None:
                run.end(row, FAILED, error)
            else:
                works.append(partial(run.carry, row, [row.label], into))
        run.all(works)

    return work


def broadcast(names: Names, ranks: Sequence[int], into: bytes) -> Work:
    """To all along a tree: whoever has the files serves the next one, so that the number of those
    who serve doubles each time."""

    def work(run: TransferRun) -> None:
        away = run.ready(ranks)
        label = b" ".join(names) if len(names) <= _NAMES_SHOWN else b"%d files" % len(names)
        rows = {rank: run.add(label, MASTER, rank) for rank in ranks}
        for rank, error in away.items():
            run.end(rows.pop(rank), FAILED, error)
        for name in names:  # before anybody is asked to fetch it from another one
            entry = run.carrier.source(MASTER).look(name)
            if entry.kind == LINK:
                raise PosixError(errno.ELOOP, f"{shown(name)} is a symbolic link")
        _Tree(run, rows, names, into).grow()

    return work


class _Tree:
    """A broadcast under way.  `_changed` guards the rest."""

    def __init__(self, run: TransferRun, rows: dict[int, Row], names: Names, into: bytes) -> None:
        self._run = run
        self._rows = rows
        self._names = list(names)
        self._into = into
        self._changed = threading.Condition()
        self._waiting = deque(sorted(rows))
        self._idle = deque([MASTER])
        self._depth = {MASTER: 0}
        self._has_failed: set[int] = set()
        self._busy = 0

    def grow(self) -> None:
        """Returns when all have the files or have failed."""
        while True:
            with self._changed:
                pair = self._take_pair()
                while pair is None and self._busy:
                    self._changed.wait(1.0)
                    pair = self._take_pair()
                if pair is None:
                    return
                self._busy += 1
            threading.Thread(target=self._serve, args=pair, daemon=True).start()

    def _take_pair(self) -> tuple[int, int] | None:
        """A rank that has the files and one that does not, which have a link."""
        for source in list(self._idle):
            for target in self._waiting:
                if self._run.carrier.can_carry(source, target):
                    self._idle.remove(source)
                    self._waiting.remove(target)
                    return source, target
        return None

    def _serve(self, source: int, target: int) -> None:
        row, is_good = self._rows[target], False
        try:
            row.source = source
            self._run.begin(row)
            # What stands under `into` there is served from there.
            names = self._names
            if source != MASTER:
                names = [joined(self._into, name) for name in names]
            into = self._into if source == MASTER else b""
            self._run.carrier.carry(source, target, names, into, row.tally)
            is_good = not row.tally.error_count
            is_again = not is_good and source != MASTER and target not in self._has_failed
            is_again = is_again and not self._run.is_cancelled
            if is_again:  # perhaps it was the source; the master has the files for certain
                self._run.say(
                    f"{rank_name(target)}: got nothing from {rank_name(source)} "
                    f"({row.tally.errors[0][1]}); the master sends it"
                )
                self._has_failed.add(target)
                row.tally = Tally()
                row.source = MASTER
                self._run.begin(row)
                self._run.carrier.carry(MASTER, target, self._names, self._into, row.tally)
                is_good = not row.tally.error_count
            row.note = f"step {self._depth[row.source] + 1} of the tree"
            self._run.end(row)
        finally:
            with self._changed:
                self._idle.append(source)
                if is_good:
                    self._depth[target] = self._depth[row.source] + 1
                    self._idle.append(target)
                self._busy -= 1
                self._changed.notify_all()


def collect(pattern: bytes, ranks: Sequence[int], into: bytes) -> Work:
    """What matches on each worker, to rank-K/NAME on the master."""

    def work(run: TransferRun) -> None:
        parts_of(pattern)
        away = run.ready(ranks)
        rows = [run.add(pattern, rank, MASTER) for rank in ranks]

        def fetch(row: Row) -> None:
            if row.source in away:
                run.end(row, FAILED, away[row.source])
                return
            try:
                names = matching(run.carrier.source(row.source, row.tally.check), pattern)
            except OSError as error:
                run.end(row, FAILED, error)
                return
            if not names:
                run.end(row, NOTHING)
                return
            if len(names) <= _NAMES_SHOWN:
                row.label = b" ".join(names)
            run.carry(row, names, joined(into, b"rank-%d" % row.source))

        run.all([partial(fetch, row) for row in rows])
        if all(row.state == NOTHING for row in rows):
            raise PosixError(errno.ENOENT, f"{shown(pattern)}: no worker has such a file")

    return work


def scatter(name: bytes, ranks: Sequence[int], chunk_bytes: int) -> Work:
    """The chunks of one file of the master's, dealt out to the workers."""

    def work(run: TransferRun) -> None:
        away = run.ready(ranks)
        for rank, error in away.items():
            raise PosixError(
                error.errno or errno.EIO, f"{rank_name(rank)} cannot take its chunks: {error}"
            )
        rows = {rank: run.add(name, MASTER, rank) for rank in ranks}
        first = rows[ranks[0]]
        manifest = plan(run.carrier.source(MASTER), name, chunk_bytes, ranks, first.tally)

        def give(rank: int) -> None:
            row = rows[rank]
            run.begin(row)
            names_all = len(manifest.chunks_of(rank)) <= TRANSFER_LINES_MAX

            def stored(index: int) -> None:
                if names_all:
                    run.say(f"worker {rank}: stored chunk {index} of {shown(name)}")

            source, sink = run.carrier.source(MASTER), run.carrier.sink(rank, row.tally.check)
            try:
                deal(source, manifest, rank, sink, row.tally, stored)
            except OSError as error:
                run.end(row, FAILED, error)
            else:
                mine = manifest.chunks_of(rank)
                row.note = f"chunks {list_of(mine)}" if len(mine) > 1 else ""
                run.end(row)

        run.all([partial(give, rank) for rank in ranks])

    return work


def gather(name: bytes, ranks: Sequence[int], to: bytes) -> Work:
    """The file that was dealt out, put together on the master under the name `to`."""

    def work(run: TransferRun) -> None:
        away = run.ready(ranks)
        row = run.add(to, -1, MASTER)
        run.begin(row)
        try:
            manifest = _agreed(run, name, [rank for rank in ranks if rank not in away])
            for rank in manifest.ranks:
                if rank in away:
                    raise away[rank]
                if rank not in ranks:
                    raise PosixError(errno.ENXIO, f"its chunks on rank {rank} are not in this job")
            dealt = DealtSource(
                manifest,
                {rank: run.carrier.source(rank, row.tally.check) for rank in manifest.ranks},
            )
            entry = manifest.entry
            target = type(entry)(
                to, entry.kind, entry.size, entry.mode, entry.mtime_ns, entry.atime_ns,
                blocks=entry.blocks,
            )  # fmt: skip
            row.tally.total = entry.size
            sink = run.carrier.sink(MASTER)
            move_long(dealt, entry, sink, target, row.tally, manifest.chunk_bytes)
        except OSError as error:
            run.end(row, FAILED, error)
            return
        for rank, given in sorted(dealt.given.items()):
            word = plural(len(given), "chunk")
            run.say(f"worker {rank}: gave {word} of {shown(name)} ({list_of(given)})")
        run.end(row)

    return work


def _agreed(run: TransferRun, name: bytes, ranks: Sequence[int]) -> Manifest:
    """What the workers know of the file.  Raises OSError when they know nothing, or not the
    same."""
    found: dict[bytes, Manifest] = {}
    lacking, failed = set(), None
    for rank in ranks:
        run.check()
        try:
            manifest = read_manifest(run.carrier.source(rank, run.check), name)
        except MpifsError as error:
            failed = error
            continue
        if manifest is None:
            lacking.add(rank)
        else:
            found[manifest.sums + bytes(str(manifest.ranks), "ascii")] = manifest
    if not found:
        raise failed or PosixError(
            errno.ENOENT, f"{shown(name)}: no worker has chunks of it; scatter it first"
        )
    manifest = next(iter(found.values()))
    short = lacking & set(manifest.ranks)
    if len(found) > 1 or short:
        raise PosixError(
            errno.EIO,
            f"{shown(name)}: the workers have chunks of different versions of it, or the scatter "
            "was interrupted; scatter it again",
        )
    return manifest
