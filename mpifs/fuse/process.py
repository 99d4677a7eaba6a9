"""What a rank wants of its interpreter and its C library."""

from __future__ import annotations

import ctypes
import gc
import logging
import resource
import sys

from mpifs.core.limits import HEAPS_MAX

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""A busy Python thread stalls every callback for so long; 5 ms, the default, is 25 × a request."""

MALLOC_THRESHOLD_BYTES = 32 * 1024 * 1024
"""LMDB mallocs the dirty pages of 1 MiB of a chunk, libfuse its replies; below the threshold glibc
keeps them, above it faults them in anew each time (932 against 114 µs per read)."""

COLLECT_COUNTS = (10_000, 20, 100)
"""Objects go by their counts here; a full collection looks at every cached inode and stops all
requests meanwhile."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def limit_heaps() -> None:
    """Few heaps of malloc (why: job/memory.py).  Before the first thread of the process.

    For ranks that the user's own mpiexec has started: those of mpifs's launcher have one heap from
    their beginning (job/mpi_launcher.py); here a thread that came before the call keeps its own."""
    _set_malloc(_M_ARENA_MAX, HEAPS_MAX)


def _set_malloc(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none.
    if mallopt is not None:
        mallopt(option, value)


def prepare_process() -> None:
    """Sets thresholds of malloc and the collector, the switch interval, the limit of open files."""
    gc.freeze()
    gc.set_threshold(*COLLECT_COUNTS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _set_malloc(_M_TRIM_THRESHOLD, MALLOC_THRESHOLD_BYTES)
    _set_malloc(_M_MMAP_THRESHOLD, MALLOC_THRESHOLD_BYTES)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.info("the limit of open files stays at %d: %s", soft, error)
