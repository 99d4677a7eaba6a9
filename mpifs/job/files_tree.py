"""Whole trees of files: how much is in one, and taking one away."""

from __future__ import annotations

import errno
from typing import NamedTuple, Protocol

from mpifs.core.errors import PosixError
from mpifs.job.files_protocol import Attributes, Files, join

_NO_MORE = (errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNABORTED, errno.EPIPE)


class Listener(Protocol):
    """Told what long work does; called by the thread that does it."""

    def on_bytes(self, count: int) -> None:
        """So many bytes more have been copied."""

    def on_done(self, path: bytes, found: Attributes) -> None:
        """One file or folder is done."""

    def on_error(self, path: bytes, error: OSError) -> None:
        """One file or folder could not be done; the work goes on with the others."""

    def on_warning(self, path: bytes, sentence: str) -> None:
        """One file or folder was done, but for what the sentence says."""


def report(listener: Listener, path: bytes, error: OSError) -> None:
    """Tells the listener, or raises the error when nothing more can work after it."""
    if error.errno in _NO_MORE:
        raise error
    listener.on_error(path, error)


class Amount(NamedTuple):
    """How much is in some trees."""

    files: int
    size: int


def measure(files: Files, paths: list[bytes]) -> Amount:
    """Counts files and bytes for a progress bar; what cannot be read is left out."""
    count = size = 0
    todo = list(paths)
    while todo:
        path = todo.pop()
        try:
            entries = [(path, files.stat(path))] if path in paths else []
            if not entries or entries[0][1].is_folder:
                entries += [(join(path, name), found) for name, found in files.scan(path)]
        except OSError:
            continue
        for place, found in entries:
            if found.is_folder:
                if place != path:
                    todo.append(place)
            else:
                count += 1
                size += found.size if found.is_regular else 0
    return Amount(count, size)


def remove_tree(files: Files, path: bytes, listener: Listener) -> None:
    """Takes a file away, or a folder with all that is in it; symlinks are not followed.

    Errors go to the listener; a folder from which something could not be taken stays.
    """
    todo: list[tuple[bytes, Attributes, bool]] = []
    try:
        todo.append((path, files.stat(path), False))
    except OSError as error:
        report(listener, path, error)
    failed: set[bytes] = set()
    while todo:
        place, found, is_emptied = todo.pop()
        folder = place.rpartition(b"/")[0]
        if is_emptied and place in failed:
            failed.discard(place)
            failed.add(folder)
            continue
        try:
            if found.is_folder and not is_emptied:
                inner = [(join(place, name), entry, False) for name, entry in files.scan(place)]
                todo.append((place, found, True))
                todo += inner
                continue
            (files.rmdir if found.is_folder else files.unlink)(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.add(folder)
            report(listener, place, error)
        else:
            listener.on_done(place, found)


def check_removable(path: bytes, found: Attributes, *, is_recursive: bool) -> None:
    """Raises for what `rm` must not take: the volume's root, and a folder without -r."""
    if path.strip(b"/") == b"":
        raise PosixError(errno.EBUSY, "the root of a volume cannot be removed; name what is in it")
    if found.is_folder and not is_recursive:
        raise PosixError(errno.EISDIR, "is a folder; use rm -r to remove it with its content")
