"""From a request to its handler, and from what that gives or raises to the answer.

An exception that is no OSError with an errno is a bug: it is logged with its traceback and answered
with EIO.  Requests without a handler get ENOSYS, after which the kernel does not ask again or does
it in its own way.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpifs.fuse.attributes import Answers
from mpifs.fuse.directory_operations import DirectoryOperations
from mpifs.fuse.file_operations import FileOperations
from mpifs.fuse.operations import Operations
from mpifs.fuse.protocol import Opcode

if TYPE_CHECKING:
    from mpifs.fuse.operations import Handler
    from mpifs.fuse.request import Request
    from mpifs.vfs.nodes import Nodes

log = logging.getLogger(__name__)

ERRNO_MAX = 511
"""The kernel refuses larger ones, and the asker would wait for ever (fuse_dev_do_write)."""
_UNANSWERED = (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)
"""INTERRUPT: who asked is answered when the request itself is."""


class Dispatch:
    """Serves requests.  Any number of threads, each with its own Request."""

    def __init__(
        self,
        nodes: Nodes,
        answers: Answers,
        write_back: Callable[[int], object] = lambda node: None,
    ) -> None:
        self._handlers: dict[int, Handler] = {
            Opcode.INTERRUPT: lambda request: None,
            Opcode.DESTROY: lambda request: b"",
        }
        for part in (
            Operations(nodes, answers),
            FileOperations(nodes, answers, write_back),
            DirectoryOperations(nodes, answers),
        ):
            self._handlers |= part.handlers()

    def serve(self, request: Request) -> None:
        """Serves one request and answers it."""
        handler = self._handlers.get(request.opcode)
        if handler is None:
            request.refuse(errno.ENOSYS)
            return
        try:
            result = handler(request)
        except OSError as error:
            self._fail(request, _code_of(error, request.opcode))
        except MemoryError:
            log.error("%s: out of memory (a limit of this process)", _name_of(request.opcode))
            self._fail(request, errno.ENOMEM)
        except Exception:
            log.exception("%s failed; answered EIO", _name_of(request.opcode))
            self._fail(request, errno.EIO)
        else:
            if result is not None:
                request.answer(result)

    @staticmethod
    def _fail(request: Request, code: int) -> None:
        if request.opcode not in _UNANSWERED:
            request.refuse(code)


def _code_of(error: OSError, opcode: int) -> int:
    code = error.errno
    if type(code) is int and 0 < code <= ERRNO_MAX:
        if code == errno.EIO:
            log.warning("%s: %s", _name_of(opcode), error)
        return code
    log.exception("%s raised an OSError without an errno; answered EIO", _name_of(opcode))
    return errno.EIO


def _name_of(opcode: int) -> str:
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return f"request {opcode}"
