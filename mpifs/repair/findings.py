"""A finding: one violated invariant, with its place, what it means, and how to repair it.

Severities: `lost` (bytes that no copy has), `damage` (a copy is bad or missing, the bytes are
still there), `error` (the index contradicts itself, nothing of it is lost), `leftover` (space in
use that nothing needs: what a crash leaves).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

LOST = "lost"
DAMAGE = "damage"
ERROR = "error"
LEFTOVER = "leftover"


@dataclass(slots=True)
class Finding:
    """One finding.  `path`, `inode`, `chunk` and `worker` are None where they do not apply.

    `detail` is a sentence that says what is wrong and what it means for the user.  `remedy`, if
    there is one, repairs it: called in a repair run by the thread that runs the checks, after the
    scan of its phase has ended or moved on; True when it did, False when the place has changed
    meanwhile (the next run looks again).  It raises MpifsError when it cannot.
    """

    check: str
    severity: str
    detail: str
    path: bytes | None = None
    inode: int | None = None
    chunk: int | None = None
    worker: int | None = None
    remedy: Callable[[], bool] | None = field(default=None, repr=False, compare=False)
    repaired: bool = False

    def document(self) -> dict[str, object]:
        """As JSON shows it; bytes of a path that are no UTF-8 stand as backslash escapes."""
        path = None if self.path is None else self.path.decode("utf-8", "backslashreplace")
        return {
            "check": self.check,
            "severity": self.severity,
            "path": path,
            "inode": self.inode,
            "chunk": self.chunk,
            "worker": self.worker,
            "detail": self.detail,
            "repaired": self.repaired,
        }


class CancelledError(Exception):
    """The run was ended by its user; everything done so far stands."""


@dataclass(slots=True)
class Progress:
    """What a run has done so far; written by its thread, read by any.

    `total_bytes` is the payload that the stores are to read, 0 until it is known.
    """

    phase: str = ""
    inodes: int = 0
    chunks: int = 0
    bytes: int = 0
    total_bytes: int = 0
    is_cancelled: bool = False

    def check(self) -> None:
        """Raises CancelledError once the user has asked for the end; called between steps."""
        if self.is_cancelled:
            raise CancelledError
