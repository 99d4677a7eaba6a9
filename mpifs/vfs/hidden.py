"""Files removed while open.

The FUSE high-level library does not unlink an open file: it renames it to `.fuse_hiddenX` in the
same folder and unlinks that at the last release.  mpifs takes such a rename as the unlink that the
user asked for; the library's name for the file lives only here, in memory (PITFALLS section 6).
"""

from __future__ import annotations

from mpifs.index.inode import Inode


class HiddenFiles:
    """Library's path → inode of removed open files.  Dict operations, atomic in CPython."""

    def __init__(self) -> None:
        self._inodes: dict[bytes, Inode] = {}

    def add(self, path: bytes, inode: Inode) -> None:
        """The library now calls this removed file `path`."""
        self._inodes[path] = inode

    def find(self, path: bytes) -> Inode | None:
        """The removed file of that path."""
        return self._inodes.get(path) if self._inodes else None

    def remove(self, path: bytes) -> Inode | None:
        """The library has let go of the path."""
        return self._inodes.pop(path, None)
