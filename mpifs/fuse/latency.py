"""`-o lowlatency`: processors that wait for a request or its answer do not halt meanwhile.

To wake a processor that has halted takes 10 µs and more, on a virtual machine by an interrupt that
leaves it: half of a small request.  A process that holds /dev/cpu_dma_latency at 0 has the kernel's
idle loop look for work instead (Documentation/power/pm_qos_interface.rst).  That is for the whole
machine and costs power, so only who asks for it gets it, and only while many requests come.
"""

from __future__ import annotations

import io
import os
import struct

from mpifs.core.errors import StartError
from mpifs.core.limits import LATENCY_LOOK_S, LATENCY_RATE_MIN

DEVICE = "/dev/cpu_dma_latency"

_VALUE = struct.Struct("=i")
_AWAKE = _VALUE.pack(0)
_ANY = _VALUE.pack(2_000_000_000)  # µs: the kernel's own default.


class CpuLatency:
    """What is asked of the kernel for this mount.  Used by one thread.  It ends with `close`, with
    this object, or with the process."""

    def __init__(self, device: str = DEVICE) -> None:
        """Raises StartError if the device may not be written."""
        try:
            self._file = io.FileIO(os.open(device, os.O_WRONLY | os.O_CLOEXEC), "wb")
        except OSError as error:
            raise StartError(
                f"mount option 'lowlatency' needs {device}: {error.strerror}; "
                f"have it made writable for you, or mount without"
            ) from error
        self._received = 0
        self._since = 0.0
        self._is_awake = False

    def note(self, received: int, now_s: float) -> None:
        """So many requests have come until now."""
        passed = now_s - self._since
        if passed < LATENCY_LOOK_S:
            return
        self._set(received - self._received > LATENCY_RATE_MIN * passed)
        self._received, self._since = received, now_s

    def relax(self) -> None:
        """Nobody asks anything."""
        self._set(False)

    def close(self) -> None:
        """Takes back what was asked for."""
        self._file.close()

    def _set(self, is_awake: bool) -> None:
        if is_awake != self._is_awake:
            self._is_awake = is_awake
            self._file.write(_AWAKE if is_awake else _ANY)
