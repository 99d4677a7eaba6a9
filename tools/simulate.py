"""What rank 0 can do with 16, 128 and 1,024 workers: real code over a simulated world.

    .venv/bin/python tools/simulate.py [--workers 4,16,128,1024] [--near] [--chunks 1000]
                                         [--chunk-mib 1]

Real are Client, Scatter, Gather, Server, Crew (heartbeat) and placement, over the loopback
transport; time is virtual (simulated_world.py): Python costs what it costs here, now; MPI, links,
FUSE and disks cost what was measured (mpifs/doc/scaling.md).  Told for each number of workers:

    write     4 streams of whole chunks (1 MiB), with the bound on dirty data
    read      8 readers and 4 readahead threads, whole chunks
    get       chunks of 4 KiB, 8 readers
    create    files of 4 KiB by 4 processes, sent each half commit interval
    ping      one round of the heartbeat

as rate (virtual), the share of one processor that rank 0's Python takes, and its time for each.
"""

from __future__ import annotations

import argparse
import resource
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from simulated_world import Bell, Costs, SimulatedWorld

from mpifs.core.buffers import BufferPool
from mpifs.core.checksum import function_of
from mpifs.core.image import IMAGE_HEADER_BYTES, decode_key, encode_header_into
from mpifs.core.kinds import Kind
from mpifs.core.limits import (
    COMMIT_BYTES_MAX,
    COMMIT_INTERVAL_S,
    COMMIT_OPERATIONS_MAX,
    DIRTY_BYTES_MAX,
)
from mpifs.core.placement import place, start_of
from mpifs.core.types import ChecksumKind, ChunkKey, ChunkRef
from mpifs.data.gather import Gather
from mpifs.data.local_stores import LocalStores
from mpifs.data.scatter import Outgoing, Scatter
from mpifs.job.crew import Crew
from mpifs.job.roster import Worker
from mpifs.transport import client as client_module
from mpifs.transport.client import Client
from mpifs.transport.request import Request
from mpifs.transport.server import Server

MIB = 1 << 20
PAGE = 4096
KIND = ChecksumKind.XXH3_128


@dataclass(frozen=True)
class Work:
    """What rank 0 does besides, and the disks of the workers, as measured."""

    write_fuse_s: float = 0.45e-3
    """A write of 1 MiB through the null file system (2,180 MB/s), mostly outside of Python."""
    read_fuse_s: float = 0.60e-3
    request_python_s: float = 60e-6
    """Python of a callback of FUSE, of vfs and index, per request of 1 MiB."""
    create_python_s: float = 0.30e-3
    """create, write, flush, release and the index's part, per file."""
    disk_write: float = 889e6
    disk_read: float = 1171e6
    sync_s: float = 1e-3
    get_s: float = 8e-6


WORK = Work()


class ModelStore:
    """A worker: the real service loop before a disk that only takes its time."""

    def __init__(self, world: SimulatedWorld, rank: int, size: int, pool: BufferPool) -> None:
        self._world = world
        self._rank = rank
        self._size = size
        self._pool = pool
        self._disk_free = 0.0
        self._queue: deque[Request] = deque()
        self._is_committing = False
        self._sum = function_of(KIND)(bytes(size))
        self.puts = self.images = 0
        server = Server(world.endpoints[rank], self.handle, pool.take, pool.give)
        world.serve[rank] = server.tick

    def handle(self, request: Request) -> None:
        """See server.Server."""
        if request.header.kind == Kind.PUT:
            self.puts += 1
            self.images += request.header.items
            self._queue.append(request)
            self._commit()
            return
        if request.header.kind == Kind.GET:
            took_s = WORK.get_s + self._size / WORK.disk_read
            self._after(took_s, lambda: self._send(request))
        else:
            request.reply()
        request.done()

    def _after(self, took_s: float, action: Callable[[], None]) -> None:
        """Does it once the disk has got so far."""
        simulation = self._world.simulation
        self._disk_free = max(self._disk_free, simulation.actor.now) + took_s
        me = self._world.workers[self._rank]
        simulation.at(self._disk_free, lambda: simulation.do(me, action))

    def _send(self, request: Request) -> None:
        buffer = self._pool.take(self._size)
        image = memoryview(buffer)[: IMAGE_HEADER_BYTES + self._size]
        encode_header_into(image, 0, KIND, decode_key(request.args), self._size, self._sum)
        request.reply(body=image, items=1, on_sent=lambda: self._pool.give(buffer))

    def _commit(self) -> None:
        if self._is_committing or not self._queue:
            return
        group: list[Request] = []
        size = 0
        while self._queue and len(group) < COMMIT_OPERATIONS_MAX and size < COMMIT_BYTES_MAX:
            group.append(self._queue.popleft())
            size += group[-1].header.body_bytes
        self._is_committing = True

        def durable() -> None:
            self._is_committing = False
            for request in group:
                request.reply()
                request.done()
            self._commit()

        self._after(WORK.sync_s + size / WORK.disk_write, durable)


@dataclass
class Figure:
    """One phase with so many workers."""

    count: int
    seconds: float
    python_s: float
    each: float = 1.0
    """Chunks in a PUT."""

    @property
    def rate(self) -> float:
        """A second."""
        return self.count / self.seconds


class Rig:
    """A world with rank 0's real parts.  One phase, then `close`."""

    def __init__(self, workers: int, costs: Costs, size: int) -> None:
        self.world = SimulatedWorld(workers + 1, costs)
        self.simulation = self.world.simulation
        self.size = size
        self.requests = max(1, size // MIB)
        """Of FUSE, per chunk."""
        self.pool = BufferPool(IMAGE_HEADER_BYTES, 256 * MIB)
        self.stores = [
            ModelStore(self.world, rank, size, self.pool) for rank in range(1, workers + 1)
        ]
        self.client = Client(self.world.endpoints[0])  # type: ignore[arg-type]
        self.crew = Crew(self.client, workers)
        for rank in range(1, workers + 1):
            self.crew.workers.append(Worker(rank, rank, "simulated", 1))
            self.crew._places[rank] = rank

    def run(self, works: list[Callable[[], None]]) -> tuple[float, float]:
        """All at once, to their end: virtual seconds, and those of rank 0's Python."""
        simulation, left = self.simulation, [len(works)]
        simulation.forget()
        began = simulation.now

        def counted(work: Callable[[], None]) -> Callable[[], None]:
            def body() -> None:
                work()
                left[0] -= 1

            return body

        for work in works:
            simulation.start(counted(work))
        simulation.run(lambda: not left[0])
        return max(simulation.now, simulation.python_free) - began, simulation.python_s

    def own_bell(self) -> Bell:
        """The calling task's."""
        return self.world.bell_of_thread()


class Writes:
    """Chunks on their way through a real Scatter, and the bound on what is dirty."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        endpoint = rig.world.endpoints[0]
        self._scatter = Scatter(endpoint, rig.client, rig.crew.rank_of, KIND, lambda *_: None)  # type: ignore[arg-type]
        rig.simulation.adopt()
        self._dirty = 0
        self._waiting: list[Bell] = []
        self.done_count = 0

    def item(self, inode: int, chunk: int, size: int) -> Outgoing:
        """A chunk that was just filled, with its stores."""
        stores = self._rig.crew.placement_stores()
        targets = place(start_of(inode, len(stores)), chunk, 1, stores)
        self._dirty += size
        buffer = self._rig.pool.take(size)
        return Outgoing(ChunkKey(inode, chunk, 1), buffer, size, targets, self._done)

    def submit(self, items: list[Outgoing]) -> None:
        """Sends them; rings once."""
        self._scatter.submit_many(items)

    def wait_for(self, size: int) -> None:
        """Until so much more may be dirty."""
        while self._dirty + size > DIRTY_BYTES_MAX:
            self._wait()

    def wait_all(self, count: int) -> None:
        """Until so many chunks are durable."""
        while self.done_count < count:
            self._wait()

    def _wait(self) -> None:
        bell = self._rig.own_bell()
        self._waiting.append(bell)
        bell.wait(1.0)

    def _done(self, item: Outgoing, error: OSError | None) -> None:
        assert error is None, error
        self._dirty -= item.length
        self._rig.pool.give(item.buffer)
        self.done_count += 1
        waiting, self._waiting = self._waiting, []
        for bell in waiting:
            bell.ring_at(self._rig.simulation.actor.now)


def write(rig: Rig, count: int) -> Figure:
    """Streams of whole chunks."""
    writes, streams = Writes(rig), 4

    def stream(inode: int) -> Callable[[], None]:
        def work() -> None:
            for chunk in range(count // streams):
                rig.simulation.spend(WORK.write_fuse_s * rig.requests)
                rig.simulation.spend_python(WORK.request_python_s * rig.requests)
                writes.wait_for(rig.size)
                writes.submit([writes.item(inode, chunk, rig.size)])
            writes.wait_all(count // streams * streams)

        return work

    took = rig.run([stream(inode) for inode in range(1, streams + 1)])
    return Figure(count, *took)


def create(rig: Rig, count: int) -> Figure:
    """Small files, sent in batches as the committer does it."""
    writes, made, processes = Writes(rig), deque[Outgoing](), 4
    left = [processes]

    def process(first: int) -> Callable[[], None]:
        def work() -> None:
            bell = rig.own_bell()
            for number in range(count // processes):
                rig.simulation.spend_python(WORK.create_python_s)
                made.append(writes.item(first + number, 0, rig.size))
                bell.wait(0.0)  # the process makes its next file; others have their turn.
            left[0] -= 1

        return work

    def flush() -> None:
        bell = rig.own_bell()
        while left[0] or made:
            bell.wait(COMMIT_INTERVAL_S / 2)
            items = [made.popleft() for _ in range(len(made))]
            for item in items:
                writes.submit([item])
        writes.wait_all(count // processes * processes)

    starts = [process(1 + n * count) for n in range(processes)]
    took = rig.run([*starts, flush])
    puts = sum(store.puts for store in rig.stores)
    return Figure(count, *took, sum(store.images for store in rig.stores) / max(1, puts))


def read(rig: Rig, count: int, readers: int, fuse_s: float) -> Figure:
    """Chunks fetched, verified and handed on by several threads."""
    gather = Gather(rig.client, rig.crew, KIND, lambda *_: None, LocalStores(lambda *_: None))
    checksum, stores = function_of(KIND)(bytes(rig.size)), rig.crew.placement_stores()

    def reader(inode: int) -> Callable[[], None]:
        def work() -> None:
            into = bytearray(IMAGE_HEADER_BYTES + rig.size)
            for chunk in range(count // readers):
                targets = place(start_of(inode * 7, len(stores)), chunk, 1, stores)
                ref = ChunkRef(1, rig.size, checksum, targets)
                gather.fetch(ChunkKey(inode, chunk, 1), ref, into)
                rig.simulation.spend(fuse_s * rig.requests)
                rig.simulation.spend_python(WORK.request_python_s * rig.requests)

        return work

    took = rig.run([reader(inode) for inode in range(1, readers + 1)])
    return Figure(count // readers * readers, *took)


def ping(rig: Rig) -> Figure:
    """Rounds of the heartbeat."""
    rounds = 3
    took = rig.run([lambda: [rig.crew.tick() for _ in range(rounds)] and None])
    return Figure(rounds, *took)


def measure(workers: int, costs: Costs, count: int, chunk: int = MIB) -> dict[str, Figure]:
    """All phases with so many workers."""
    phases: dict[str, tuple[int, Callable[[Rig], Figure]]] = {
        "write": (chunk, lambda rig: write(rig, count)),
        "read": (chunk, lambda rig: read(rig, count, 12, WORK.read_fuse_s)),
        "get": (PAGE, lambda rig: read(rig, 2 * count, 8, 0.0)),
        "create": (PAGE, lambda rig: create(rig, 2 * count)),
        "ping": (PAGE, ping),
    }
    found = {}
    for name, (size, run) in phases.items():
        rig = Rig(workers, costs, size)
        found[name] = run(rig)
        rig.world.close()
    return found


def say(workers: int, found: dict[str, Figure], chunk: int = MIB) -> None:
    """One line for each phase."""
    for name, figure in found.items():
        unit = f"{figure.rate * chunk / 1e6:8.0f} MB/s" if name in {"write", "read"} else ""
        unit = unit or (f"{figure.rate:8.0f} /s  " if name != "ping" else " " * 13)
        each = figure.python_s / figure.count * 1e6
        more = f", {figure.each:.1f} chunks in a PUT" if name == "create" else ""
        more = f", {figure.seconds / figure.count * 1e3:.1f} ms a round" if name == "ping" else more
        share = figure.python_s / figure.seconds
        print(f"{workers:5} {name:7} {unit}  Python {share:4.0%}, {each:7.0f} µs each{more}")


def main() -> None:
    """Prints the figures of each number of workers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", default="4,16,128,1024")
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--chunk-mib", type=int, default=1)
    parser.add_argument("--near", action="store_true", help="all ranks on one host")
    words = parser.parse_args()
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    client_module.SPIN_S = 0.0  # nothing comes while a thread spins: virtual time stands still.
    for workers in map(int, words.workers.split(",")):
        chunk = words.chunk_mib * MIB
        found = measure(workers, Costs(is_near=words.near), words.chunks, chunk)
        say(workers, found, chunk)


if __name__ == "__main__":
    main()
