"""From a Python method to what libfuse calls: results and errors become numbers.

libfuse wants 0 or a count, or -errno.  An exception that is no OSError with an errno is a bug: it
is logged with its traceback and answered with EIO.  Nothing ever escapes, SystemExit included,
because ctypes could only print it and would return garbage to the kernel.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

ERRNO_MAX = 4095
"""The kernel takes no larger one: it would be read as a length or a pointer."""


def answered(name: str, call: Callable[..., int | None]) -> Callable[..., int]:
    """`call` with every failure turned into -errno."""

    def callback(*args: Any) -> int:
        try:
            return call(*args) or 0
        except OSError as error:
            code = error.errno
            if type(code) is int and 0 < code <= ERRNO_MAX:
                if code == errno.EIO:
                    log.warning("%s: %s", name, error)
                return -code
            log.exception("%s raised an OSError without an errno; answered EIO", name)
            return -errno.EIO
        except MemoryError:
            log.error("%s: out of memory (a limit of this process)", name)
            return -errno.ENOMEM
        except BaseException:  # The adapter: nothing may escape into C.
            log.exception("%s failed; answered EIO", name)
            return -errno.EIO

    return callback
