"""Names by which the kernel may know files that have several names.

To the kernel each name of a hard-linked file is an inode of its own, with its own cached pages
and attributes.  Whenever such a file changes through one name, the caches of the others must be
dropped before the call returns.  This table says which names those are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from mpifs.core.limits import ALIAS_MAX

Name = tuple[int, bytes]
"""(parent inode, name)."""


class Aliases:
    """Inode → names seen by the kernel.  `_lock` guards it; bounded: when it is full, the oldest
    file's names are dropped from the kernel's caches and then forgotten."""

    def __init__(self, drop: Callable[[list[Name]], None]) -> None:
        self._drop = drop
        self._lock = threading.Lock()
        self._names: OrderedDict[int, set[Name]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._names)

    def saw(self, ino: int, *names: Name) -> None:
        """The kernel has looked at a file with several names under these."""
        dropped: list[Name] = []
        with self._lock:
            self._names.setdefault(ino, set()).update(names)
            if len(self._names) > ALIAS_MAX:
                _, old = self._names.popitem(last=False)
                dropped = list(old)
        if dropped:
            self._drop(dropped)

    def others(self, ino: int, name: Name | None) -> list[Name]:
        """The names of a file but the one given."""
        if ino not in self._names:
            return []
        with self._lock:
            return [other for other in self._names.get(ino, ()) if other != name]

    def gone(self, ino: int, name: Name) -> None:
        """A name was removed."""
        with self._lock:
            names = self._names.get(ino)
            if names is not None:
                names.discard(name)
                if not names:
                    del self._names[ino]

    def moved(self, ino: int, old: Name, new: Name) -> None:
        """A name has become another one."""
        with self._lock:
            names = self._names.get(ino)
            if names is not None and old in names:
                names.discard(old)
                names.add(new)
