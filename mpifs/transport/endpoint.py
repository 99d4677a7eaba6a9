"""What the transport needs of a message library, as protocols.

Peers are addressed by logical rank; which communicator and which process stand behind a rank is
the endpoint's business alone.  Every call may be made from any thread unless said otherwise, and
none of them blocks, `Incoming.receive` (of a message that has arrived) excepted.

A dead peer shows as PeerDeadError, from the call itself or from `test`.  The library's knowledge
is a hint: it may come late or, for a hung process or a cut line, never.  Deadlines are kept above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mpifs.core.checksum import Buffer
from mpifs.core.limits import SLOT_COUNT_MAX
from mpifs.core.messages import TAG_DATA_BASE, TAG_REPLY_BASE

TAG_REPLY_DATA_BASE = TAG_DATA_BASE + SLOT_COUNT_MAX
"""Long bodies of replies; apart from the requests', since two ranks may ask each other at once."""
assert TAG_REPLY_DATA_BASE + SLOT_COUNT_MAX <= 32767

PROBE_COUNT = 3
"""The first probe or test of a round only moves the library on; the second finds the message."""


def is_request_tag(tag: int) -> bool:
    """Whether messages with this tag are taken by `probe` and not by a posted receive."""
    return tag < TAG_REPLY_BASE


class Operation(Protocol):
    """A send or receive under way.  One thread at a time may use it."""

    @property
    def received(self) -> int:
        """Bytes that a complete receive has brought; 0 for a send."""
        ...

    def test(self) -> bool:
        """True once complete, and from then on: the buffer is the caller's again.

        Raises PeerDeadError (peer), ProtocolError (a longer message than the buffer) or
        MpifsError (the library's own failure); after any of them the operation is over.
        """
        ...

    def cancel(self) -> bool:
        """Gives a receive up; True if the operation is over and the buffer free.

        A receive that was complete before stays so: `received` tells.

        False if the message is just coming in, and for every send not yet complete: then keep the
        buffer and go on testing.  May take some milliseconds.
        """
        ...


class Incoming(Protocol):
    """A matched request message that has arrived and must be received, by any one thread."""

    @property
    def source(self) -> int: ...

    @property
    def tag(self) -> int: ...

    @property
    def size(self) -> int: ...

    def receive(self, into: bytearray | memoryview) -> None:
        """Receives it at the start of `into`.

        Raises ProtocolError if `into` is shorter than `size`; the message is then dropped.
        """
        ...


class Bell(Protocol):
    """A doorbell: wakes one thread.  A ring may be lost or false; it carries no data."""

    @property
    def address(self) -> bytes:
        """At most 16 bytes, not ending in NUL; b"" if nobody can ring it."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Sleeps until rung or until the time is over; True if it was rung.

        Rings before the call count and are cleared by it: test after every return.
        """
        ...


class Endpoint(Protocol):
    """One rank's access to all others of its world, itself included."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int:
        """Ranks in all; grows when one is added."""
        ...

    def isend(self, dest: int, tag: int, data: Buffer) -> Operation:
        """Starts to send; `data` must stay as it is until the operation is complete.

        The caller keeps the operation till then: with it the reference to `data` is dropped, and
        the peer would receive what has since come to lie there (MPICH does so for short messages
        to oneself).
        """
        ...

    def irecv(self, source: int, tag: int, into: bytearray | memoryview) -> Operation:
        """Starts to receive the next message of `source` with `tag`, at most len(into) bytes.

        Requires: not is_request_tag(tag).
        """
        ...

    def probe(self) -> Incoming | None:
        """The next request message of any source, if one has arrived; looks 2-3 times."""
        ...

    def bell(self) -> Bell:
        """The calling thread's doorbell."""
        ...

    def server_bell(self) -> Bell:
        """The doorbell of this rank's service loop."""
        ...

    def ring(self, rank: int, address: bytes) -> None:
        """Rings a bell of `rank`, b"" for that of its service loop.  May be lost; never raises."""
        ...

    def is_near(self, rank: int) -> bool:
        """Whether `rank` and this one can ring each other's bells."""
        ...

    def host(self, rank: int) -> str:
        """Name of the host where `rank` runs."""
        ...

    def dead(self) -> frozenset[int]:
        """Ranks whose processes are known to have died; a hint, never complete."""
        ...

    def life(self, rank: int) -> int:
        """Changes whenever `rank` is cut off or gets a new process: requests made in another life
        are void.  0 = of the first world."""
        ...

    def cut(self, rank: int) -> None:
        """From now on `rank` counts as dead, whether its process lives or not: requests under way
        end, new ones are refused.  What it still sends comes to nothing."""
        ...

    @property
    def can_replace(self) -> bool:
        """Whether `replace` works with this library, and so whether this job outlives a rank."""
        ...

    def replace(
        self, rank: int, program: Sequence[str], host: str, is_doomed: Callable[[], bool]
    ) -> None:
        """Starts a new process for `rank` (or for a new rank, `rank` == size), on `host` if that
        is not "".  It can talk to rank 0 alone.  Blocks for one to three seconds, until the new
        process is there or `is_doomed`, called from time to time, says that it died starting.

        Raises StartError.  Requires: this is rank 0; one thread at a time per rank.
        """
        ...

    def can_talk(self, one: int, other: int) -> bool:
        """Whether two ranks reach each other without rank 0.  Known in rank 0 alone."""
        ...

    def close(self) -> None:
        """Ends the use of the library.  Collective, and may hang after a death: mind a watchdog."""
        ...
