"""Damaged data files of a store made anew from what can still be read of them.

The new environment is built in `small.new/` (and so on), made durable, and its data file renamed
over the damaged one: one step, whatever happens before or after.  What a killed one has left is
thrown away by the next.

An image is kept under the key that its own header names, whatever key it stands under; if two have
the same name, the one with a right payload.  An image whose payload is wrong is kept if there is no
better one, and one whose header cannot be read under the key that it has: nothing that could still
be good is thrown away.  Where rows may have been lost the whole file is searched for images, so
that deleted chunks can come back; the index knows which ones it has deleted.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from mpifs import faultpoint
from mpifs.core.block_table import stored_bytes
from mpifs.core.errors import FullError
from mpifs.core.image import (
    IMAGE_HEADER_BYTES,
    KEY_BYTES,
    MAGIC,
    encode_key,
    home_name,
)
from mpifs.core.limits import KV_SLACK_BYTES, MEND_BYTES_MAX, MIB
from mpifs.core.mending import correct_header
from mpifs.core.messages import Rebuild, RebuildReply
from mpifs.datafile import DATA_NAME, disk_free_bytes, make_folder
from mpifs.pagefile import PageFile
from mpifs.store.folder import lock_folder, put_in_place, remove_folder, store_folder
from mpifs.store.identity import make_right
from mpifs.store.inspection import file_problems, has_side
from mpifs.store.side import SIDES, Side, SideChange
from mpifs.store.value import header_of, is_whole

Range = tuple[bytes, "bytes | None"]
_LOCAL = re.compile(
    r"page \d+ \((value in )?(chunks|headers)[,)]"
    r"|(chunks|headers): its pages and records"
    r"|pages? .* neither in use nor in the free list"
)
"""Problems that leave no doubt of what the newest state is.  With all others (of meta pages, of the
free list) the rows may be those of an older state."""
_ODD_MAX = 100_000  # odd keys remembered; above, the whole file is searched
_ROW_BYTES = 4096  # what a row costs in memory beside its value


def rebuild(volume_folder: str, wanted: Rebuild) -> RebuildReply:
    """Makes a store usable that nobody serves, as far as that is possible.

    May be repeated, also after a kill.  Raises FormatError (another store, no folder), FullError,
    InUseError, DamageError (its disk fails).
    """
    done = make_right(volume_folder, wanted)
    folder = store_folder(volume_folder, wanted.store)
    lock = lock_folder(folder)
    chunks = 0
    try:
        for name in SIDES:
            remove_folder(os.path.join(folder, name + ".new"))
            problems = list(file_problems(os.path.join(folder, name)))
            if problems and has_side(folder, name):
                count = _rebuild_side(folder, name, all(map(_LOCAL.match, problems)))
                chunks += count
                done.append(f"made {name}/{DATA_NAME} anew with {count} chunks ({problems[0]})")
    finally:
        os.close(lock)
    return RebuildReply(chunks, done)


def _rebuild_side(folder: str, name: str, is_local: bool) -> int:
    """Makes one environment anew; the number of chunks in it.  `is_local`: only pages of its
    databases are damaged, so that what is not in their lost ranges is in their rows."""
    path = os.path.join(folder, name)
    fresh = path + ".new"
    data = os.path.join(path, DATA_NAME)
    _check_room(folder, data)
    side = Side(fresh, create=True, relaxed=True)
    try:
        if os.path.exists(data):
            with PageFile(data) as pages:
                _Salvage(side, name, pages).run(is_local)
        side.environment.sync()
        count = side.counters.chunks
    finally:
        side.close()
    make_folder(path)
    faultpoint.reach("store.rebuild")
    put_in_place(os.path.join(fresh, DATA_NAME), data)
    remove_folder(fresh)
    return count


def _check_room(folder: str, data: str) -> None:
    """Raises FullError unless a second file of the size fits on the disk."""
    try:
        stat = os.stat(data)
        size = min(stat.st_size, stat.st_blocks * 512)
    except OSError:
        size = 0
    needed = size + size // 16 + KV_SLACK_BYTES
    if disk_free_bytes(folder) < needed:
        raise FullError(
            f"the disk of {folder} has no room for a new {data}: {-(-needed // MIB)} MiB are needed"
        )


class _Salvage:
    """Fills a new environment from the pages of a damaged one.

    What a search finds must belong to this environment: LMDB does not clear the pages that it
    fills in part (meminit), so they show what the process has written elsewhere.
    """

    def __init__(self, side: Side, side_name: str, pages: PageFile) -> None:
        self._side = side
        self._side_name = side_name
        self._pages = pages
        self._odd: set[bytes] = set()  # keys under which another chunk's image stood, or none

    def run(self, is_local: bool) -> None:
        """Takes rows first, then what a search finds where rows are lost or odd."""
        self._fill(self._rows())
        ranges = self._pages.lost_ranges("chunks")
        if not is_local or len(self._odd) > _ODD_MAX:
            ranges = [(b"", None)]
        if ranges or self._odd:
            self._fill(self._found_in(ranges))

    def _rows(self) -> Iterator[tuple[bytes, memoryview]]:
        for key, value in self._pages.rows("chunks"):
            header = header_of(value)
            is_odd = header is None or encode_key(header.key) != key
            if is_odd and len(self._odd) <= _ODD_MAX:
                self._odd.add(key)
            yield key, value

    def _found_in(self, ranges: Sequence[Range]) -> Iterator[tuple[None, memoryview]]:
        starts = [low for low, _ in ranges]
        for value in self._pages.scan_for(MAGIC, _image_bytes):
            header = header_of(value)
            if header is None or home_name(header.inode, header.length) != self._side_name:
                continue
            key = encode_key(header.key)
            index = bisect_right(starts, key) - 1
            is_lost = index >= 0 and ((end := ranges[index][1]) is None or key < end)
            if is_lost or key in self._odd:
                yield None, value

    def _fill(self, rows: Iterable[tuple[bytes | None, memoryview]]) -> None:
        """Keeps rows, in transactions of about MEND_BYTES_MAX."""
        left = iter(rows)
        is_end = False
        while not is_end:
            size = 0
            with self._side.change() as change:
                for key, value in left:
                    _keep(change, key, value)
                    size += len(value) + _ROW_BYTES
                    if size > MEND_BYTES_MAX:
                        break
                else:
                    is_end = True


def _image_bytes(head: memoryview) -> int:
    """How long the image is whose first bytes these are; 0 if it is none."""
    header = header_of(head)
    return 0 if header is None else IMAGE_HEADER_BYTES + header.length


def _keep(change: SideChange, key: bytes | None, value: memoryview) -> None:
    """Stores a value that was found, unless there is a better one.  `key`: of a row's."""
    header = header_of(value)
    if header is None and key is not None:
        head = correct_header(bytes(value[:IMAGE_HEADER_BYTES]))
        if head is not None:
            value = memoryview(head + bytes(value[IMAGE_HEADER_BYTES:]))
            header = header_of(value)
    if header is None:
        if key is not None and len(key) == KEY_BYTES and not change.has(key):
            change.put(key, value, 0)
        return
    home = encode_key(header.key)
    if change.has(home):
        old = change.image(home)
        if (old is not None and is_whole(old)) or not is_whole(value):
            return
        change.delete(home)
    end = IMAGE_HEADER_BYTES + header.length
    if end <= len(value):
        value = memoryview(bytes(value[:end]).ljust(stored_bytes(header.length), b"\0"))
    change.put(home, value, header.length)
