"""The partial file under which something is received: opened and locked, one receiver at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from mpifs.core.errors import PosixError
from mpifs.transfer.folder import part_name, shown

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_part(folder: int, name: bytes, path: bytes) -> int:
    """A locked descriptor of the part of `name` in an open folder, made if it is not there.

    Raises PosixError: EBUSY while another transfer has it, EEXIST for what is no regular file.
    """
    part = part_name(name)
    descriptor = os.open(part, _FLAGS, 0o600, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PosixError(errno.EEXIST, f"{shown(path)}: {shown(part)} is no regular file")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who has finished just now has given it its name: then another one is the part.
        if os.stat(part, dir_fd=folder).st_ino != os.fstat(descriptor).st_ino:
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise PosixError(
            errno.EBUSY, f"{shown(path)} is being received by another transfer"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
