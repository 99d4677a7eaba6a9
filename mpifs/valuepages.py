"""Brings the pages of one value into memory before LMDB touches them: those and no others.

LMDB reads through a map.  A touch of a page that is not in memory makes the kernel read a window
around it, as large as the disk's read-ahead (8 MiB here, 128 KiB elsewhere): far too much for the
pages of the tree, and too much or too little for a value.  And py-lmdb touches all pages of a value
when it finds it.  Here the tree is walked with pread, page by page, and the value's pages are asked
for in one piece.

It is all a hint: the file may be damaged, and a commit may reuse pages meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from mpifs.core import tree_page
from mpifs.core.limits import BODY_BYTES_MAX
from mpifs.core.tree_page import (
    DEPTH_MAX,
    HEADER_BYTES,
    META_BYTES,
    NODE_PLAIN,
    NODE_TREE,
    Node,
    PageError,
    Tree,
    decode_tree,
)


def bring_in(path: str, database: str, key: bytes) -> None:
    """Has the kernel read what a search for `key` in a database of this data file touches.

    Waits for the pages of the tree and not for those of the value.  Never raises.
    """
    with contextlib.suppress(OSError, OverflowError, PageError, struct.error):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            _Search(fd).bring_in(database.encode(), key)
        finally:
            os.close(fd)


def place_of(fd: int, database: str, key: bytes) -> int | None:
    """Offset in an open data file at which the value of `key` begins, if it has pages of its own.

    None if it has none, or if the file cannot be understood.  A value stays in its place until it
    is replaced or deleted.
    """
    with contextlib.suppress(OSError, OverflowError, PageError, struct.error):
        return _Search(fd).place_of(database.encode(), key)
    return None


def places_from(fd: int, database: str, key: bytes) -> dict[bytes, int]:
    """As place_of, of `key` and of the keys that follow it in its leaf of the tree, some dozens;
    also of values that stand in the leaf itself, which any commit may move.

    Does not wait for a disk: what is not in memory is not found.
    """
    with contextlib.suppress(OSError, OverflowError, PageError, struct.error):
        return _Search(fd, os.RWF_NOWAIT).places_from(database.encode(), key)
    return {}


class _Keys(Sequence[bytes]):
    """The keys of a branch or leaf page, decoded one by one: a search needs few of them."""

    def __init__(self, page: bytes, places: tuple[int, ...]) -> None:
        self._page = page
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        return tree_page.key_of(self._page, self._places[index])


class _Search:
    """The newest state of an open data file, read with `flags` of preadv2(2).

    Raises PageError where a page cannot be right.
    """

    def __init__(self, fd: int, flags: int = 0) -> None:
        self._fd = fd
        self._flags = flags
        head = self._pread(2 * tree_page.PAGE_SIZES[0], 0)
        self._page_bytes = tree_page.guess_page_bytes(head)
        metas = []
        for slot in (0, 1):
            page = self._pread(META_BYTES, slot * self._page_bytes)
            if len(page) == META_BYTES:
                metas.append(tree_page.decode_meta(page, slot, self._page_bytes))
        if not metas:
            raise PageError("is not there")
        self._main = max(metas, key=lambda meta: meta.txn).main

    def bring_in(self, database: bytes, key: bytes) -> None:
        """See above."""
        node = self._value(database, key)
        if node is not None:
            start = node.value_at * self._page_bytes
            length = HEADER_BYTES + min(node.value_bytes, BODY_BYTES_MAX)
            os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_WILLNEED)

    def place_of(self, database: bytes, key: bytes) -> int | None:
        """See above."""
        node = self._value(database, key)
        return None if node is None else node.value_at * self._page_bytes + HEADER_BYTES

    def places_from(self, database: bytes, key: bytes) -> dict[bytes, int]:
        """See above."""
        tree = self._tree(database)
        if tree is None:
            return {}
        page, number = self._leaf(tree, key)
        places = tree_page.node_places(page, number, tree_page.LEAF)
        found = {}
        for at in places[bisect_left(_Keys(page, places), key) :]:
            node, _, _ = tree_page.leaf_node(page, at)
            if node.is_long:
                found[node.key] = node.value_at * self._page_bytes + HEADER_BYTES
            else:
                found[node.key] = number * self._page_bytes + node.value_at
        return found

    def _value(self, database: bytes, key: bytes) -> Node | None:
        """The node of a value that has pages of its own."""
        tree = self._tree(database)
        node = None if tree is None else self._find(tree, key, NODE_PLAIN)[1]
        return node if node is not None and node.is_long else None

    def _tree(self, database: bytes) -> Tree | None:
        page, node = self._find(self._main, database, NODE_TREE)
        return None if node is None or node.is_long else decode_tree(page, node.value_at)

    def _find(self, tree: Tree, key: bytes, kind: int) -> tuple[bytes, Node | None]:
        """The leaf in which a key belongs, and its node there."""
        page, number = self._leaf(tree, key)
        keys, _long = tree_page.read_leaf(page, number, kind)
        place = bisect_left(keys, key)
        if place == len(keys) or keys[place] != key:
            return page, None
        places = tree_page.node_places(page, number, tree_page.LEAF)
        return page, tree_page.leaf_node(page, places[place])[0]

    def _leaf(self, tree: Tree, key: bytes) -> tuple[bytes, int]:
        """The leaf in which a key belongs, and its number."""
        number = tree.root
        for _ in range(min(tree.depth, DEPTH_MAX) - 1):
            page = self._read(number)
            places = tree_page.node_places(page, number, tree_page.BRANCH)
            keys = _Keys(page, places)
            at = places[bisect_right(keys, key, 1) - 1]  # the first key is meaningless
            number = tree_page.child_of(page, at)
        return self._read(number), number

    def _read(self, number: int) -> bytes:
        return self._pread(self._page_bytes, number * self._page_bytes)

    def _pread(self, size: int, offset: int) -> bytes:
        page = bytearray(size)
        found = os.preadv(self._fd, [page], offset, self._flags)
        return bytes(page[:found])
