"""A volume of real stores and a real index over the loopback transport, to be damaged and checked.

`fill` writes files through a Vfs; then the volume is at rest and anything may be done to its files;
`check` serves what can be served and runs all checks, with or without repair.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from mpifs.core.buffers import BufferPool
from mpifs.core.errors import MpifsError
from mpifs.core.kinds import Kind
from mpifs.core.limits import NUMBER_RESERVE
from mpifs.core.messages import Serve, encode_args
from mpifs.core.types import Caller, StoreEntry, StoreState
from mpifs.index.raw import RawIndex
from mpifs.job.assembly import VfsOptions
from mpifs.repair.check_index import INDEX_CHECKS
from mpifs.repair.findings import Finding, Progress
from mpifs.repair.run import run
from mpifs.repair.stores import StoreAccess
from mpifs.repair.volume_offline import OfflineVolume
from mpifs.store.service import StoreService
from mpifs.transport.client import Client
from mpifs.transport.loopback import make_world
from mpifs.transport.server import Server
from tests.vfs.loopback import LoopbackVolume

ME = Caller(0, 0)
CHUNK = 16 * 1024

Row = Callable[[str, bytes], "bytes | None"]


class ChunkWorld:
    """A volume in `folder`; `contents` is what its files must read as."""

    def __init__(self, folder: Path, workers: int = 3, replicas: int = 1, chunk: int = CHUNK):
        self.folder = folder
        self.chunk = chunk
        self.volume = LoopbackVolume(folder, workers=workers, chunk_size=chunk, replicas=replicas)
        self.contents: dict[bytes, bytes] = {}
        self.entries: list[StoreEntry] = []
        self.progress = Progress()

    @classmethod
    def of(cls, volume: LoopbackVolume) -> ChunkWorld:
        """The world around a volume at rest that was made otherwise."""
        world = cls.__new__(cls)
        world.folder, world.volume, world.contents = volume.folder, volume, {}
        world.entries, world.progress = volume.index.stores(), Progress()
        world.chunk = volume.index.geometry.chunk_size
        return world

    # Files.

    def fill(self, seed: int, files: int = 12) -> None:
        """Writes files of all kinds of sizes, some of them twice, some with holes."""
        chance = random.Random(seed)
        vfs = self.volume.open(VfsOptions(commit_interval_s=0.01))
        for n in range(files):
            path = b"/file-%d" % n
            size = chance.choice((1, 700, self.chunk - 1, self.chunk, 3 * self.chunk + 5, 70_000))
            for _ in range(chance.choice((1, 1, 2))):
                self._write(path, chance.randbytes(size))
            if n % 4 == 3:
                fh = vfs.open(path, os.O_RDWR)
                tail = chance.randbytes(500)
                vfs.write(fh, memoryview(tail), 10 * self.chunk + 77)
                vfs.fsync(fh)
                vfs.release(fh)
                content = self.contents[path]
                self.contents[path] = content.ljust(10 * self.chunk + 77, b"\0") + tail
        self.entries = self.volume.index.stores()
        self.volume.close()

    def _write(self, path: bytes, content: bytes) -> None:
        vfs = self.volume.vfs
        assert vfs is not None
        if vfs.index.lookup(1, path[1:]):
            fh = vfs.open(path, os.O_RDWR)
        else:
            fh = vfs.create(path, 0o644, os.O_RDWR, ME)
        vfs.write(fh, memoryview(content), 0)
        vfs.fsync(fh)
        vfs.release(fh)
        self.contents[path] = content

    def read(self) -> dict[bytes, list[bytes | None]]:
        """Each file piece by piece (of a chunk's size), None where a read gives EIO."""
        vfs = self.volume.open()
        found: dict[bytes, list[bytes | None]] = {}
        for path in self.contents:
            pieces: list[bytes | None] = []
            try:
                fh = vfs.open(path, os.O_RDONLY)
            except OSError:
                continue
            for start in range(0, vfs.getattr(path).size, self.chunk):
                into = bytearray(self.chunk)
                try:
                    pieces.append(bytes(into[: vfs.read(fh, memoryview(into), start)]))
                except OSError:
                    pieces.append(None)
            vfs.release(fh)
            found[path] = pieces
        self.volume.close()
        return found

    def wanted(self) -> dict[bytes, list[bytes]]:
        """What `read` should give."""
        return {
            path: [content[at : at + self.chunk] for at in range(0, len(content), self.chunk)]
            for path, content in self.contents.items()
        }

    def wrong_bytes(self) -> list[str]:
        """Reads that give other bytes than were written; EIO is none."""
        wrong = []
        found = self.read()
        for path, pieces in self.wanted().items():
            for number, (wanted, piece) in enumerate(zip(pieces, found.get(path, []))):  # noqa: B905
                if piece is not None and piece != wanted:
                    wrong.append(f"{path!r} chunk {number}")
        return wrong

    # Checks.

    def check(
        self,
        *,
        repair: bool = False,
        data: bool = True,
        adopt: bool = False,
        copy_row: Row | None = None,
        index: bool = True,
        after: Callable[[OfflineVolume, StoreAccess], None] | None = None,
    ) -> list[Finding]:
        """One run on the volume at rest."""
        findings: list[Finding] = []
        self.progress = Progress()
        with self.at_rest(copy_row) as (view, stores):
            run(
                view,
                stores,
                INDEX_CHECKS if index else (),
                lambda: iter(()),
                data=data,
                repair=repair,
                adopt=adopt,
                progress=self.progress,
                report=findings.append,
            )
            if after is not None:
                after(view, stores)
        return findings

    @contextlib.contextmanager
    def at_rest(self, copy_row: Row | None = None) -> Iterator[tuple[OfflineVolume, StoreAccess]]:
        """The volume opened for checks: each store that lets itself be served."""
        index = RawIndex.open(os.fspath(self.folder / "index"))
        try:
            view = OfflineVolume(index, copy_row)
            with serving(self.folder, self.volume.workers) as client:
                available = set()
                for entry in self.entries or view.stores():
                    geometry = index.geometry
                    serve = Serve(
                        entry.store,
                        geometry.volume_uuid,
                        entry.uuid,
                        geometry.chunk_size,
                        geometry.checksum,
                        False,
                    )
                    with contextlib.suppress(MpifsError):
                        client.call(entry.store, Kind.SERVE, args=encode_args(serve))
                        available.add(entry.store)
                kind = index.geometry.checksum
                yield view, StoreAccess(client, int, available, kind, self.entries)
        finally:
            index.close()


@contextlib.contextmanager
def serving(folder: Path, workers: int) -> Iterator[Client]:
    """Ranks that serve nothing yet."""
    endpoints = make_world(workers + 1)

    def work(rank: int) -> None:
        service = StoreService(os.fspath(folder), "loopback", peers=Client(endpoints[rank]))
        pool = BufferPool(0, 8 << 20)
        server = Server(endpoints[rank], service.handle, pool.take, pool.give)
        server.run(service.should_stop, service.idle)

    ranks = range(1, workers + 1)
    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    client = Client(endpoints[0])
    try:
        yield client
    finally:
        for rank in range(1, workers + 1):
            client.call(rank, Kind.STOP)
        for thread in threads:
            thread.join(20)
        for endpoint in endpoints:
            endpoint.close()


def told(findings: list[Finding]) -> list[tuple[str, str, int | None, int | None, int | None]]:
    """What findings say, without their sentences, sorted."""
    rows = [(f.check, f.severity, f.inode, f.chunk, f.worker) for f in findings]
    return sorted(rows, key=repr)


__all__ = ["NUMBER_RESERVE", "ChunkWorld", "StoreState", "told"]
