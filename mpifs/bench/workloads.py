"""The loops on files that are timed.  They run in a driver, a process of their own (driver.py).

Each takes `start` and keyword arguments that came as JSON, prepares, calls `start` (those that are
not timed do not), and returns a Spell.  Nothing inside a spell costs what could be done before it:
buffers are made and touched, names are encoded, nothing is verified.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mpifs.bench.content import block_of, piece
from mpifs.core.limits import MIB

RECORD_BYTES = MIB
"""Of the easy pattern; also what the kernel sends to libfuse 3 in one request."""


class Spell(NamedTuple):
    """When the timed part began and ended (CLOCK_MONOTONIC, the same in all processes) and what was
    done in it."""

    begin_s: float
    end_s: float
    amount: float
    """Bytes, or operations."""


Start = Callable[[], float]
"""Called when a workload is prepared; returns at the common beginning, with its moment."""
Workload = Callable[..., Spell]


def timed(start: Start, action: Callable[[], float]) -> Spell:
    """Does `action` once everything is prepared here and in all drivers that work together."""
    begin = start()
    amount = action()
    return Spell(begin, time.monotonic(), amount)


def _buffer(size: int) -> memoryview:
    """Memory whose pages are there already."""
    pages = mmap.mmap(-1, size)
    pages.write(b"\1" * size)
    return memoryview(pages)


def write(
    *, start: Start, path: str, size: int, seed: int, record: int, fsync: bool, fresh: bool
) -> Spell:
    """Writes a file from its beginning, and closes it.  `fresh`: it is not there yet."""
    block_of(seed)
    flags = os.O_WRONLY | (os.O_CREAT | os.O_EXCL if fresh else 0)
    cuts = [(offset, min(record, size - offset)) for offset in range(0, size, record)]

    def run() -> float:
        file = os.open(path, flags, 0o600)
        try:
            for offset, length in cuts:
                _whole(os.write(file, piece(seed, offset, length)), length)
            if fsync:
                os.fsync(file)
        finally:
            os.close(file)
        return size

    return timed(start, run)


def read(*, start: Start, path: str, size: int, record: int) -> Spell:
    """Reads a file from its beginning to its end."""
    into = [_buffer(record)]

    def run() -> float:
        file = os.open(path, os.O_RDONLY)
        try:
            done = 0
            while count := os.readv(file, into):
                done += count
        finally:
            os.close(file)
        _whole(done, size)
        return done

    return timed(start, run)


def random_read(*, start: Start, path: str, size: int, record: int, count: int, seed: int) -> Spell:
    """Reads aligned records at random places."""
    offsets = places_of(size, record, count, seed)
    into = [_buffer(record)]

    def run() -> float:
        file = os.open(path, os.O_RDONLY)
        try:
            for offset in offsets:
                _whole(os.preadv(file, into, offset), record)
        finally:
            os.close(file)
        return count

    return timed(start, run)


def random_write(
    *, start: Start, path: str, size: int, record: int, count: int, seed: int, sync_each: int
) -> Spell:
    """Overwrites aligned records at random places, with an fsync after each `sync_each`."""
    offsets = places_of(size, record, count, seed)
    block_of(seed)

    def run() -> float:
        file = os.open(path, os.O_WRONLY)
        try:
            for number, offset in enumerate(offsets, 1):
                _whole(os.pwrite(file, piece(seed, offset, record), offset), record)
                if number % sync_each == 0:
                    os.fsync(file)
        finally:
            os.close(file)
        return count

    return timed(start, run)


def create(*, start: Start, folder: str, first: int, count: int, size: int, seed: int) -> Spell:
    """Creates, writes and closes small files."""
    names, data = _names(folder, first, count), bytes(piece(seed, 0, size))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL

    def run() -> float:
        for name in names:
            file = os.open(name, flags, 0o600)
            os.write(file, data)
            os.close(file)
        return count

    return timed(start, run)


def read_small(
    *, start: Start, folder: str, first: int, count: int, size: int, seed: int | None = None
) -> Spell:
    """Opens, reads and closes small files, in the order of their names or, with `seed`, in none."""
    names, into = _names(folder, first, count), [_buffer(size)]
    if seed is not None:
        random.Random(seed).shuffle(names)

    def run() -> float:
        for name in names:
            file = os.open(name, os.O_RDONLY)
            _whole(os.readv(file, into), size)
            os.close(file)
        return count

    return timed(start, run)


def stat(*, start: Start, folder: str, count: int) -> Spell:
    """Asks for the attributes of each file by name."""
    return _for_each(start, os.stat, _names(folder, 0, count))


def open_close(*, start: Start, folder: str, count: int) -> Spell:
    """Opens and closes each file."""
    return _for_each(
        start, lambda name: os.close(os.open(name, os.O_RDONLY)), _names(folder, 0, count)
    )


def unlink(*, start: Start, folder: str, count: int) -> Spell:
    """Removes each file."""
    return _for_each(start, os.unlink, _names(folder, 0, count))


def rename(*, start: Start, folder: str, count: int, back: bool) -> Spell:
    """Gives each file another name in its folder; `back` gives it its own again."""
    pairs = [(name, name + b".new") for name in _names(folder, 0, count)]
    if back:
        pairs = [(new, old) for old, new in pairs]
    return _for_each(start, lambda pair: os.rename(*pair), pairs)


def list_long(*, start: Start, folder: str, count: int) -> Spell:
    """`ls -l` of a folder."""

    def run() -> float:
        environment = {**os.environ, "LC_ALL": "C"}
        _command(["ls", "-l", folder], env=environment)
        return count

    return timed(start, run)


def untar(*, start: Start, archive: str, folder: str, count: int) -> Spell:
    """Unpacks an archive of `count` files with tar(1)."""
    os.mkdir(folder)

    def run() -> float:
        _command(["tar", "xf", archive, "-C", folder])
        return count

    return timed(start, run)


def first_request(*, start: Start, path: str, offset: int) -> Spell:
    """One open and one read of 4 KiB: what a program meets that comes after a pause."""
    into = [_buffer(4096)]

    def run() -> float:
        file = os.open(path, os.O_RDONLY)
        try:
            os.preadv(file, into, offset)
        finally:
            os.close(file)
        return 1

    return timed(start, run)


def check(*, start: Start, path: str, pieces: list[tuple[int, int, int]]) -> Spell:
    """Not timed: reads (seed, offset, length) of a file and compares.  Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        for seed, offset, length in pieces:
            if os.pread(file, length, offset) != piece(seed, offset, length):
                raise OSError(f"{path} has other bytes at {offset} than were written")
    finally:
        os.close(file)
    return Spell(0.0, 0.0, len(pieces))


def drop(*, start: Start, paths: list[str]) -> Spell:
    """Not timed: writes out what is dirty and drops the kernel's pages of files."""
    libc = ctypes.CDLL(None)
    for number, path in enumerate(paths):
        file = os.open(path, os.O_RDONLY)
        try:
            if number == 0:
                libc.syncfs(file)  # one call for thousands of files; FUSE has nothing dirty.
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
    return Spell(0.0, 0.0, len(paths))


def flush(*, start: Start, path: str) -> Spell:
    """Not timed: makes a file durable, so that nothing of it disturbs what is measured next."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    return Spell(0.0, 0.0, 0)


def places_of(size: int, record: int, count: int, seed: int) -> list[int]:
    """Offsets of aligned records, at random, each once while there are enough."""
    chance = random.Random(seed)
    slots = max(1, size // record)
    if count <= slots:
        return [slot * record for slot in chance.sample(range(slots), count)]
    return [chance.randrange(slots) * record for _ in range(count)]


def small_name(folder: str, number: int) -> str:
    """Path of a small file."""
    return f"{folder}/f{number:07d}"


def _names(folder: str, first: int, count: int) -> list[bytes]:
    return [os.fsencode(small_name(folder, number)) for number in range(first, first + count)]


def _for_each(start: Start, call: Callable[[Any], object], items: Iterable[Any]) -> Spell:
    listed = list(items)

    def run() -> float:
        for item in listed:
            call(item)
        return len(listed)

    return timed(start, run)


def _whole(count: int, wanted: int) -> None:
    if count != wanted:
        raise OSError(f"{count} bytes came of {wanted}")


def _command(words: list[str], **more: Any) -> None:
    done = subprocess.run(
        words,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **more,
    )
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(f"{words[0]} failed: {said[-1] if said else done.returncode}")


WORKLOADS: dict[str, Workload] = {
    work.__name__: work
    for work in (
        write, read, random_read, random_write, create, read_small, stat, open_close, unlink,
        rename, list_long, untar, first_request, check, drop, flush,
    )
}  # fmt: skip
