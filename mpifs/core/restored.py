"""The sign in the index that it was recovered and is not yet reconciled with the stores.

One row of `meta`, under records.KEY_RESTORED; while it stands the index is not served.  Layout in
doc/format.md, section 4.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from mpifs.core.checksum import Buffer, guard64
from mpifs.core.errors import DamageError
from mpifs.core.records import KEY_RESTORED

_BODY = struct.Struct("<QQQ")
_GUARD = struct.Struct("<Q")


class Recovery(IntEnum):
    """How an index was recovered.  Numbers are stored."""

    FROM_PAGES = 1
    """From its own pages; what they have lost from a copy, if there was one."""
    FROM_COPY = 2
    """From a copy alone."""
    FROM_CHUNKS = 3
    """From nothing: an empty index; the chunks' own headers are all that is known."""


class Restored(NamedTuple):
    """How the index was recovered; `generation` and `date_s` (seconds since 1970) are of the copy
    used, 0 if none was."""

    how: Recovery
    generation: int
    date_s: int


def encode_restored(restored: Restored) -> bytes:
    """The row's value."""
    body = _BODY.pack(*restored)
    return body + _GUARD.pack(guard64(KEY_RESTORED + body))


def decode_restored(value: Buffer) -> Restored:
    """Raises DamageError for any bytes but such a record."""
    if len(value) != _BODY.size + _GUARD.size:
        raise DamageError("index: the record of its recovery has the wrong length")
    body = bytes(value[: _BODY.size])
    if _GUARD.unpack_from(value, _BODY.size)[0] != guard64(KEY_RESTORED + body):
        raise DamageError("index: the record of its recovery fails its own checksum")
    how, generation, date_s = _BODY.unpack(body)
    try:
        return Restored(Recovery(how), generation, date_s)
    except ValueError:
        raise DamageError("index: the record of its recovery names an unknown way") from None
