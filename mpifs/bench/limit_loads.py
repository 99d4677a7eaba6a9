"""The loops that measure a limit without any file system: plain LMDB and the checksum.

They run in drivers too, LMDB in one process per worker, each with an environment of its own.
"""

from __future__ import annotations

import os
import random
import time

from mpifs.bench.content import PERIOD_BYTES, piece
from mpifs.bench.workloads import Spell, Start, Workload
from mpifs.core.block_table import stored_bytes
from mpifs.core.checksum import function_of
from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.limits import MIB
from mpifs.core.types import ChecksumKind
from mpifs.datafile import DATA_NAME
from mpifs.kv import Environment

_DATABASE = "chunks"
_SEED = 7
_PAGE_BYTES = 4096


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _value(offset: int, length: int) -> bytes:
    steps = range(offset, offset + length, MIB)
    return b"".join(piece(_SEED, at, min(MIB, offset + length - at)) for at in steps)


def lmdb_put(
    *, start: Start, folder: str, count: int, chunk: int, group: int, relaxed: bool
) -> Spell:
    """Stores `count` chunks in committed groups of `group` bytes; those of the time before are
    deleted first, as an overwriting file system has it."""
    size = stored_bytes(chunk)
    values = [_value(number * chunk, chunk).ljust(size, b"\0") for number in range(8)]
    per_group = max(1, group // size)
    environment = Environment(
        folder, (_DATABASE,), sync="relaxed" if relaxed else "full", create=True
    )
    try:
        with environment.write() as transaction:
            for number in range(count):
                transaction.delete(_DATABASE, _key(number))
        begin = start()
        for first in range(0, count, per_group):
            numbers = range(first, min(count, first + per_group))
            environment.preallocate_ahead((size + _PAGE_BYTES) * len(numbers) + 64 * _PAGE_BYTES)
            with environment.write() as transaction:
                for number in numbers:
                    transaction.put(_DATABASE, _key(number), values[number % len(values)])
        return Spell(begin, time.monotonic(), count * chunk)
    finally:
        environment.close()


def lmdb_get(*, start: Start, folder: str, count: int, chunk: int, cold: bool) -> Spell:
    """Reads all chunks, copying each out of its pages; if `cold`, the kernel has none at first."""
    file = os.open(os.path.join(folder, DATA_NAME), os.O_RDONLY)
    try:
        if cold:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
    into = memoryview(bytearray(b"\1" * chunk))
    environment = Environment(folder, (_DATABASE,))
    try:
        begin = start()
        for number in range(count):
            with environment.read() as transaction:
                value = transaction.get(_DATABASE, _key(number))
                assert value is not None
                into[:] = value[IMAGE_HEADER_BYTES : IMAGE_HEADER_BYTES + chunk]
        return Spell(begin, time.monotonic(), count * chunk)
    finally:
        environment.close()


def lmdb_rate(*, start: Start, folder: str, count: int, chunk: int, gets: int) -> Spell:
    """Reads 4 KiB of chunks at random."""
    into = memoryview(bytearray(4096))
    chance = random.Random(_SEED)
    keys = [_key(chance.randrange(count)) for _ in range(gets)]
    first = IMAGE_HEADER_BYTES + chance.randrange(max(1, chunk - 4096))
    environment = Environment(folder, (_DATABASE,))
    try:
        begin = start()
        for key in keys:
            with environment.read() as transaction:
                value = transaction.get(_DATABASE, key)
                assert value is not None
                into[:] = value[first : first + 4096]
        return Spell(begin, time.monotonic(), gets)
    finally:
        environment.close()


def hash_sums(*, start: Start, size: int, chunk: int, kind: int) -> Spell:
    """Sums chunks that lie in memory, more of it than the processor's caches hold."""
    function = function_of(ChecksumKind(kind))
    step = min(chunk, 4 * MIB)
    pieces = [piece(_SEED, offset, step) for offset in range(0, PERIOD_BYTES, step)]
    begin = start()
    done = 0
    while done < size:
        for data in pieces:
            function(data)
            done += step
    return Spell(begin, time.monotonic(), done)


LIMIT_LOADS: dict[str, Workload] = {
    work.__name__: work for work in (lmdb_put, lmdb_get, lmdb_rate, hash_sums)
}
