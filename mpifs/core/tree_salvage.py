"""What can still be read of a tree of an LMDB file whose pages are damaged.

What a damaged page tells is core.page_salvage's; here, which pages belong to the tree.  A page
number is told once only.  If it is wrong, the page that was meant is one that nothing leads to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mpifs.core import tree_page
from mpifs.core.limits import CHUNK_BYTES_MAX
from mpifs.core.page_salvage import salvage_branch, salvage_leaf
from mpifs.core.tree_check import PageSet, TreeCheck
from mpifs.core.tree_page import NO_PAGE, Node, Order, PageError, Tree

Row = tuple[bytes, memoryview]
Range = tuple[bytes, "bytes | None"]

_MENDS_MAX = 64  # wrong page numbers looked after, 1 ms each: a cut file has thousands
VALUE_BYTES_MAX = 2 * CHUNK_BYTES_MAX  # nothing longer is stored in any database of mpifs


class _Place(NamedTuple):
    """A page to be read: keys from `low` to `high` belong there.

    The wide bounds are those if one of the two separators is wrong.
    """

    number: int
    low: bytes
    high: bytes | None
    wide_low: bytes
    wide_high: bytes | None
    level: int


class TreeRows:
    """Reads one tree; `lost` takes the ranges of keys in which rows may have been missed.

    `read(page, bytes)` gives bytes from a page on, or less.  Pages of `free` are not believed to
    be part of the tree.  A page number that leads nowhere is mended, if there is just one page
    that has one other byte in its number, has the keys that are missing, and that nothing in the
    file leads to, as `check` gives it, which is made when it is needed.  Without `free` nothing is
    mended: an old state of the page that was meant may be among the free ones.
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        page_bytes: int,
        last: int,
        free: PageSet | None = None,
        check: Callable[[], TreeCheck] | None = None,
    ) -> None:
        self._read = read
        self._page_bytes = page_bytes
        self._last = last
        self._free = free
        self._check = check
        self._seen = PageSet(last)
        self._mends = 0
        self._is_strict = True
        self.lost: list[Range] = []

    def rows(self, tree: Tree, kind: int, order: Order = tree_page.key_order) -> Iterator[Row]:
        """All rows that can be reached.  `kind` is the flag of the tree's short nodes."""
        depth, *counts = self._shape(tree.root)
        adds_up = counts == [tree.branch_pages, tree.leaf_pages, tree.entries]
        if adds_up:  # then all page numbers are right
            tree = tree._replace(depth=depth)
        self._is_strict = not adds_up
        stack = []
        if tree.root != NO_PAGE:
            stack.append(_Place(tree.root, b"", None, b"", None, 1))
        while stack:
            place = stack.pop()
            page = self._page(place)
            fits = page is not None and _fits(page, place, tree, kind, order)
            if fits and not adds_up and self._check is not None:
                fits = place.number not in self._check().shared
            if page is not None and not adds_up and page[:8] != place.number.to_bytes(8, "little"):
                self._lose(place.low, place.high)  # perhaps another page was written here
            below = None
            if page is not None and fits is not False:
                below = self._below(page, place, tree, kind, order)
            if below is None:
                mended = self._mended(place, tree, kind, order)
                if mended is None and not adds_up:
                    self._lose(place.low, place.high)
                place = mended or place
                page = self._page(place)
                below = None if page is None else self._below(page, place, tree, kind, order)
            if page is None or below is None:
                self._lose(place.low, place.high)
                continue
            self._seen.add(place.number)
            children, nodes = below
            stack += children
            for node in nodes:
                value = self._value(page, node)
                if value is None:
                    self._lose(order(node.key), order(node.key) + b"\0")
                else:
                    yield node.key, value

    def _shape(self, root: int) -> tuple[int, int, int, int]:
        """Depth, branch pages, leaves and records below a page, as the page headers tell."""
        branches = leaves = entries = depth = 0
        seen = PageSet(self._last)
        stack = [(root, 1)]
        while stack:
            number, level = stack.pop()
            if not 2 <= number <= self._last or not seen.add(number):
                continue
            page = self._read(number, self._page_bytes)
            if len(page) < self._page_bytes:
                continue
            depth = max(depth, level)
            if _is_branch(page, False):
                branches += 1
                children = salvage_branch(page, tree_page.key_order)
                stack += [(child, level + 1) for _, child in children]
            else:
                leaves += 1
                entries += (int.from_bytes(page[12:14], "little") - tree_page.HEADER_BYTES) >> 1
        return depth, branches, leaves, entries

    def _lose(self, low: bytes, high: bytes | None) -> None:
        if high is None or low < high:
            self.lost.append((low, high))

    def _page(self, place: _Place) -> bytes | None:
        """The page, unless it cannot be one of this tree."""
        number = place.number
        if not 2 <= number <= self._last or place.level > tree_page.DEPTH_MAX:
            return None
        if number in self._seen or (self._free is not None and number in self._free):
            return None
        page = self._read(number, self._page_bytes)
        return page if len(page) == self._page_bytes else None

    def _mended(self, place: _Place, tree: Tree, kind: int, order: Order) -> _Place | None:
        """The place with the number that was meant, if there is no doubt."""
        found = []
        for number in self._unclaimed_like(place.number):
            other = place._replace(number=number)
            page = self._page(other)
            if page is not None and _fits(page, other, tree, kind, order):
                found.append(other)
        if len(found) > 1 and place.level == 1:
            counts = (tree.branch_pages, tree.leaf_pages, tree.entries)
            found = [other for other in found if self._shape(other.number)[1:] == counts]
        return found[0] if len(found) == 1 else None

    def _unclaimed_like(self, number: int) -> Iterator[int]:
        """Pages that nothing leads to, and whose number has one other byte."""
        if self._check is not None and self._free is not None and self._mends < _MENDS_MAX:
            self._mends += 1
            check = self._check()
            for shift in range(0, 64, 8):
                for change in range(1, 256):
                    if check.is_unclaimed(number ^ change << shift):
                        yield number ^ change << shift

    def _below(
        self, page: bytes, place: _Place, tree: Tree, kind: int, order: Order
    ) -> tuple[list[_Place], list[Node]] | None:
        """Pages and records below a page; None if it does not belong here."""
        if _is_branch(page, place.level < tree.depth):
            children = self._children(page, place, order)
            return None if children is None else (children, [])
        nodes = self._nodes(page, place, kind, order)
        return None if nodes is None else ([], nodes)

    def _children(self, page: bytes, place: _Place, order: Order) -> list[_Place] | None:
        """The pages below, the first one last."""
        nodes: list[tuple[bytes | None, int]]
        try:
            nodes = list(zip(*tree_page.read_branch(page, place.number), strict=True))
        except PageError:
            nodes = salvage_branch(page, order)
        if not nodes:
            return None
        keys = [None if key is None else order(key) for key, _ in nodes[1:]]
        if self._is_strict and not _are_inside([key for key in keys if key is not None], place):
            return None
        good = _in_order(keys)
        lows: list[bytes] = [place.wide_low, place.low]
        highs: list[bytes | None] = [place.wide_high, place.high]
        highs += [key for key in reversed(good) if key is not None]
        children = []
        for (_, child), key in zip(nodes, [None, *good], strict=True):
            if key is not None:
                lows.append(key)
                highs.pop()
            bounds = (lows[-1], highs[-1], lows[-2], highs[-2])
            children.append(_Place(child, *bounds, place.level + 1))
        return children[::-1]

    def _nodes(self, page: bytes, place: _Place, kind: int, order: Order) -> list[Node] | None:
        """The records of a leaf; what is missing among them is noted as lost."""
        nodes: list[Node | None]
        try:
            if kind == tree_page.NODE_TREE:
                raise PageError  # its lengths fill the page and may be wrong nevertheless
            tree_page.read_leaf(page, place.number, kind)
            places = tree_page.node_places(page, place.number, tree_page.LEAF)
            nodes = [*tree_page.leaf_nodes(page, places)]
        except PageError:
            nodes = salvage_leaf(page, kind, order)
        keys = [None if node is None else order(node.key) for node in nodes]
        known = [key for key in keys if key is not None]
        if not known or (self._is_strict and not _are_inside(known, place)):
            return None
        high = place.high
        good = [
            key if key is not None and key >= place.low and (high is None or key < high) else None
            for key in _in_order(keys)
        ]
        if None in good:
            self._lose_gaps(good, place)
        return [node for node in nodes if node is not None]

    def _lose_gaps(self, keys: list[bytes | None], place: _Place) -> None:
        """Notes the ranges between known keys in which there are unknown ones."""
        low = place.low
        is_gap = False
        for key in keys:
            if key is None:
                is_gap = True
                continue
            if is_gap:
                self._lose(low, key)
            is_gap = False
            low = key + b"\0"
        if is_gap:
            self._lose(low, place.high)

    def _value(self, page: bytes, node: Node) -> memoryview | None:
        """The value, if it can be where the node says."""
        if not node.is_long:
            return memoryview(page)[node.value_at : node.value_at + node.value_bytes]
        number = node.value_at
        length = tree_page.HEADER_BYTES + node.value_bytes
        needed = (length - 1) // self._page_bytes + 1
        run = self._run_at(number)
        if run != needed:
            found = [n for n in self._unclaimed_like(number) if self._run_at(n) == needed]
            if len(found) == 1:
                number = found[0]
            elif run:
                length = min(length, run * self._page_bytes)
        if not 2 <= number <= self._last or length > VALUE_BYTES_MAX:
            return None
        data = self._read(number, length)
        return memoryview(data)[tree_page.HEADER_BYTES :] if len(data) == length else None

    def _run_at(self, number: int) -> int:
        """Pages of the long value that begins at a page; 0 if none does."""
        if not 2 <= number <= self._last:
            return 0
        try:
            return tree_page.long_run(self._read(number, tree_page.HEADER_BYTES), number)
        except PageError:
            return 0


def joined(ranges: list[Range]) -> list[Range]:
    """The same ranges in key order, none overlapping another."""
    result: list[Range] = []
    for low, high in sorted(ranges, key=lambda one: one[0]):
        if result:
            start, end = result[-1]
            if end is None or low <= end:
                result[-1] = (start, None if end is None or high is None else max(end, high))
                continue
        result.append((low, high))
    return result


def _is_branch(page: bytes, is_expected: bool) -> bool:
    """What a page says that it is; where it says neither, what it should be."""
    flags = int.from_bytes(page[10:12], "little")
    return flags == tree_page.BRANCH or (flags != tree_page.LEAF and is_expected)


def _fits(page: bytes, place: _Place, tree: Tree, kind: int, order: Order) -> bool | None:
    """Whether all keys of a page belong to the place; None if the page is damaged itself."""
    is_branch = place.level < tree.depth
    number, flags = int.from_bytes(page[:8], "little"), int.from_bytes(page[10:12], "little")
    if number == place.number and flags == (tree_page.LEAF if is_branch else tree_page.BRANCH):
        return False
    try:
        if is_branch:
            keys = tree_page.read_branch(page, place.number)[0][1:]
        else:
            keys = tree_page.read_leaf(page, place.number, kind)[0]
    except PageError:
        return None
    ordered = [order(key) for key in keys]
    if not tree_page.is_ordered(ordered):
        return None
    return place.low <= ordered[0] and (place.high is None or ordered[-1] < place.high)


def _are_inside(keys: list[bytes], place: _Place) -> bool:
    """Whether keys belong to a page, most of them at least."""
    low, high = place.wide_low, place.wide_high
    inside = sum(1 for key in keys if low <= key and (high is None or key < high))
    return inside * 2 >= len(keys)


def _in_order(keys: list[bytes | None]) -> list[bytes | None]:
    """The keys, None for each pair of neighbours that are not in order: one of them is wrong."""
    good = list(keys)
    last = -1
    for index, key in enumerate(keys):
        if key is None:
            continue
        before = keys[last] if last >= 0 else None
        if before is not None and before >= key:
            good[last] = good[index] = None
        last = index
    return good
