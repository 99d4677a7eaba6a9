"""The errors of mpifs: OSError subclasses, one errno each, decided here and nowhere else.

Local fault, remote fault and damaged data are different types, so that a caller can try another
replica after the second and third and never after the first.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar


class MpifsError(OSError):
    """Base.  `str(error)` is a sentence for the user; `errno` is what a program sees."""

    code: ClassVar[int] = errno.EIO

    def __init__(self, message: str | None = None, code: int | None = None) -> None:
        number = self.code if code is None else code
        super().__init__(number, message or os.strerror(number))

    def __str__(self) -> str:
        return str(self.strerror)


class PosixError(MpifsError):
    """A misuse or refusal that POSIX names; carries just its errno."""

    def __init__(self, code: int, message: str | None = None) -> None:
        super().__init__(message, code)


class DamageError(MpifsError):
    """Stored or received bytes are not what they must be (checksum, header, record, length)."""

    code = errno.EIO


class ChunkMissingError(MpifsError):
    """A store does not hold a chunk that it should hold."""

    code = errno.EIO


class RemoteError(MpifsError):
    """A worker answered a request with an error; carries rank and the worker's sentence."""

    code = errno.EIO

    def __init__(self, rank: int, message: str, code: int | None = None) -> None:
        super().__init__(f"worker {rank}: {message}", code)
        self.rank = rank


class SilentError(MpifsError):
    """A worker gave no answer before the deadline."""

    code = errno.EIO

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(f"worker {rank}: {message}")
        self.rank = rank


class StoreGoneError(SilentError):
    """A worker says that its store's files were deleted, emptied or exchanged under it: it answers
    so to everything from now on, and nothing that it has not acknowledged is stored."""


STORE_GONE_STATUS = errno.ESTALE
"""Status of a worker's reply that means StoreGoneError; no other refusal of a worker has it."""


class PeerDeadError(SilentError):
    """A rank's process is known to be dead: no answer will come from it in this world."""


class LostStoreError(SilentError):
    """A store that nobody serves: its worker is being replaced or was given up, or it cannot be
    used."""

    def __init__(self, store: int, reason: str) -> None:
        MpifsError.__init__(self, f"worker {store} serves no store: {reason}")
        self.rank = -1


class UnusableStoreError(MpifsError):
    """A worker lives but cannot open its store; the sentence is the worker's."""

    code = errno.EIO


class MasterSilentError(MpifsError):
    """Rank 0 gave no answer on its control socket before the deadline."""

    code = errno.ETIMEDOUT


class ProtocolError(MpifsError):
    """Bytes between ranks or from the control socket that are no valid message."""

    code = errno.EPROTO


def was_garbled(error: OSError) -> bool:
    """Whether a request failed because a message was damaged on its way: asking again may help."""
    if isinstance(error, RemoteError):
        return error.errno in (errno.EPROTO, errno.EBADMSG)
    return isinstance(error, ProtocolError)


def tells_damage(error: OSError) -> bool:
    """Whether a failed GET says that a store which answers lacks the chunk or has it damaged."""
    if isinstance(error, RemoteError):
        return error.errno == errno.EIO
    return isinstance(error, DamageError | ChunkMissingError)


class FullError(MpifsError):
    """No space left: a store's disk, its map, or the index's."""

    code = errno.ENOSPC


class FormatError(MpifsError):
    """A superblock, store or index that cannot be used; the sentence says what to do."""

    code = errno.EINVAL


class InUseError(MpifsError):
    """The volume or store is served by another process."""

    code = errno.EBUSY


class StartError(MpifsError):
    """The ranks could not be started or did not get ready; the sentence says why."""

    code = errno.EIO
