"""An LMDB 0.9 data file read without LMDB, whatever its bytes are: LMDB trusts them and crashes.

For verify (is the file whole?) and repair (what can still be read?).  Nothing is ever written.
Bytes are read with pread and not mapped: neither a cut file nor a bad sector is SIGBUS then, and
what is given stays valid.  No bytes make it raise, loop for ever or hold more than a page per
level and a few bits per page.

Of a live file it shows the newest state at the time it was opened; the caller must hold a read
transaction that began before, or commits reuse its pages meanwhile.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from mpifs.core import tree_page
from mpifs.core.errors import FormatError
from mpifs.core.limits import TREE_CHECK_PAGES_MAX, TREE_CHECK_S, TREE_PROBLEMS_MAX
from mpifs.core.tree_check import PageSet, TreeCheck, free_pages
from mpifs.core.tree_page import LEAF, OVERFLOW, MetaPage, PageError, Tree
from mpifs.core.tree_salvage import VALUE_BYTES_MAX, Range, Row, TreeRows, joined
from mpifs.datafile import DATA_NAME, check_file, disk_failure

_READ_TRIES = 100
_SCAN_BYTES = 4 << 20
_TAIL_PAGES_MAX = 1 << 20  # free pages behind the end of the file; one transaction made them
_HEADER = struct.Struct("<QHHI")


class PageFile:
    """One data file, opened for reading; close it.  One thread at a time.

    Raises FormatError (missing, no access) or DamageError (its disk fails) when it is opened.
    """

    def __init__(self, path: str) -> None:
        """`path`: the file, or the folder with `data.mdb` in it."""
        self.path = os.path.join(path, DATA_NAME) if os.path.isdir(path) else path
        self._fd = -1
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size
        except OSError as error:
            raise disk_failure(error, error.errno, self.path) from error
        self.page_bytes, metas = self._read_metas()
        self._metas = self._by_age([meta for meta in metas if meta is not None])
        self.has_both_metas = len(self._metas) == 2
        self._meta_problems = _meta_problems(metas)
        self._checks: dict[int, TreeCheck] = {}
        self._lost: dict[str, list[Range]] = {}

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file.  May be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def problems(self, expected: Sequence[str] = ()) -> Iterator[str]:
        """Sentences about what is wrong with the newest snapshot, TREE_PROBLEMS_MAX at most.

        None: LMDB reads and changes the file without harm, and every record is where a search
        finds it.  What the keys and values mean is not looked at.  Bytes that nothing uses (the
        older snapshot, free pages, gaps) are not checked.  `expected` are databases that must be
        there.  Reads all pages but those that only hold values.
        """
        problems = self._problems(expected)
        yield from islice(problems, TREE_PROBLEMS_MAX)
        if next(problems, None) is not None:
            yield "and there is more"

    def first_problem(self, pages_max: int, is_over: Callable[[], bool]) -> str | None:
        """As the first of `problems`, at a bounded cost: what LMDB could crash on comes first.

        A file with more than `pages_max` pages of keys is not read whole; the check also ends
        when `is_over`.
        """
        return next(self._problems((), pages_max, is_over), None)

    def databases(self) -> list[str]:
        """Names of the named databases of the newest snapshot that can be found."""
        if not self._metas:
            return []
        return [name.decode("utf-8", "backslashreplace") for name, _ in self._trees(self._metas[0])]

    def rows(self, db: str, *, older: bool = False) -> Iterator[Row]:
        """All rows of a database that can be reached, in key order where the file is whole.

        Of a damaged page all records are given that can be told apart, so a row may have a wrong
        byte in its key or value: check what you take.  `older`: of the snapshot before the newest.
        A name with one wrong byte is found, too.  Where a meta page is destroyed (`has_both_metas`
        is false), the state that the other one names counts as the newest: it is, or it is the one
        before.
        """
        self._lost[db] = [(b"", None)]
        for meta in self._metas[1:2] if older else self._metas[:1]:
            tree = _tree_named(self._trees(meta), db.encode())
            if tree is not None:
                walk = self._walk(meta)
                yield from walk.rows(tree, tree_page.NODE_PLAIN)
                self._lost[db] = joined(walk.lost)

    def lost_ranges(self, db: str) -> list[Range]:
        """Ranges of keys (from, included; to, excluded, None: no end) in which the last `rows`
        of this database may have missed rows, in key order; it must have been read to its end.
        """
        return self._lost.get(db, [(b"", None)])

    def scan_for(
        self, magic: bytes, length_of: Callable[[memoryview], int] | None = None
    ) -> Iterator[memoryview]:
        """Every place of the whole file where a value that begins with `magic` may stand.

        Free pages hold what was deleted, and that is given, too.  A view reaches to the end of
        the value's pages (as their header tells) or of the leaf.  With `length_of`, which gets the
        first 64 bytes and gives the value's length or 0 (no value after all), the view has this
        length if the file has it: then a damaged page header does no harm.
        """
        overlap = len(magic) - 1
        for start in range(0, self.size, _SCAN_BYTES):
            window = self._pread(start, _SCAN_BYTES + overlap)
            at = window.find(magic)
            while 0 <= at < _SCAN_BYTES:
                value = self._value_at(start + at, length_of)
                if value is not None:
                    yield value
                at = window.find(magic, at + 1)

    def _problems(
        self,
        expected: Sequence[str],
        pages_max: int | None = None,
        is_over: Callable[[], bool] | None = None,
    ) -> Iterator[str]:
        if not self.size:
            yield "the file is empty"
            return
        yield from self._meta_problems
        if not self._metas:
            yield "no meta page can be used"
            return
        meta = self._metas[0]
        for other in self._metas[1:]:
            if other.txn > meta.txn or not self._has_own_number(other):
                yield f"meta page {other.slot} names a transaction that it is not of"
        pages = self.size // self.page_bytes
        last = self._last(meta)
        check = TreeCheck(meta, last, pages, self.page_bytes, self._read, pages_max, is_over)
        yield from check.problems(expected)

    def _pread(self, offset: int, count: int) -> bytes:
        """Bytes from an offset on; fewer at the end of the file, none where the disk fails."""
        try:
            return os.pread(self._fd, count, offset)
        except (OSError, OverflowError):
            return b""

    def _read(self, number: int, count: int) -> bytes:
        return self._pread(number * self.page_bytes, count)

    def _last(self, meta: MetaPage) -> int:
        """The last page of a snapshot; bounds what a damaged number can cost."""
        return min(meta.last_page, self.size // self.page_bytes + _TAIL_PAGES_MAX)

    def _read_metas(self) -> tuple[int, list[MetaPage | None]]:
        """Size of a page and both meta pages (None: not there)."""
        head = self._pread(0, tree_page.PAGE_SIZES[-1] + tree_page.META_BYTES)
        page_bytes = tree_page.guess_page_bytes(head)
        pages: list[bytes] = []
        for _ in range(_READ_TRIES):  # a commit may be writing one just now
            before, pages = pages, [self._pread(at, tree_page.META_BYTES) for at in (0, page_bytes)]
            if pages == before:
                break
        return page_bytes, [
            tree_page.decode_meta(page, slot, page_bytes)
            if len(page) == tree_page.META_BYTES
            else None
            for slot, page in enumerate(pages)
        ]

    def _by_age(self, metas: list[MetaPage]) -> list[MetaPage]:
        """The newest meta first.

        A commit notes under its number which pages it frees, the roots of its predecessor among
        them.  So a wrong transaction number is found, and one wrong bit in it (T - 1 becomes T + 1)
        does not make the past the present.
        """
        usable = [meta for meta in metas if meta.is_meta]
        usable.sort(key=lambda meta: -meta.txn)
        if len(usable) < 2 or all(self._has_own_number(meta) for meta in usable):
            return usable
        newer, older = usable
        frees, is_freed = self._frees(newer, older), self._frees(older, newer)
        if frees == is_freed:
            is_freed = (self._newest_free(older) or 0) > (self._newest_free(newer) or 0)
        return [older, newer] if is_freed else usable

    def _frees(self, meta: MetaPage, other: MetaPage) -> bool:
        """Whether a snapshot has the other one's root in its free list."""
        free = self._free_set(meta)
        return free is not None and other.main.root <= self._last(meta) and other.main.root in free

    def _has_own_number(self, meta: MetaPage) -> bool:
        """Whether the number of a meta's transaction is that of its free list, if that tells."""
        return meta.txn < 2 or self._newest_free(meta) in (meta.txn, None)

    def _newest_free(self, meta: MetaPage) -> int | None:
        """The transaction of the last record of the free list, if it can be read."""
        number = meta.free.root
        try:
            for _ in range(1, meta.free.depth):
                page = self._read(number, self.page_bytes)
                number = tree_page.read_branch(page, number)[1][-1]
            page = self._read(number, self.page_bytes)
            keys, _long = tree_page.read_leaf(page, number, tree_page.NODE_PLAIN)
            return int.from_bytes(keys[-1], "little")
        except PageError:
            return None

    def _walk(self, meta: MetaPage) -> TreeRows:
        def check() -> TreeCheck:
            found = self._checks.get(meta.slot)
            if found is None:
                pages = self.size // self.page_bytes
                found = TreeCheck(meta, self._last(meta), pages, self.page_bytes, self._read)
                self._checks[meta.slot] = found
                deque(found.problems(), 0)
            return found

        free = self._free_set(meta)
        return TreeRows(self._read, self.page_bytes, self._last(meta), free, check)

    def _trees(self, meta: MetaPage) -> list[tuple[bytes, Tree]]:
        """The named databases of a snapshot whose roots can be there."""
        trees = []
        for key, value in self._walk(meta).rows(meta.main, tree_page.NODE_TREE):
            trees.append((key, tree_page.decode_tree(bytes(value))))
        return trees

    def _free_set(self, meta: MetaPage) -> PageSet | None:
        """The free pages of a snapshot, or None if the list is damaged."""
        last = self._last(meta)
        free = PageSet(last)
        walk = TreeRows(self._read, self.page_bytes, last)
        try:
            for _, value in walk.rows(meta.free, tree_page.NODE_PLAIN, tree_page.number_order):
                for number in free_pages(value, last):
                    free.add(number)
        except PageError:
            return None
        return None if walk.lost else free

    def _value_at(
        self, offset: int, length_of: Callable[[memoryview], int] | None
    ) -> memoryview | None:
        """The value that begins at an offset of the file, if one can."""
        number, at = divmod(offset, self.page_bytes)
        header = self._read(number, _HEADER.size)
        if len(header) < _HEADER.size:
            return None
        found, _, flags, pages = _HEADER.unpack(header)
        if at == _HEADER.size:
            room = VALUE_BYTES_MAX
            if length_of is None and found == number and flags == OVERFLOW and pages:
                room = pages * self.page_bytes - at
        elif (
            at > _HEADER.size
            and not at & 1
            and (flags == LEAF or (found == number and flags != OVERFLOW))
        ):
            room = self.page_bytes - at
        else:
            return None
        if length_of is not None:
            length = length_of(memoryview(self._pread(offset, 64)))
            if not 0 < length <= room:
                return None
            room = length
        return memoryview(self._pread(offset, room))


def check_pages(file: str) -> None:
    """Checks a data file before LMDB opens it, as far as that is quick (TREE_CHECK_*).

    LMDB trusts its pages: one flipped bit can crash the process or hand out pages that are in use.
    Raises FormatError.
    """
    check_file(file)
    deadline = time.monotonic() + TREE_CHECK_S
    with PageFile(file) as pages:
        problem = pages.first_problem(TREE_CHECK_PAGES_MAX, lambda: time.monotonic() > deadline)
    if problem is not None:
        raise FormatError(f"{file} is damaged ({problem}); run mpifs fsck")


def _meta_problems(metas: list[MetaPage | None]) -> list[str]:
    """What is wrong with the meta pages, and with the two together."""
    problems = []
    for slot, meta in enumerate(metas):
        if meta is None:
            problems.append(f"meta page {slot} is missing")
        else:
            problems += [f"meta page {slot} {sentence}" for sentence in meta.wrong]
    first, second = metas
    if first is None or second is None:
        return problems
    # A file that was just made has twice 0, a copy 0 and 1, each other one two neighbours.
    if abs(first.txn - second.txn) != 1 and (first.txn or second.txn):
        problems.append(f"the meta pages are of transactions {first.txn} and {second.txn}")
    return problems


def _tree_named(trees: list[tuple[bytes, Tree]], name: bytes) -> Tree | None:
    """The database of a name, else the only one whose name has one other byte."""
    found = [tree for key, tree in trees if key == name]
    if not found:
        found = [
            tree
            for key, tree in trees
            if abs(len(key) - len(name)) <= 1 and sum(map(int.__ne__, key, name)) <= 1
        ]
    return found[0] if len(found) == 1 else None
