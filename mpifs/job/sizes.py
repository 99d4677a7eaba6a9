"""Sizes as people write them."""

from __future__ import annotations

from mpifs.core.errors import FormatError
from mpifs.core.limits import GIB, KIB, MIB

_SIZES = {"k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}


def parse_size(text: str) -> int:
    """Bytes of `4096`, `64k`, `1MiB`, `2G`.  Raises FormatError."""
    plain = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = _SIZES.get(plain[-1:], 1)
    digits = plain[:-1] if unit > 1 else plain
    if not (digits.isascii() and digits.isdigit()):
        raise FormatError(f"{text!r} is no size; write for example 64KiB or 1MiB")
    return int(digits) * unit
