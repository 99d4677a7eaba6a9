"""The picture of `mpifs layout`: how a file or a folder lies over the workers, drawn in text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mpifs.cli.progress import human_size, printable

if TYPE_CHECKING:
    from mpifs.job.files_protocol import Files

_SHADES = ("·", "░", "▒", "▓", "█")
_PLAIN_SHADES = (".", "-", "+", "*", "#")
_ENTRIES_MAX = 40
"""Entries of a folder that are drawn, the largest first: a screen of them."""
_BAR_COLUMNS = 32
_NAME_COLUMNS = 28


@dataclass(slots=True)
class Share:
    """What a worker has of something."""

    chunks: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Entry:
    """One name of a folder, with all that is below it."""

    name: bytes
    files: int = 0
    bytes: int = 0
    shares: dict[int, Share] = field(default_factory=dict)

    def add(self, found: dict[str, Any]) -> None:
        """Takes in the layout of one file."""
        self.files += 1
        self.bytes += found["size"]
        for chunk in found["chunks"]:
            for worker in chunk["workers"]:
                share = self.shares.setdefault(worker, Share())
                share.chunks += 1
                share.bytes += chunk["length"]

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name.decode("utf-8", "surrogateescape"),
            "files": self.files,
            "bytes": self.bytes,
            "workers": {
                str(number): {"chunks": share.chunks, "bytes": share.bytes}
                for number, share in sorted(self.shares.items())
            },
        }


def entries_of(files: Files, folder: bytes) -> list[Entry]:
    """Each name in a folder; a file with several names counts at the first one.

    Raises the OSError of what cannot be read.
    """
    from mpifs.job.files_protocol import join

    seen: set[int] = set()
    entries = []
    for name, found in files.scan(folder):
        entry = Entry(name + b"/" if found.is_folder else name)
        entries.append(entry)
        todo = [(join(folder, name), found)]
        while todo:
            path, one = todo.pop()
            if one.is_folder:
                todo += [(join(path, inner), below) for inner, below in files.scan(path)]
            elif one.is_regular and one.ino not in seen:
                seen.add(one.ino)
                entry.add(files.layout(path))
    return entries


def file_picture(found: dict[str, Any], workers: Iterable[int]) -> list[str]:
    """A row for each worker, a column for each chunk or, in a large file, for several: the fuller
    the mark, the more of them lie there.  Holes lie nowhere."""
    count = -(-found["size"] // found["chunk_size"]) if found["size"] else 0
    numbers = sorted({*workers, *(w for chunk in found["chunks"] for w in chunk["workers"])})
    head = [f"worker {number}" for number in numbers]
    margin = max(map(len, head), default=0) + 2
    columns = max(1, min(count, _width() - margin - 28))
    if not count or not numbers:
        return []
    here = {number: [0] * columns for number in numbers}
    sums = {number: Share() for number in numbers}
    room = [0] * columns  # how many chunks a column stands for.
    for index in range(count) if count <= columns * 4096 else ():
        room[index * columns // count] += 1
    if not any(room):
        room = [max(1, count // columns)] * columns
    for chunk in found["chunks"]:
        for number in chunk["workers"]:
            here[number][chunk["index"] * columns // count] += 1
            sums[number].chunks += 1
            sums[number].bytes += chunk["length"]
    lines = []
    if columns < count:
        lines.append(" " * margin + f"each column is {count / columns:.0f} chunks or so")
    for title, number in zip(head, numbers, strict=True):
        marks = "".join(_shade(n, of) for n, of in zip(here[number], room, strict=True))
        share = sums[number]
        lines.append(
            f"{title:<{margin}}{marks}  {share.chunks:>6} chunks {human_size(share.bytes):>10}"
        )
    return lines


def folder_picture(entries: list[Entry], workers: Iterable[int]) -> list[str]:
    """A bar for each worker, then a row for each entry with a mark for each worker."""
    total = Entry(b"")
    for entry in entries:
        for number, share in entry.shares.items():
            mine = total.shares.setdefault(number, Share())
            mine.chunks += share.chunks
            mine.bytes += share.bytes
    numbers = sorted({*workers, *total.shares})
    most = max((share.bytes for share in total.shares.values()), default=0)
    lines = []
    for number in numbers:
        share = total.shares.get(number, Share())
        filled = round(_BAR_COLUMNS * share.bytes / most) if most else 0
        bar = _shade(1, 1) * filled
        sizes = f"{human_size(share.bytes):>10} {share.chunks:>8} chunks"
        lines.append(f"worker {number:<4} {bar:<{_BAR_COLUMNS}} {sizes}")
    wide = len(str(max(numbers, default=1))) + 1
    if len(numbers) * wide > _width() - _NAME_COLUMNS - 24:
        return lines  # too many workers for a row of marks.
    title = "".join(f"{number:>{wide}}" for number in numbers)
    lines += ["", f"{'':<{_NAME_COLUMNS}}{title}      bytes   files"]
    entries = sorted(entries, key=lambda one: (-one.bytes, one.name))
    for entry in entries[:_ENTRIES_MAX]:
        top = max((share.bytes for share in entry.shares.values()), default=0)
        marks = ""
        for number in numbers:
            held = entry.shares.get(number, Share()).bytes
            marks += f"{_shade(held, top):>{wide}}"
        name = _cut(printable(entry.name))
        lines.append(
            f"{name:<{_NAME_COLUMNS}}{marks} {human_size(entry.bytes):>10} {entry.files:>7}"
        )
    if len(entries) > _ENTRIES_MAX:
        lines.append(f"and {len(entries) - _ENTRIES_MAX} smaller ones")
    return lines


def _cut(name: str) -> str:
    return name if len(name) < _NAME_COLUMNS else name[: _NAME_COLUMNS - 2] + "…"


def _shade(part: int, whole: int) -> str:
    shades = _SHADES if (sys.stdout.encoding or "").lower().startswith("utf") else _PLAIN_SHADES
    if not part or not whole:
        return shades[0]
    return shades[max(1, min(len(shades) - 1, round((len(shades) - 1) * part / whole)))]


def _width() -> int:
    return max(60, min(200, shutil.get_terminal_size((100, 24)).columns))
