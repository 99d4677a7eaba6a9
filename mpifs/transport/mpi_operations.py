"""Sends and receives under way, and messages that have come, over MPI; see mpi.py.

The guarded ones call MPI with the endpoint's guard held; see MpiEndpoint.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeAlias

from mpifs.core.errors import MpifsError

if TYPE_CHECKING:
    from mpifs.transport.mpi import MpiEndpoint
    from mpifs.transport.world import Link

Handle: TypeAlias = Any
"""A Request, Message or Status of mpi4py.MPI; this file does not import it."""

_CANCEL_S = 0.005
"""A cancelled receive that is not just coming in is over in microseconds."""


class MpiOperation:
    """A send: a request of MPI with the rank at its other end and the link it goes over."""

    __slots__ = ("_endpoint", "_link", "_peer", "_request")
    received = 0

    def __init__(self, endpoint: MpiEndpoint, request: Handle, peer: int, link: Link) -> None:
        self._endpoint = endpoint
        self._request = request
        self._peer = peer
        self._link = link

    def test(self) -> bool:
        """See endpoint.Operation."""
        try:
            is_over: bool = self._request.Test()
        except self._endpoint.Exception as error:
            raise self._endpoint.translated(error, self._peer, self._link) from None
        return is_over

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
        self,
        endpoint: MpiEndpoint,
        request: Handle,
        peer: int,
        link: Link,
        status: Handle,
    ) -> None:
        self._endpoint = endpoint  # not by super(): there is one for each request.
        self._request = request
        self._peer = peer
        self._link = link
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
            raise self._endpoint.translated(error, self._peer, self._link) from None
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

    def __init__(self, endpoint: MpiEndpoint, message: Handle, status: Handle) -> None:
        self._endpoint = endpoint
        self._message = message
        self.source = status.source
        self.tag = status.tag
        self.size = status.count

    def receive(self, into: bytearray | memoryview) -> None:
        """See endpoint.Incoming."""
        try:
            with self._endpoint.guard:  # it is there, so nothing waits.
                self._message.Recv(into)
        except self._endpoint.Exception as error:
            raise self._endpoint.translated(error, self.source, None) from None


class GuardedSend(MpiOperation):
    """A send of an endpoint with a guard."""

    __slots__ = ()

    def test(self) -> bool:
        """See endpoint.Operation."""
        with self._endpoint.guard:
            return super().test()


class GuardedReceive(MpiReceive):
    """A receive of an endpoint with a guard."""

    __slots__ = ()

    def test(self) -> bool:
        """See endpoint.Operation."""
        with self._endpoint.guard:
            return super().test()

    def cancel(self) -> bool:
        """See endpoint.Operation."""
        with self._endpoint.guard:
            return super().cancel()
