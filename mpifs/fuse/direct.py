"""Requests that are served past the library: READ, WRITE, FLUSH, most refusals of GETXATTR.

They name their file by the handle that the Vfs gave, so nothing that libfuse knows (paths, nodes,
hidden files) is needed or changed, and its callback costs as much as the Vfs itself.  `read` fills
the answer and `write` takes the request where they lie.  A view that is kept beyond the call raises
BufferError here instead of corrupting memory later.

INTERRUPT of such a request finds nothing in libfuse, which answers it with EAGAIN; the kernel asks
again until the request is over.  Structures: include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpifs.core.limits import BULK_BYTES
from mpifs.fuse.callbacks import answered
from mpifs.fuse.open_files import OpenFiles
from mpifs.fuse.request import HEADER_BYTES, Request
from mpifs.fuse.serving import Serving

if TYPE_CHECKING:
    from mpifs.vfs.facade import Vfs

log = logging.getLogger(__name__)

_IN = struct.Struct("=2QI")
"""The beginning of fuse_read_in and fuse_write_in: fh, offset, size."""
_FH = struct.Struct("=Q")
"""The beginning of fuse_flush_in."""
_WRITE_OUT = struct.Struct("=2I")
_WRITE_DATA_AT = HEADER_BYTES + 40
_NAME_AT = HEADER_BYTES + 8
_REFUSED = b"system."
_PRIVILEGED = b"security."


class DirectOperations:
    """Serves or leaves to the library.  Any number of threads, each with its own Request."""

    def __init__(
        self,
        vfs: Vfs,
        serving: Serving,
        files: OpenFiles,
        hidden_changed: Callable[[int], None],
    ) -> None:
        self._vfs = vfs
        self._serving = serving
        self._files = files
        self._hidden_changed = hidden_changed
        self._read = answered("read", self.read)
        self._write = answered("write", self.write)
        self._flush = answered("flush", vfs.flush)
        self._serves: dict[int, Callable[[Request], bool]] = {
            Request.READ: self._serve_read,
            Request.WRITE: self._serve_write,
            Request.FLUSH: self._serve_flush,
            Request.GETXATTR: self._serve_getxattr,
        }

    def serve(self, request: Request) -> bool:
        """Whether the request is answered; else it is the library's."""
        serve = self._serves.get(request.opcode)
        try:
            return serve is not None and serve(request)
        except Exception:
            log.exception("a request of kind %d failed; answered EIO", request.opcode)
            request.answer(-errno.EIO)
            return True

    def _serve_read(self, request: Request) -> bool:
        fh, offset, size = _IN.unpack_from(request.view, HEADER_BYTES)
        self._files.used(fh, request.nodeid)
        if size >= BULK_BYTES:  # whole chunks are fetched, and a copy costs more than lending.
            lent = self._vfs.lend(fh, size, offset)
            if lent is not None:
                with lent:
                    request.answer_from(lent.payload)
                return True
        request.answer(self._read(request, fh, offset, size))
        return True

    def _serve_write(self, request: Request) -> bool:
        fh, offset, size = _IN.unpack_from(request.view, HEADER_BYTES)
        self._files.used(fh, request.nodeid)
        count = self._write(request, fh, offset, size)
        if count >= 0:
            _WRITE_OUT.pack_into(request.room(_WRITE_OUT.size), 0, count, 0)
            count = _WRITE_OUT.size
        request.answer(count)
        return True

    def _serve_flush(self, request: Request) -> bool:
        (fh,) = _FH.unpack_from(request.view, HEADER_BYTES)
        self._files.used(fh, request.nodeid)
        request.answer(self._flush(fh))
        return True

    def read(self, request: Request, fh: int, offset: int, size: int) -> int:
        """pread(2), straight into the answer; the bytes read."""
        with request.room(size) as into:
            return self._vfs.read(fh, into, offset)

    def write(self, request: Request, fh: int, offset: int, size: int) -> int:
        """pwrite(2), straight from the request; the bytes taken."""
        serving = self._serving
        serving.path = None
        serving.fh = fh
        with request.view[_WRITE_DATA_AT : _WRITE_DATA_AT + size] as data:
            count = self._vfs.write(fh, data, offset, request.caller)
        if self._files.hidden:
            self._hidden_changed(fh)
        return count

    def _serve_getxattr(self, request: Request) -> bool:
        """Names that no file can have: `ls -l` asks each for ACLs, a write for capabilities."""
        view = request.view
        if view[_NAME_AT : _NAME_AT + len(_REFUSED)] == _REFUSED:
            request.answer(-errno.EOPNOTSUPP)
            return True
        if self._vfs.has_xattrs or view[_NAME_AT : _NAME_AT + len(_PRIVILEGED)] != _PRIVILEGED:
            return False
        request.answer(-errno.ENODATA)
        return True
