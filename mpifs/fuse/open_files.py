"""What the kernel has open: handle → path and kernel inode number.

To the kernel each name of a file is an inode (a nodeid) of its own.  The notifier needs the nodeid
of every open handle, and the path by which the request in hand is served.
"""

from __future__ import annotations

import re
import threading

_HIDDEN = re.compile(rb"/\.fuse_hidden[0-9a-f]{16}\Z")


class OpenFiles:
    """Handle → (path, nodeid).  `_lock` guards changes; single look-ups are atomic in CPython.

    A created file's nodeid is not known before the kernel has used the handle once, since the
    request names the folder; until then it stands in `unnumbered`, and the kernel has cached none
    of its pages.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[int, bytes] = {}
        self._nodeids: dict[int, int] = {}
        self._handles: dict[bytes, set[int]] = {}
        self.hidden: set[int] = set()
        self.unnumbered: set[int] = set()

    def opened(self, fh: int, path: bytes, nodeid: int) -> None:
        """A handle was given out; nodeid 0 if it is not known yet."""
        with self._lock:
            self._paths[fh] = path
            self._handles.setdefault(path, set()).add(fh)
            if nodeid:
                self._nodeids[fh] = nodeid
            else:
                self.unnumbered.add(fh)
            if _HIDDEN.search(path):
                self.hidden.add(fh)

    def used(self, fh: int, nodeid: int) -> None:
        """A request on a handle has come: the first one of a created file's tells its nodeid."""
        if fh in self.unnumbered:
            self.numbered(fh, nodeid)

    def numbered(self, fh: int, nodeid: int) -> None:
        """The nodeid of a created file's handle is known."""
        with self._lock:
            self.unnumbered.discard(fh)
            if fh in self._paths:
                self._nodeids[fh] = nodeid

    def closed(self, fh: int) -> None:
        """A handle is released."""
        with self._lock:
            self._nodeids.pop(fh, None)
            self.hidden.discard(fh)
            self.unnumbered.discard(fh)
            path = self._paths.pop(fh, None)
            if path is not None:
                self._drop(path, fh)

    def _drop(self, path: bytes, fh: int) -> None:
        handles = self._handles[path]
        handles.discard(fh)
        if not handles:
            del self._handles[path]

    def renamed(self, old: bytes, new: bytes, exchange: bool = False) -> None:
        """A name, or a folder's, has become another; handles below it follow."""
        if not self._paths:
            return
        with self._lock:
            moves = self._moves(old, new)
            if exchange:
                moves += self._moves(new, old)
            for fh, path in moves:
                self._drop(self._paths[fh], fh)
                self._paths[fh] = path
                self._handles.setdefault(path, set()).add(fh)
                if _HIDDEN.search(path):
                    self.hidden.add(fh)

    def _moves(self, old: bytes, new: bytes) -> list[tuple[int, bytes]]:
        exact = self._handles.get(old)
        if exact:
            return [(fh, new) for fh in exact]
        below = old + b"/"
        return [
            (fh, new + path[len(old) :])
            for path, handles in self._handles.items()
            if path.startswith(below)
            for fh in handles
        ]

    def is_hidden(self, path: bytes | None, fh: int | None) -> bool:
        """Whether libfuse knows this file as one that was removed while open."""
        if not self.hidden:
            return False
        return fh in self.hidden or (path is not None and _HIDDEN.search(path) is not None)

    def path(self, fh: int) -> bytes | None:
        """Present path of an open handle."""
        return self._paths.get(fh)

    def nodeid(self, fh: int) -> int:
        """Kernel inode of an open handle, 0 if not known."""
        return self._nodeids.get(fh, 0)

    def nodeids(self, path: bytes) -> set[int]:
        """Kernel inodes that are open under a path."""
        with self._lock:
            found = {self._nodeids.get(fh, 0) for fh in self._handles.get(path, ())}
        return found - {0}

    def __len__(self) -> int:
        return len(self._paths)
