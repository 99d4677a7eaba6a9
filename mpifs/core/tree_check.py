"""Whether the pages of an LMDB snapshot fit together: each page, each tree, all of the file.

The strongest test is the sum: every page up to the last one is used exactly once, or is in the free
list exactly once.  So a wrong page number anywhere leaves one page over and one too often.
Memory: two bits per page of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from operator import gt

from mpifs.core import tree_page
from mpifs.core.tree_page import NO_PAGE, MetaPage, Node, Order, PageError, Tree

_BLOCK = 1 << 13  # bytes of a bitset compared at once
_LONG_PER_PAGE = 8  # the header of a long value costs 2 µs, a page of records 17
_SHARED_MAX = 10_000  # pages used twice that are remembered
_SHOWN = 8  # page numbers that a sentence names

FREE_LIST = "free list"
MAIN = "main tree"


class PageSet:
    """A set of page numbers 0 to `last`, one bit each."""

    def __init__(self, last: int) -> None:
        self._bits = bytearray((last >> 3) + 1)
        self._last = last

    def add(self, first: int, count: int = 1) -> bool:
        """Adds a run.  False, and nothing added, if one of it is in the set.

        Requires: the run ends at `last` at the latest.
        """
        bits = self._bits
        at = first >> 3
        shift = first & 7
        if count == 1:
            if bits[at] >> shift & 1:
                return False
            bits[at] |= 1 << shift
            return True
        end = at + ((shift + count + 7) >> 3)
        old = int.from_bytes(bits[at:end], "little")
        run = ((1 << count) - 1) << shift
        if old & run:
            return False
        bits[at:end] = (old | run).to_bytes(end - at, "little")
        return True

    def add_all(self, pages: list[int]) -> int:
        """Adds single pages.  Gives the first one that is in the set already, else 0.

        Requires: none is above `last`.
        """
        bits = self._bits
        for page in pages:
            at = page >> 3
            bit = 1 << (page & 7)
            if bits[at] & bit:
                return page
            bits[at] |= bit
        return 0

    def __contains__(self, page: int) -> bool:
        return bool(self._bits[page >> 3] >> (page & 7) & 1)

    def compare(self, other: PageSet) -> tuple[list[int], int, list[int], int]:
        """Pages in both sets and pages in none: the first ones of each, and how many."""
        both: list[int] = []
        none: list[int] = []
        both_count = none_count = 0
        for start in range(0, len(self._bits), _BLOCK):
            mine = self._bits[start : start + _BLOCK]
            ours = int.from_bytes(mine, "little")
            theirs = int.from_bytes(other._bits[start : start + _BLOCK], "little")
            width = min(len(mine) * 8, self._last + 1 - start * 8)
            shared = ours & theirs
            neither = ~(ours | theirs) & ((1 << width) - 1)
            if shared:
                both_count += shared.bit_count()
                both.extend(_first_bits(shared, start * 8, _SHOWN - len(both)))
            if neither:
                none_count += neither.bit_count()
                none.extend(_first_bits(neither, start * 8, _SHOWN - len(none)))
        return both, both_count, none, none_count


def _first_bits(bits: int, base: int, count: int) -> Iterator[int]:
    while bits and count > 0:
        low = bits & -bits
        yield base + low.bit_length() - 1
        bits ^= low
        count -= 1


def free_pages(data: bytes | memoryview, last_page: int) -> list[int]:
    """The page numbers of one record of the free list.  Raises PageError if it is damaged."""
    if len(data) < 8 or len(data) & 7:
        raise PageError("has a record of the free list of impossible length")
    count, *pages = memoryview(data).cast("Q")
    if count == len(pages):
        if pages and (pages[0] > last_page or pages[-1] < 2 or not all(map(gt, pages, pages[1:]))):
            raise PageError("has a damaged record of the free list")
        return pages
    if count or any(pages):
        raise PageError("has a record of the free list with a wrong count")
    return []  # room that the commit reserved and did not need


class _Counts:
    """What was found in one tree, to be compared with what its Tree says."""

    def __init__(self) -> None:
        self.branch = self.leaf = self.overflow = self.entries = 0
        self.is_whole = True


class _Depth(IntEnum):
    """How much of the trees is read."""

    BRANCHES = 0
    LEAVES = 1
    ALL = 2


class _OverError(Exception):
    """The time for a check is over."""


class TreeCheck:
    """One check of one snapshot.  `read(page, bytes)` gives bytes from a page on, or less.

    With `pages_max` a check that costs more than reading so many pages leaves out the headers of
    the long values, then the leaves too, and with them what needs all pages.
    """

    def __init__(
        self,
        meta: MetaPage,
        last: int,
        pages_there: int,
        page_bytes: int,
        read: Callable[[int, int], bytes],
        pages_max: int | None = None,
        is_over: Callable[[], bool] | None = None,
    ) -> None:
        """`last`: the last page that may be in use, at most the one that the meta names.

        `pages_there`: whole pages of the file.  It may end before the last page, if what is
        behind its end is free: LMDB does not write pages that the same transaction frees.
        """
        self._meta = meta
        self._page_bytes = page_bytes
        self._pages_there = pages_there
        self._read = read
        self._last = last
        self._pages_max = pages_max
        self._is_over = is_over
        self._depth = _Depth.ALL
        self._used = PageSet(self._last)
        self._used.add(0, 2)
        self._free = PageSet(self._last)
        self._newest_free = 0
        self._databases: dict[str, Tree] = {}
        self.shared: set[int] = set()
        """Pages to which more than one number leads."""

    def problems(self, expected: Sequence[str] = ()) -> Iterator[str]:
        """Sentences, none if the snapshot is whole.  `expected`: databases that must be there."""
        is_whole = True
        try:
            for problem in self._trees(expected):
                is_whole = False
                yield problem
        except _OverError:
            is_whole = False
        both, both_count, none, none_count = self._used.compare(self._free)
        if both:
            yield f"{_pages(both, both_count)} in use and in the free list"
        if (
            none and is_whole and self._depth == _Depth.ALL
        ):  # else it only repeats what hangs on the broken pages
            yield f"{_pages(none, none_count)} neither in use nor in the free list"

    def is_unclaimed(self, page: int) -> bool:
        """Whether nothing led to a page that exists.  Requires: `problems` read to the end."""
        return 2 <= page <= self._last and page not in self._used and page not in self._free

    def _trees(self, expected: Sequence[str]) -> Iterator[str]:
        yield from self._free_list()
        yield from self._tree(MAIN, self._meta.main, tree_page.NODE_TREE, tree_page.key_order)
        self._depth = self._affordable()
        for name, tree in self._databases.items():
            wrong = tree_page.wrong_tree(tree, 0, self._last)
            if tree.unused and not wrong:
                wrong = "has a damaged record"
            if wrong:
                yield f"database {name} {wrong}"
            else:
                yield from self._tree(name, tree, tree_page.NODE_PLAIN, tree_page.key_order)
        for name in expected:
            if name not in self._databases:
                yield f"database {name} is missing"

    def _free_list(self) -> Iterator[str]:
        meta = self._meta
        free = meta.free
        if self._pages_max is not None and free.leaf_pages + free.overflow_pages > self._pages_max:
            return
        yield from self._tree(FREE_LIST, free, tree_page.NODE_PLAIN, tree_page.number_order)
        if meta.txn > 1 and self._newest_free != meta.txn and free.root != NO_PAGE:
            yield (
                f"the newest record of the free list is of transaction {self._newest_free} "
                f"instead of {meta.txn}"
            )
        tail = range(self._pages_there, self._last + 1)
        missing = sum(1 for page in tail if page not in self._free)
        if missing:
            yield f"the file is cut: it lacks {missing} pages that are in use"

    def _affordable(self) -> _Depth:
        if self._pages_max is None:
            return _Depth.ALL
        trees = self._databases.values()
        pages = sum(tree.branch_pages + tree.leaf_pages for tree in trees)
        long = sum(min(tree.entries, tree.overflow_pages) for tree in trees)
        if pages + long // _LONG_PER_PAGE <= self._pages_max:
            return _Depth.ALL
        return _Depth.LEAVES if pages <= self._pages_max else _Depth.BRANCHES

    def _tree(self, name: str, tree: Tree, kind: int, order: Order) -> Iterator[str]:
        """Checks one tree; adds its pages to the set of used ones."""
        counts = _Counts()
        stack: list[tuple[int, bytes, bytes | None, int]] = []
        if tree.root != NO_PAGE:
            stack.append((tree.root, b"", None, 1))
        while stack:
            number, low, high, level = stack.pop()
            try:
                if self._is_over is not None and self._is_over():
                    raise _OverError
                if level == tree.depth and self._depth == _Depth.BRANCHES:
                    continue
                if not self._claim(number, 1):
                    counts.is_whole = False
                    continue
                page = self._read(number, self._page_bytes)
                if level < tree.depth:
                    counts.branch += 1
                    stack += self._branch(page, number, low, high, level, order)
                else:
                    counts.leaf += 1
                    yield from self._leaf(page, number, low, high, name, kind, order, counts)
            except PageError as error:
                counts.is_whole = False
                yield f"page {number} ({name}) {error}"
        if counts.is_whole and self._depth == _Depth.ALL:
            found = (counts.branch, counts.leaf, counts.overflow, counts.entries)
            told = (tree.branch_pages, tree.leaf_pages, tree.overflow_pages, tree.entries)
            if found != told:
                yield f"{name}: its pages and records are {found} and it counts {told}"

    def _claim(self, first: int, count: int) -> bool:
        """Notes pages as used; False if the file ends before them, which is told only once."""
        if first < 2 or first + count - 1 > self._last:
            raise PageError("does not exist")
        if not self._used.add(first, count):
            if len(self.shared) < _SHARED_MAX:
                self.shared.add(first)
            raise PageError("is used twice")
        return first + count <= self._pages_there

    def _branch(
        self, page: bytes, number: int, low: bytes, high: bytes | None, level: int, order: Order
    ) -> list[tuple[int, bytes, bytes | None, int]]:
        """The children, the first one last, each with the bounds of its keys."""
        keys, children = tree_page.read_branch(page, number)
        bounds: list[bytes | None] = [low, *map(order, keys[1:]), high]
        if not tree_page.is_ordered([key for key in bounds if key is not None]):
            raise PageError("has keys out of order")
        level += 1
        triples = zip(children, bounds, bounds[1:], strict=False)
        return [(child, lo or b"", hi, level) for child, lo, hi in triples][::-1]

    def _leaf(
        self,
        page: bytes,
        number: int,
        low: bytes,
        high: bytes | None,
        name: str,
        kind: int,
        order: Order,
        counts: _Counts,
    ) -> Iterator[str]:
        keys, long = tree_page.read_leaf(page, number, kind)
        counts.entries += len(keys)
        ordered = [order(key) for key in keys] if order is tree_page.number_order else keys
        if ordered[0] < low or (high is not None and ordered[-1] >= high):
            raise PageError("has a key that belongs on another page")
        if not tree_page.is_ordered(ordered):
            raise PageError("has keys out of order")
        for node in long if self._depth == _Depth.ALL else ():
            try:
                self._long_value(node, counts)
            except PageError as error:
                counts.is_whole = False
                yield f"page {node.value_at} (value in {name}, key {node.key.hex()}) {error}"
        if name == FREE_LIST or kind == tree_page.NODE_TREE:
            places = tree_page.node_places(page, number, tree_page.LEAF)
            for node in tree_page.leaf_nodes(page, places):
                self._inner_record(page, node, kind)

    def _long_value(self, node: Node, counts: _Counts) -> None:
        """Claims the pages of a long value."""
        first = node.value_at
        run = needed = (tree_page.HEADER_BYTES + node.value_bytes - 1) // self._page_bytes + 1
        if first < self._pages_there:
            run = tree_page.long_run(self._read(first, tree_page.HEADER_BYTES), first)
            if run < needed:
                raise PageError("is shorter than its value")
        if not self._claim(first, run):
            counts.is_whole = False
        counts.overflow += run

    def _inner_record(self, page: bytes, node: Node, kind: int) -> None:
        """A record of the free list or of the main tree."""
        if kind == tree_page.NODE_TREE:
            if node.is_long or node.value_bytes != tree_page.TREE_BYTES:
                raise PageError("has a record that is no database")
            tree = tree_page.decode_tree(page, node.value_at)
            self._databases[node.key.decode("utf-8", "backslashreplace")] = tree
            return
        if len(node.key) != 8:
            raise PageError("has a key of impossible length")
        self._newest_free = int.from_bytes(node.key, "little")
        twice = self._free.add_all(free_pages(self._value(page, node), self._last))
        if twice:
            raise PageError(f"names page {twice} once more as free")

    def _value(self, page: bytes, node: Node) -> bytes:
        if not node.is_long:
            return page[node.value_at : node.value_at + node.value_bytes]
        start = tree_page.HEADER_BYTES
        return self._read(node.value_at, start + node.value_bytes)[start:]


def _pages(numbers: list[int], count: int) -> str:
    """`page 7 is` or `pages 7, 9 and 3 more are`."""
    if count == 1:
        return f"page {numbers[0]} is"
    more = f" and {count - len(numbers)} more" if count > len(numbers) else ""
    return f"pages {', '.join(map(str, numbers))}{more} are"
