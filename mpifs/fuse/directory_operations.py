"""Requests on open folders: entries in portions, with offsets and attributes.

The attributes go along when the kernel asks (readdirplus): `ls -l` of 20,000 files costs hundreds
of requests, not 20,000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpifs.fuse.attributes import Answers
from mpifs.fuse.protocol import (
    BODY_AT,
    DIRENT,
    DIRENT_BYTES,
    DIRENT_PLUS_BYTES,
    ENTRY_OUT,
    FH,
    FH_FLAGS,
    OPEN_OUT,
    READ_IN,
    Opcode,
)

if TYPE_CHECKING:
    from mpifs.fuse.operations import Handler
    from mpifs.fuse.request import Request
    from mpifs.vfs.nodes import Nodes

_NO_NODE = bytes(ENTRY_OUT.size)
_PADDING = [bytes(-length % 8) for length in range(8)]
_DOTS = (b".", b"..")


class DirectoryOperations:
    """opendir to releasedir.  Any number of threads; no state."""

    def __init__(self, nodes: Nodes, answers: Answers) -> None:
        self._nodes = nodes
        self._answers = answers

    def handlers(self) -> dict[int, Handler]:
        """By opcode."""
        return {
            Opcode.OPENDIR: self.opendir,
            Opcode.READDIR: self.readdir,
            Opcode.READDIRPLUS: self.readdirplus,
            Opcode.RELEASEDIR: self.releasedir,
            Opcode.FSYNCDIR: self.fsyncdir,
        }

    def opendir(self, request: Request) -> bytes:
        """opendir(3)."""
        return OPEN_OUT.pack(self._nodes.opendir(request.nodeid), 0, 0)

    def readdir(self, request: Request) -> bytearray:
        """Names and types from an offset on, until the reply is full."""
        fh, offset, room, _ = READ_IN.unpack_from(request.view, BODY_AT)
        reply = bytearray()
        for name, stat, following in self._nodes.readdir(fh, offset, False):
            length = len(name)
            if len(reply) + DIRENT_BYTES + length > room:
                break
            reply += DIRENT.pack(stat.ino, following, length, stat.mode >> 12)
            reply += name
            reply += _PADDING[length % 8]
        return reply

    def readdirplus(self, request: Request) -> bytearray:
        """With the attributes; `.` and `..` are no nodes of their own."""
        fh, offset, room, _ = READ_IN.unpack_from(request.view, BODY_AT)
        entry = self._answers.entry
        reply = bytearray()
        for name, stat, following in self._nodes.readdir(fh, offset, True):
            length = len(name)
            if len(reply) + DIRENT_PLUS_BYTES + length > room:
                break
            # Without attributes (the inode is damaged) the kernel asks for the node itself.
            is_node = stat.nlink and name not in _DOTS
            reply += entry(stat) if is_node else _NO_NODE
            reply += DIRENT.pack(stat.ino, following, length, stat.mode >> 12)
            reply += name
            reply += _PADDING[length % 8]
        return reply

    def releasedir(self, request: Request) -> bytes:
        """closedir(3)."""
        self._nodes.releasedir(FH.unpack_from(request.view, BODY_AT)[0])
        return b""

    def fsyncdir(self, request: Request) -> bytes:
        """fsync(2) of a folder."""
        fh, flags = FH_FLAGS.unpack_from(request.view, BODY_AT)
        self._nodes.fsyncdir(fh, bool(flags & 1))
        return b""
