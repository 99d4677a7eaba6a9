"""Names on a rank that match a pattern: `*`, `?`, `[…]` within a part, `**` for any folders.

Only folders that can hold a match are listed, and links are never followed.
"""

from __future__ import annotations

import errno
import fnmatch
from collections.abc import Iterator

from mpifs.core.limits import FOLDER_DEPTH_MAX
from mpifs.core.transfer_messages import FOLDER, LINK, Entry
from mpifs.transfer.ends import Source
from mpifs.transfer.folder import joined, parts_of

_WILD = (b"*", b"?", b"[")


def matching(source: Source, pattern: bytes) -> list[bytes]:
    """The matches in the order of names, none twice.  Raises OSError."""
    found = dict.fromkeys(_below(source, b"", parts_of(pattern), 0))
    return sorted(found)


def _below(source: Source, folder: bytes, parts: list[bytes], depth: int) -> Iterator[bytes]:
    if not parts:
        if folder:
            yield folder
        return
    first, *rest = parts
    if depth > FOLDER_DEPTH_MAX:
        return
    if first == b"**":
        yield from _below(source, folder, rest, depth)
        for entry in entries_of(source, folder):
            if entry.kind == FOLDER and not _is_hidden(entry):
                yield from _below(source, entry.path, parts, depth + 1)
        return
    if not any(mark in first for mark in _WILD):
        path = joined(folder, first)
        try:
            entry = source.look(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            raise
        if not rest or entry.kind == FOLDER:
            yield from _below(source, path, rest, depth + 1)
        return
    for entry in entries_of(source, folder):
        name = entry.path.rpartition(b"/")[2]
        if _is_hidden(entry) and not first.startswith(b"."):
            continue
        if entry.kind != LINK and fnmatch.fnmatchcase(name, first):
            if not rest:
                yield entry.path
            elif entry.kind == FOLDER:
                yield from _below(source, entry.path, rest, depth + 1)


def _is_hidden(entry: Entry) -> bool:
    return entry.path.rpartition(b"/")[2].startswith(b".")


def entries_of(source: Source, folder: bytes) -> Iterator[Entry]:
    """All entries of a folder in the order of names.  Raises OSError."""
    after = b""
    while True:
        page = source.entries(folder, after)
        yield from page.entries
        if page.is_end or not page.entries:
            return
        after = page.entries[-1].path.rpartition(b"/")[2]
