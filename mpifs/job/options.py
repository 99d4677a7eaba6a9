"""The words of `-o`: which are for the volume's data path, which for the mount itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mpifs.core.errors import FormatError
from mpifs.core.limits import (
    COMMIT_INTERVAL_MAX_S,
    JOB_RESTARTS_MAX,
    MEMORY_BYTES_MIN,
    MIB,
)
from mpifs.fuse.options import MountOptions
from mpifs.job.assembly import VfsOptions
from mpifs.job.sizes import parse_size


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Everything `-o` said."""

    mount: MountOptions
    vfs: VfsOptions
    is_relaxed: bool = False
    """sync=relaxed: stores and index do not wait for the disk; a power loss may destroy them."""
    restarts: int = 0
    """restart=N: how often the supervisor brings a crashed volume back."""


def split_words(options: Iterable[str]) -> list[str]:
    """Single words of several `-o a,b=c`."""
    return [word for text in options for word in (part.strip() for part in text.split(",")) if word]


def parse_options(words: Iterable[str], volume: str) -> JobOptions:
    """Raises FormatError with a sentence naming the word that is wrong.

    The mount's source in the kernel's table is always the volume's folder: umount relies on it.
    """
    vfs, is_relaxed, restarts = VfsOptions(), False, 0
    mount_words: list[str] = []
    for word in words:
        key, has_value, value = word.partition("=")
        if key == "commit":
            vfs = replace(vfs, commit_interval_s=_seconds(word, value))
        elif key == "dirty":
            vfs = replace(vfs, dirty_bytes_max=_bytes(word, value))
        elif key == "cache":
            vfs = replace(vfs, cache_bytes_max=_bytes(word, value))
        elif key == "sync" and has_value:
            if value not in ("full", "relaxed"):
                raise FormatError(f"mount option '{word}': sync is full or relaxed")
            is_relaxed = value == "relaxed"
        elif key == "reads" and has_value:
            if value not in ("local", "mpi"):
                raise FormatError(f"mount option '{word}': reads is local or mpi")
            vfs = replace(vfs, reads_past_workers=value == "local")
        elif key == "restart":
            restarts = _times(word, value)
        elif key in ("fsname", "subtype"):
            raise FormatError(f"mount option '{key}' cannot be set: mpifs umount relies on it")
        else:
            mount_words.append(word)
    mount = MountOptions.parse(mount_words)
    vfs = replace(vfs, noatime=mount.noatime)
    return JobOptions(replace(mount, fsname=volume), vfs, is_relaxed, restarts)


def _seconds(word: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= COMMIT_INTERVAL_MAX_S:
        raise FormatError(f"mount option '{word}': commit takes seconds from 0 to 60")
    return seconds


def _times(word: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and int(value) <= JOB_RESTARTS_MAX):
        raise FormatError(
            f"mount option '{word}': restart takes a number from 0 to {JOB_RESTARTS_MAX}"
        )
    return int(value)


def _bytes(word: str, value: str) -> int:
    size = parse_size(value)
    if size < MEMORY_BYTES_MIN:
        raise FormatError(f"mount option '{word}': give at least {MEMORY_BYTES_MIN // MIB}MiB")
    return size
