"""Doorbells: datagram sockets in Linux's abstract namespace, one per waiting thread.

MPI has no sleeping wait.  A thread that waits for a message sleeps on its bell, and whoever has
posted the message rings it.  Rings carry no data and may be lost (a full queue, a peer that has
gone): then the sleeper's own time limit wakes it.  Anyone in the same network namespace can ring;
a false ring costs one test.
"""

from __future__ import annotations

import math
import os
import secrets
import select
import socket
import threading

_SELECT_FILES_MAX = 1024
"""FD_SETSIZE: select(2), which alone sleeps for less than a millisecond, takes no file above it."""

_DRAIN_COUNT = 64
"""Rings cleared at once; the kernel queues net.unix.max_dgram_qlen (10) of them."""


class SocketBell:
    """One bell.  `wait` by one thread at a time; closed when it is forgotten."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.address = b"\0" + secrets.token_hex(7).encode()
        self._socket.bind(self.address)
        self._file = self._socket.fileno()
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """See endpoint.Bell."""
        if timeout_s < 0.02 and self._file < _SELECT_FILES_MAX:
            ready, _, _ = select.select((self._file,), (), (), max(timeout_s, 0.0))
        else:
            ready = self._poll.poll(math.ceil(timeout_s * 1000))  # type: ignore[assignment]
        if not ready:
            return False
        try:
            for _ in range(_DRAIN_COUNT):
                self._socket.recv(1)
        except BlockingIOError:
            pass
        return True

    def close(self) -> None:
        """Nobody may wait on it any more."""
        self._socket.close()

    def __del__(self) -> None:
        self._socket.close()


class Bells:
    """The bells of one rank: one of the service loop and one per thread that asks for it."""

    def __init__(self) -> None:
        self.server = SocketBell()
        self._mine = threading.local()
        self._out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def of_thread(self) -> SocketBell:
        """The calling thread's bell, made at its first call."""
        try:
            return self._mine.bell  # type: ignore[no-any-return]
        except AttributeError:
            bell = self._mine.bell = SocketBell()
            return bell

    def ring(self, address: bytes) -> None:
        """Rings a bell on this host; a full queue is as good as a ring."""
        try:
            self._out.sendto(b"!", address)
        except OSError:
            return

    def close(self) -> None:
        """Closes the service loop's bell and the ringing side."""
        self.server.close()
        self._out.close()

    def __del__(self) -> None:
        self._out.close()


def place() -> bytes:
    """Two processes with the same place can ring each other: same kernel, same network space."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            boot = file.read().strip()
        return boot + os.readlink(b"/proc/self/ns/net")
    except OSError:
        return socket.gethostname().encode()
