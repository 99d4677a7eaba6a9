"""Which process stands behind each rank, over MPI: joining the first world, replacing the dead.

    connected ──its process died, or was given up──▶ cut ──replaced──▶ connected (a new link)

All ranks of the first world reach each other over two communicators.  A rank whose process died
gets a new process by COMM_SELF.Spawn, with an intercommunicator of its own to rank 0 (recipe (b)
of DESIGN section 3: 1.2 s, four at once 1.4 s, and the other links do not notice).  Nothing of it
is collective over the others, so that a rank that hangs stops nobody; the price is that a
replacement talks to rank 0 alone.  Rank 0 never probes, so requests and replies share that one
communicator: a replacement probes for the tags of requests only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from mpifs.core.errors import StartError
from mpifs.core.kinds import TAG_CONTROL, TAG_METADATA
from mpifs.core.limits import JOIN_TIMEOUT_S, NO_BELL_SLEEP_S, SPAWN_HOLD_S
from mpifs.transport.bell import place

Comm: TypeAlias = Any
"""An mpi4py.MPI.Comm; this file is given the library and does not import it."""

_PEER = struct.Struct("<128s256s16s")
"""What ranks tell each other when they meet: place, host name, bell of the service loop."""

_TAG_PEER = 3
"""Of that message between rank 0 and a replacement."""

_TAG_WATCH = 4
"""Nobody sends it: a receive of it ends when its source has died."""

_NOBODY = b""
_LOOK_S = 0.05  # how soon it is seen that a new rank died while it started.


class Link:
    """The way to one rank's present process.  `is_cut` is set once, by any thread."""

    __slots__ = (
        "_watch",
        "bell",
        "host",
        "is_cut",
        "is_near",
        "life",
        "rank",
        "replies",
        "requests",
    )

    def __init__(
        self,
        requests: Comm | None,
        replies: Comm | None,
        rank: int,
        row: bytes,
        here: bytes,
        life: int = 0,
    ) -> None:
        where, host, bell = _PEER.unpack(row) if row else (b"?", b"", b"")
        self.requests = requests
        self.replies = replies
        self.rank = rank
        """Of the process in the two communicators."""
        self.host: str = host.rstrip(b"\0").decode(errors="replace")
        self.bell: bytes = bell.rstrip(b"\0")
        self.is_near: bool = where.rstrip(b"\0") == here
        self.is_cut = requests is None
        self.life = life
        """How many processes this rank has had before; what an older one was asked is void."""
        self._watch: Any = None

    def watch(self) -> None:
        """Before each send over this link the library is asked whether the other side has died.

        Over TCP that has to be known.  When a connection breaks, Open MPI 5 takes its transport off
        the list of the peer's, and the second send after that reads behind the end of the list and
        crashes (ompi/mca/bml/bml.h, btl_array_get_next with arr_size 0).  It notes the death in the
        same call in which it finds the connection broken; see has_died for when it says so.
        """
        if self.replies is not None:
            self._watch = self.replies.Irecv(bytearray(1), self.rank, _TAG_WATCH)

    @property
    def is_watched(self) -> bool:
        """Whether it goes over TCP, and deaths must be known before anything is sent."""
        return self._watch is not None

    def has_died(self) -> bool:
        """Whether the other side is known to have died; the first time the library's exception says
        so.  Requires: the endpoint's guard is held.

        Tested twice: the test that comes after the death was noted only ends the receive, and says
        that it is over when anything else was going on besides (ompi/request/req_test.c: the status
        is looked at again if opal_progress counts something, and it does not count TCP); the next
        one says so in any case.  So at most one message is sent after the death was noted, which
        does no harm."""
        watch = self._watch
        return watch is not None and (watch.Test() or watch.Test())

    def unwatch(self) -> None:
        """Before the library's end."""
        if self._watch is not None:
            self._watch.Cancel()
            self._watch.Wait()
            self._watch = None


class World(NamedTuple):
    """What `join` and `attach` make: this rank, the links by rank, and where requests come in."""

    rank: int
    links: list[Link]
    requests: Comm
    probe_tags: tuple[int, ...]


def _own_row(bell: bytes) -> bytes:
    return _PEER.pack(place(), socket.gethostname().encode(), bell)


def join(mpi: Any, communicator: Comm, bell: bytes) -> World:
    """Makes the two communicators and tells all ranks of each other.  Collective."""
    requests, replies = communicator.Dup(), communicator.Dup()
    for made in (requests, replies):
        made.Set_errhandler(mpi.ERRORS_RETURN)
    rows = bytearray(_PEER.size * communicator.size)
    communicator.Allgather(_own_row(bell), rows)
    size, here = _PEER.size, place()
    links = [
        Link(requests, replies, rank, bytes(rows[rank * size : (rank + 1) * size]), here)
        for rank in range(communicator.size)
    ]
    return World(communicator.rank, links, requests, (mpi.ANY_TAG,))


def attach(mpi: Any, parent: Comm, rank: int, size: int, bell: bytes) -> World:
    """In a replacement for `rank` of `size`: meets rank 0.

    Raises StartError when rank 0 does not answer in time.
    """
    parent.Set_errhandler(mpi.ERRORS_RETURN)
    row = _meet(mpi, parent, bell, contextlib.nullcontext())
    here = place()
    links = [Link(None, None, other, _NOBODY, here) for other in range(size)]
    links[0] = Link(parent, parent, 0, row, here)
    # Itself: never asked, but a loop rings its own bell.
    links[rank] = Link(None, None, rank, _own_row(bell), here)
    return World(rank, links, parent, (TAG_CONTROL, TAG_METADATA))


def _meet(
    mpi: Any, communicator: Comm, bell: bytes, guard: contextlib.AbstractContextManager[object]
) -> bytes:
    """Exchanges rows with the one process at the other side."""
    row = bytearray(_PEER.size)
    try:
        with guard:
            sending = communicator.Isend(_own_row(bell), 0, _TAG_PEER)
            coming = communicator.Irecv(row, 0, _TAG_PEER)
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while True:
            with guard:
                if coming.Test() and sending.Test():
                    break
            if time.monotonic() > deadline:
                raise StartError("the other side of a new rank does not answer")
            time.sleep(NO_BELL_SLEEP_S)
    except mpi.Exception as error:
        raise StartError(f"a new rank ended while starting: {error.Get_error_string()}") from None
    return bytes(row)


class Spawner:
    """Starts replacements, in rank 0.  Any thread; each rank's spawns go over its own duplicate
    of COMM_SELF, because a spawn whose child dies while it starts never returns.

    The spawn itself is not guarded, what follows is: see MpiEndpoint.  Meanwhile `await_rest` holds
    up who wants to send over TCP to a rank on this host: the spawning thread may just be finding
    out about a death.
    """

    def __init__(self, mpi: Any, guard: contextlib.AbstractContextManager[object]) -> None:
        self._mpi = mpi
        self._guard = guard
        self._lock = threading.Lock()
        self._count = 0
        self._held_until = 0.0
        self._is_at_rest = threading.Event()
        self._is_at_rest.set()

    def await_rest(self) -> None:
        """Waits while it `holds_up`."""
        while self.holds_up:
            self._is_at_rest.wait(max(0.0, self._held_until - time.monotonic()))

    @property
    def holds_up(self) -> bool:
        """Whether a process is being spawned, for SPAWN_HOLD_S from its start at most.  Holds until
        the guard is given back, if it is asked with the guard held and the answer is no."""
        return not self._is_at_rest.is_set() and time.monotonic() < self._held_until

    @contextlib.contextmanager
    def _spawning(self) -> Iterator[None]:
        with self._lock:
            self._count += 1
            self._held_until = time.monotonic() + SPAWN_HOLD_S
            self._is_at_rest.clear()
        try:
            with self._guard:  # who is just sending has done so
                pass
            yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count:
                    self._is_at_rest.set()

    def spawn(
        self,
        program: Sequence[str],
        host: str,
        life: int,
        bell: bytes,
        is_doomed: Callable[[], bool],
    ) -> Link:
        """Starts `program` on `host` ("" = here) and meets it.

        Raises StartError: the library refuses, or the new process is not there by
        JOIN_TIMEOUT_S or, as `is_doomed` says, never will be.  The thread that waits in the
        library is then left behind; should the process come after all, it is told nothing and
        ends by itself.
        """
        found: list[Link | StartError] = []
        is_over = threading.Event()
        given_up = threading.Event()

        def work() -> None:
            try:
                found.append(self._spawn(list(program), host, life, bell, given_up))
            except StartError as error:
                found.append(error)
            is_over.set()

        with self._spawning():
            threading.Thread(target=work, name="spawn", daemon=True).start()
            deadline = time.monotonic() + JOIN_TIMEOUT_S
            while not is_over.wait(_LOOK_S):
                is_late = time.monotonic() > deadline
                if is_late or is_doomed():
                    given_up.set()
                    how = (
                        f"did not start within {JOIN_TIMEOUT_S:g} s" if is_late else "died starting"
                    )
                    raise StartError(f"a new rank {how}")
        if isinstance(found[0], StartError):
            raise found[0]
        return found[0]

    def _spawn(
        self, program: list[str], host: str, life: int, bell: bytes, given_up: threading.Event
    ) -> Link:
        mpi = self._mpi
        try:
            with self._lock:  # a duplicate is local, but COMM_SELF is one communicator.
                mine = mpi.COMM_SELF.Dup()
            mine.Set_errhandler(mpi.ERRORS_RETURN)
            info = mpi.Info.Create()
            info.Set("map_by", ":OVERSUBSCRIBE")
            info.Set("wdir", os.sep)
            if host:
                info.Set("host", host)
            child = mine.Spawn(program[0], program[1:], 1, info=info)
            child.Set_errhandler(mpi.ERRORS_RETURN)
        except mpi.Exception as error:
            raise StartError(f"MPI starts no new rank: {error.Get_error_string()}") from None
        if given_up.is_set():
            raise StartError("too late")
        row = _meet(mpi, child, bell, self._guard)
        return Link(child, child, 0, row, place(), life)
