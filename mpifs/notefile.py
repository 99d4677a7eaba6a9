"""Small JSON files beside an index: what a service is to know at the next mount."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_note(path: str, content: dict[str, Any], *, is_durable: bool) -> None:
    """Stores it whole or not at all; `is_durable`: on return it survives a power loss.

    On a full disk it is written over the old one, into the block that this has.  Raises OSError.
    """
    text = json.dumps(content).encode()
    try:
        _replace(path, text, is_durable=is_durable)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path + ".new")
        if error.errno not in _FULL:
            raise
        _overwrite(path, text, is_durable=is_durable)


def _replace(path: str, text: bytes, *, is_durable: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(path + ".new", flags, 0o600), "wb") as file:
        file.write(text)
        file.flush()
        if is_durable:
            os.fsync(file.fileno())
    os.replace(path + ".new", path)


def _overwrite(path: str, text: bytes, *, is_durable: bool) -> None:
    """One short write: a crash leaves the old note or the new one, blanks behind it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, text.ljust(os.fstat(fd).st_size), 0)
        if is_durable:
            os.fsync(fd)
    finally:
        os.close(fd)
