"""Files that appear whole: stage-in stores the data first and makes the file object last.

Their numbers are taken when the data is sent, so that the chunks carry them; inode, refs,
attributes and name come into the index in one step, which one commit makes durable.  Until then
nothing of the file is in the index: a crash leaves chunks that no ref names.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from stat import S_ISDIR, S_ISGID
from typing import NamedTuple

from mpifs.core import limits
from mpifs.core.errors import PosixError
from mpifs.core.placement import start_of
from mpifs.core.records import FLAG_XATTRS
from mpifs.core.types import ChunkRef
from mpifs.index.amending import Amending
from mpifs.index.inode import NO_LEFTOVERS, Inode, Trust


class Numbers(NamedTuple):
    """A new inode's number, and where its chunks go."""

    ino: int
    start: int


class Fresh(NamedTuple):
    """A file object that is to appear.  `size`: of a regular file, whose refs add up to it but for
    holes; `xattrs` are kept as they are.  `gid` None: the folder's where that is set-gid, as create
    has it, else `default_gid`."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    size: int = 0
    rdev: int = 0
    target: bytes = b""
    xattrs: Sequence[tuple[bytes, bytes]] = ()
    refs: Sequence[tuple[int, ChunkRef]] = ()
    inherits_group: bool = True


class Staged(Amending):
    """Placing whole files.  Any thread; each call is atomic."""

    def next_inode(self) -> Numbers:
        """A number never handed out before, for `place`.  Raises FullError as next_generation."""
        with self.lock:
            ino = self._inode_numbers.take() or self._reserve(self._inode_numbers)
            return Numbers(ino, start_of(ino, len(self._stores) or 1))

    def place(
        self, parent: Inode, name: bytes, numbers: Numbers, fresh: Fresh, now_ns: int
    ) -> Inode:
        """Makes a file object with everything it has, under a name; nobody sees it half made.

        Chunk size and replicas are the parent's.  Raises PosixError as create; then nothing is
        done, and the stored chunks are the caller's to make garbage.
        Requires: numbers of `next_inode`, used once; the chunks of the refs are durable.
        """
        with self.lock:
            self._check_new(parent, name)
            mode, gid, is_directory = fresh.mode, fresh.gid, S_ISDIR(fresh.mode)
            if parent.mode & S_ISGID and fresh.inherits_group:
                gid = parent.gid
                mode |= S_ISGID if is_directory else 0
            if is_directory and parent.nlink >= limits.LINKS_MAX:
                raise PosixError(errno.EMLINK)
            inode = Inode(
                numbers.ino,
                mode,
                fresh.uid,
                gid,
                2 if is_directory else 1,
                fresh.rdev,
                len(fresh.target) or fresh.size,
                0,
                fresh.atime_ns,
                fresh.mtime_ns,
                now_ns,
                parent.ino,
                name,
                numbers.start,
                parent.chunk_size,
                parent.replicas,
                FLAG_XATTRS if fresh.xattrs else 0,
                fresh.target,
            )
            self._fill(inode, fresh)
            if is_directory:
                parent.nlink += 1
                self._directory_count += 1
            else:
                self._file_count += 1
            self._keep(inode)
            self._dirty[inode.ino] = inode
            self._set_name(parent, name, inode)  # last: readers of the caches take no lock
            self._grow(parent, 1, now_ns)
            return inode

    def _fill(self, inode: Inode, fresh: Fresh) -> None:
        """Refs and extended attributes of an inode that nobody knows yet."""
        inode.trust = Trust.COMPLETE
        inode.loaded_size = NO_LEFTOVERS
        stored = 0
        for chunk, ref in fresh.refs:
            self._refs.put(inode.ino, chunk, ref)
            stored += ref.length
        inode.bytes_stored = stored
        self._payload_bytes += stored
        for name, value in fresh.xattrs:
            self.has_xattrs = True
            self._xattrs.put(inode.ino, name, value)
