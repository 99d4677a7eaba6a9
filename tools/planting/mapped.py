"""Where in its file a view into an LMDB map lies, and changing bits there.

LMDB writes pages anew, so a search of the file for a record finds old copies of it as well; the
address of the view that LMDB itself gives is the one place that counts.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

PAGE_BYTES = 4096


class _Buffer(ctypes.Structure):
    """Py_buffer of CPython."""

    _fields_ = [
        ("address", ctypes.c_void_p),
        ("owner", ctypes.py_object),
        ("length", ctypes.c_ssize_t),
        ("item_bytes", ctypes.c_ssize_t),
        ("is_readonly", ctypes.c_int),
        ("dimensions", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


class Spot(NamedTuple):
    """A byte range of a file."""

    path: str
    offset: int
    length: int

    @property
    def page(self) -> int:
        """Number of the page that it begins in."""
        return self.offset // PAGE_BYTES

    @property
    def end(self) -> int:
        """Offset behind it."""
        return self.offset + self.length

    def flip(self, bit: int) -> None:
        """Changes one bit, counted from the range's beginning; twice is as if never."""
        self.change(bit // 8, 1 << bit % 8)

    def change(self, index: int, mask: int) -> None:
        """Changes the bits `mask` of one byte."""
        assert 0 <= index < self.length
        assert 0 < mask < 256
        with open(self.path, "r+b", buffering=0) as file:
            old = os.pread(file.fileno(), 1, self.offset + index)
            os.pwrite(file.fileno(), bytes((old[0] ^ mask,)), self.offset + index)


def spot_of(view: memoryview, path: str) -> Spot:
    """The place of a view into the map of `path`.  Requires: its transaction is open."""
    address = _address(view)
    real = os.path.realpath(path)
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) < 6 or fields[5] != real:
                continue
            start, end = (int(word, 16) for word in fields[0].split("-"))
            if start <= address < end:
                return Spot(path, address - start + int(fields[2], 16), len(view))
    raise AssertionError(f"the view is not in the map of {path}")


def _address(view: memoryview) -> int:
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    try:
        return int(buffer.address or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
