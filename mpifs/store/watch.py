"""Whether a store's files are still the ones that were opened.

Somebody may delete, empty or exchange a folder or a disk under a worker.  LMDB would not notice:
its map and its descriptors go on working on files that nobody will ever find again.  A look costs
five system calls, about 10 µs.
"""

from __future__ import annotations

import errno
import os

from mpifs.core.errors import MpifsError
from mpifs.datafile import DATA_NAME
from mpifs.store.folder import superblock_bytes

_SIDES = ("small", "large")  # `copy/` may be made anew while the store is served.
_OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # say nothing about the store.
_SMALLEST_BYTES = 8192  # LMDB's two meta pages.


class StoreWatch:
    """Remembers what stands in `folder` when it is made.  Any thread."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files = [os.path.join(folder, side, DATA_NAME) for side in _SIDES]
        self._were = [_identity(path) for path in self._files]
        self._superblock = superblock_bytes(folder)

    def look(self) -> str:
        """What has happened to the store, as a sentence; "" if it is as it was, or if this process
        lacks what it takes to look (open files, memory)."""
        try:
            for path, was in zip(self._files, self._were, strict=True):
                stat = os.stat(path)
                if (stat.st_dev, stat.st_ino) != was:
                    return f"{path} was exchanged"
                if stat.st_size < _SMALLEST_BYTES:
                    return f"{path} was emptied"
            found = superblock_bytes(self._folder)
        except FileNotFoundError as error:
            return f"{os.fsdecode(error.filename)} was deleted"
        except MpifsError as error:
            cause = error.__cause__
            is_own = isinstance(cause, OSError) and cause.errno in _OWN_LIMITS
            return "" if is_own else str(error)
        except OSError as error:
            if error.errno in _OWN_LIMITS:
                return ""
            return f"{os.fsdecode(error.filename)} cannot be read ({error.strerror})"
        if found is None:
            return f"the superblock of {self._folder} was deleted"
        return (
            "" if found == self._superblock else f"the superblock of {self._folder} was exchanged"
        )


def _identity(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino
