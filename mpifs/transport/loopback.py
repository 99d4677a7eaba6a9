"""The endpoint in one process: several ranks as objects, for tests of everything above.

Same promises as over MPI: messages of one sender with one tag keep their order, long sends are
complete only once they are received (and read the sender's buffer only then), a dead rank shows
as PeerDeadError.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from mpifs.core.checksum import Buffer
from mpifs.core.errors import PeerDeadError, ProtocolError, StartError
from mpifs.core.limits import INLINE_BYTES_MAX
from mpifs.transport.bell import Bells, SocketBell
from mpifs.transport.endpoint import Endpoint, Incoming, Operation, is_request_tag

_EAGER_BYTES_MAX = INLINE_BYTES_MAX // 4
"""Longer messages wait for their receiver, as with the smallest eager limit of the real ones."""


def make_world(size: int) -> list[Endpoint]:
    """`size` ranks that talk to each other."""
    return list(make_loopbacks(size))


def make_loopbacks(size: int) -> list[LoopbackEndpoint]:
    """As make_world, with the type that can also `die`."""
    world = _World(size)
    return [LoopbackEndpoint(world, rank) for rank in range(size)]


class _Operation:
    """A send or receive; all fields guarded by the world's lock."""

    __slots__ = ("buffer", "done", "error", "peer", "received", "source", "tag", "world")

    def __init__(self, world: _World, peer: int, source: int, tag: int, buffer: Buffer) -> None:
        self.world = world
        self.peer = peer
        self.source = source
        self.tag = tag
        self.buffer = buffer
        self.done = False
        self.error: Exception | None = None
        self.received = 0

    def test(self) -> bool:
        """See endpoint.Operation."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.done

    def cancel(self) -> bool:
        """See endpoint.Operation."""
        with self.world.lock:
            for posted in self.world.posted:
                if self in posted:
                    posted.remove(self)
                    self.done = True
            self.error = None
            return self.done

    def finish(self, error: Exception | None = None) -> None:
        """Ends it.  Requires: the world's lock."""
        self.error = error
        self.done = True


class _Incoming:
    """A message taken off the queue by `probe`."""

    def __init__(self, world: _World, send: _Operation) -> None:
        self._world = world
        self._send = send
        self.source = send.source
        self.tag = send.tag
        self.size = len(send.buffer)

    def receive(self, into: bytearray | memoryview) -> None:
        """See endpoint.Incoming."""
        with self._world.lock:
            try:
                _copy(self._send, into)
            finally:
                self._send.finish()


class _World:
    """Queues of all ranks, guarded by `lock`; index is the receiving rank."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.requests: list[deque[_Operation]] = [deque() for _ in range(size)]
        self.arrived: list[list[_Operation]] = [[] for _ in range(size)]
        self.posted: list[list[_Operation]] = [[] for _ in range(size)]
        self.bells = [Bells() for _ in range(size)]
        self.dead: frozenset[int] = frozenset()
        self.lives = [0] * size
        self.start: Callable[[int], None] | None = None


class LoopbackEndpoint:
    """See endpoint.Endpoint."""

    def __init__(self, world: _World, rank: int) -> None:
        self._world = world
        self.rank = rank
        self.size = world.size

    def isend(self, dest: int, tag: int, data: Buffer) -> Operation:
        """See endpoint.Endpoint."""
        if len(data) <= _EAGER_BYTES_MAX:
            data = bytes(data)
        world = self._world
        send = _Operation(world, dest, self.rank, tag, memoryview(data).cast("B"))
        with world.lock:
            self._check(dest)
            if is_request_tag(tag):
                world.requests[dest].append(send)
            elif (receive := _take(world.posted[dest], self.rank, tag)) is not None:
                _match(send, receive)
            else:
                world.arrived[dest].append(send)
            if isinstance(data, bytes) and len(data) <= _EAGER_BYTES_MAX:
                send.done = True
        return send

    def irecv(self, source: int, tag: int, into: bytearray | memoryview) -> Operation:
        """See endpoint.Endpoint."""
        world = self._world
        receive = _Operation(world, source, source, tag, memoryview(into).cast("B"))
        with world.lock:
            send = _take(world.arrived[self.rank], source, tag)
            if send is not None:
                _match(send, receive)
            else:
                self._check(source)
                world.posted[self.rank].append(receive)
        return receive

    def probe(self) -> Incoming | None:
        """See endpoint.Endpoint."""
        requests = self._world.requests[self.rank]
        if not requests:
            return None
        with self._world.lock:
            return _Incoming(self._world, requests.popleft()) if requests else None

    def bell(self) -> SocketBell:
        """See endpoint.Endpoint."""
        return self._world.bells[self.rank].of_thread()

    def server_bell(self) -> SocketBell:
        """See endpoint.Endpoint."""
        return self._world.bells[self.rank].server

    def ring(self, rank: int, address: bytes) -> None:
        """See endpoint.Endpoint."""
        bells = self._world.bells[rank]
        bells.ring(address or bells.server.address)

    def is_near(self, rank: int) -> bool:
        """See endpoint.Endpoint."""
        return 0 <= rank < self.size

    def host(self, rank: int) -> str:
        """See endpoint.Endpoint.  All ranks of a loopback world share one."""
        return "loopback"

    def dead(self) -> frozenset[int]:
        """See endpoint.Endpoint."""
        return self._world.dead

    def life(self, rank: int) -> int:
        """See endpoint.Endpoint."""
        return self._world.lives[rank]

    def cut(self, rank: int) -> None:
        """See endpoint.Endpoint."""
        self._world.lives[rank] += 1
        LoopbackEndpoint(self._world, rank).die()

    def when_replaced(self, start: Callable[[int], None]) -> None:
        """What makes a new process of a rank: it begins to serve that rank's endpoint."""
        self._world.start = start

    @property
    def can_replace(self) -> bool:
        """See endpoint.Endpoint."""
        return self._world.start is not None

    def replace(
        self, rank: int, program: Sequence[str], host: str, is_doomed: Callable[[], bool]
    ) -> None:
        """See endpoint.Endpoint."""
        world = self._world
        if world.start is None or rank >= self.size:
            raise StartError("this world starts no new rank")
        self.cut(rank)
        with world.lock:
            world.dead -= {rank}
        world.start(rank)

    def can_talk(self, one: int, other: int) -> bool:
        """See endpoint.Endpoint."""
        return not (self._world.lives[one] or self._world.lives[other])

    def close(self) -> None:
        """See endpoint.Endpoint."""
        self._world.bells[self.rank].close()

    def die(self) -> None:
        """What its peers see when this rank's process is killed."""
        world = self._world
        with world.lock:
            world.dead |= {self.rank}
            for queue in (*world.requests, *world.posted, *world.arrived):
                for operation in [each for each in queue if each.peer == self.rank]:
                    queue.remove(operation)
                    operation.finish(PeerDeadError(self.rank, "its process has died"))

    def _check(self, rank: int) -> None:
        if rank in self._world.dead:
            raise PeerDeadError(rank, "its process has died")


def _take(queue: list[_Operation], source: int, tag: int) -> _Operation | None:
    """Removes and returns the oldest operation of that source and tag."""
    for position, operation in enumerate(queue):
        if operation.source == source and operation.tag == tag:
            return queue.pop(position)
    return None


def _match(send: _Operation, receive: _Operation) -> None:
    """Moves the bytes; a receive that is too short fails, the send does not notice."""
    error: ProtocolError | None = None
    try:
        _copy(send, receive.buffer)  # type: ignore[arg-type]  # A receive's buffer is writable.
    except ProtocolError as failure:
        error = failure
    send.finish()
    receive.received = len(send.buffer)
    receive.finish(error)


def _copy(send: _Operation, into: bytearray | memoryview) -> None:
    size = len(send.buffer)
    if size > len(into):
        raise ProtocolError(f"message from rank {send.source} is longer than its kind allows")
    into[:size] = send.buffer
