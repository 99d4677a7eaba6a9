"""Pages of an LMDB 0.9 data file, decoded from their bytes alone.

A file is a row of pages.  Pages 0 and 1 are the two metas, written in turn by the commits; the
newer one names the roots of two trees, the free list and the main one, whose records are the roots
of the named databases.  Branch and leaf pages begin with 16 bytes (number, unused, flags, lower,
upper), then come the places of their nodes, in key order, up to `lower`; the nodes fill the page
from `upper` to its end without a gap.  That there is no gap is what finds most flipped bytes.
A value that does not fit stands in a run of pages of its own, behind one such header.

Nothing here trusts a byte: wrong ones raise PageError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import lt
from typing import NamedTuple, TypeAlias

Order: TypeAlias = "Callable[[bytes], bytes]"
"""From a key to bytes that sort as LMDB sorts the keys of the tree."""

BRANCH = 1
LEAF = 2
OVERFLOW = 4
META = 8
KINDS = {BRANCH: "branch page", LEAF: "leaf page", OVERFLOW: "value page", META: "meta page"}
NODE_PLAIN = 0
NODE_LONG = 1  # the node's value is the number of the first page of the value
NODE_TREE = 2  # its value is a Tree: a named database
NO_PAGE = 2**64 - 1
HEADER_BYTES = 16
NODE_BYTES = 8
KEY_BYTES_MAX = 511
DEPTH_MAX = 32  # CURSOR_STACK of LMDB
PAGE_SIZES = tuple(1 << bits for bits in (12, 9, 10, 11, 13, 14, 15, 16))
FREE_LIST_FLAGS = 8  # its keys are numbers of this machine

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_HEADER = struct.Struct("<QHHHH")
_LONG_HEADER = struct.Struct("<QHHI")
_NODE = struct.Struct("<IHH")
_NUMBER = struct.Struct("<Q")
_TREE = struct.Struct("<IHHQQQQQ")
TREE_BYTES = _TREE.size
_META_HEAD = struct.Struct("<IIQQ")
_META_TAIL = struct.Struct("<QQ")
META_BYTES = HEADER_BYTES + _META_HEAD.size + 2 * TREE_BYTES + _META_TAIL.size


def key_order(key: bytes) -> bytes:
    """Order of all trees but the free list."""
    return key


def number_order(key: bytes) -> bytes:
    """Order of the free list, whose keys are little-endian numbers."""
    return key[::-1]


class PageError(Exception):
    """What is wrong with a page, as the end of a sentence that begins with its number."""


class Tree(NamedTuple):
    """Where a database begins and what it counts (MDB_db).  `unused`: the free list's page size."""

    unused: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class Node(NamedTuple):
    """One record of a leaf: its value in the page, or long: its bytes from page `value_at` on."""

    key: bytes
    is_long: bool
    value_at: int
    value_bytes: int


@dataclass(frozen=True, slots=True)
class MetaPage:
    """What a meta page says.

    `wrong` are sentences about it; it `is_meta` nevertheless, if just one byte of it can be wrong.
    """

    slot: int
    map_bytes: int
    free: Tree
    main: Tree
    last_page: int
    txn: int
    wrong: tuple[str, ...]
    is_meta: bool


def decode_tree(data: bytes, offset: int = 0) -> Tree:
    """The Tree at `offset`.  Requires: TREE_BYTES there."""
    return Tree(*_TREE.unpack_from(data, offset))


def wrong_tree(tree: Tree, flags: int, last_page: int) -> str:
    """What is impossible in a tree of a file with this last page; empty if nothing."""
    if tree.flags != flags:
        return f"is of an unknown kind ({tree.flags:#x})"
    if tree.branch_pages + tree.leaf_pages + tree.overflow_pages > last_page:
        return "counts more pages than there are"
    if tree.root == NO_PAGE:
        return "has no root and yet counts something" if any(tree[2:7]) else ""
    if not 2 <= tree.root <= last_page:
        return f"begins at page {tree.root}, which does not exist"
    if not 1 <= tree.depth <= DEPTH_MAX or not tree.entries:
        return "has an impossible depth or no entry"
    return ""


def guess_page_bytes(head: bytes) -> int:
    """The size of a file's pages, from its first bytes; right if one byte of them is wrong."""

    def score(size: int) -> int:
        points = 0
        for at in (0, size):
            if len(head) >= at + META_BYTES:
                magic, version, _, _ = _META_HEAD.unpack_from(head, at + HEADER_BYTES)
                named = decode_tree(head, at + HEADER_BYTES + _META_HEAD.size).unused
                points += (magic == _MAGIC) + (version == _VERSION) + (named == size)
        return points

    return max(PAGE_SIZES, key=score)


def decode_meta(page: bytes, slot: int, page_bytes: int) -> MetaPage:
    """Meta page `slot` of a file with pages of `page_bytes`.  Requires: META_BYTES."""
    number, _, flags, _, _ = _HEADER.unpack_from(page)
    magic, version, address, map_bytes = _META_HEAD.unpack_from(page, HEADER_BYTES)
    at = HEADER_BYTES + _META_HEAD.size
    free = decode_tree(page, at)
    main = decode_tree(page, at + TREE_BYTES)
    last_page, txn = _META_TAIL.unpack_from(page, at + 2 * TREE_BYTES)
    wrong = []
    is_header = number == slot and flags == META
    is_begin = magic == _MAGIC and version == _VERSION
    if not is_header:
        wrong.append("has a damaged header")
    if not is_begin:
        wrong.append("does not begin as one of LMDB 0.9")
    if address:
        wrong.append("names an address")
    if free.unused != page_bytes:
        wrong.append(f"names pages of {free.unused} bytes instead of {page_bytes}")
    if main.unused:
        wrong.append("has a damaged main tree")
    if txn & 1 != slot and txn:
        wrong.append(f"stands in the wrong place for transaction {txn}")
    if last_page < 1 or map_bytes < (last_page + 1) * page_bytes:
        wrong.append(f"names an impossible last page ({last_page})")
    for name, tree, kind in (("free list", free, FREE_LIST_FLAGS), ("main tree", main, 0)):
        sentence = wrong_tree(tree, kind, last_page)
        if sentence:
            wrong.append(f"has a {name} that {sentence}")
    is_meta = is_header + is_begin + (free.unused == page_bytes) > 1
    return MetaPage(slot, map_bytes, free, main, last_page, txn, tuple(wrong), is_meta)


def long_run(header: bytes, number: int) -> int:
    """Pages of the long value whose first page has this number and header.  Raises PageError."""
    if len(header) < HEADER_BYTES:
        raise PageError("is behind the end of the file")
    found, _, flags, pages = _LONG_HEADER.unpack_from(header)
    if found != number:
        raise PageError(f"says that it is page {found}")
    if flags != OVERFLOW or not pages:
        raise PageError("is not the first page of a long value")
    return int(pages)


def node_places(page: bytes, number: int, kind: int) -> tuple[int, ...]:
    """Places of the nodes of a branch or leaf page, in key order.  Raises PageError."""
    if len(page) < HEADER_BYTES:
        raise PageError("is behind the end of the file")
    found, _, flags, lower, upper = _HEADER.unpack_from(page)
    if found != number:
        raise PageError(f"says that it is page {found}")
    if flags != kind:
        raise PageError(f"is no {KINDS[kind]}")
    if lower & 1 or not HEADER_BYTES < lower <= upper <= len(page):
        raise PageError("has an impossible number of records")
    return struct.unpack_from(f"<{(lower - HEADER_BYTES) >> 1}H", page, HEADER_BYTES)


def _check_places(page: bytes, places: tuple[int, ...], ends: list[int]) -> None:
    """Whether the nodes fill the page from `upper` to its end, each byte once."""
    starts = sorted(places)
    ends.sort()
    (upper,) = struct.unpack_from("<H", page, 14)
    if starts[0] != upper or starts[1:] != ends[:-1] or ends[-1] != len(page):
        raise PageError("has records that overlap or leave a gap")


def read_leaf(page: bytes, number: int, kind: int) -> tuple[list[bytes], list[Node]]:
    """Keys of a leaf in their order, and its long nodes.  `kind` is the flag of short nodes.

    Raises PageError if a byte of the page's structure cannot be right.
    """
    places = node_places(page, number, LEAF)
    keys = []
    ends = []
    long = []
    unpack = _NODE.unpack_from
    try:
        for at in places:
            value_bytes, flags, key_bytes = unpack(page, at)
            at += 8
            end = at + key_bytes
            key = page[at:end]
            keys.append(key)
            if flags == kind:
                end += value_bytes
            elif flags == NODE_LONG and kind == NODE_PLAIN:
                long.append(Node(key, True, _NUMBER.unpack_from(page, end)[0], value_bytes))
                end += 8
            else:
                raise PageError("has a record of an unknown kind")
            ends.append(end + (end & 1))
    except struct.error:
        raise PageError("has a record outside of it") from None
    _check_places(page, places, ends)
    if not all(keys) or max(map(len, keys)) > KEY_BYTES_MAX:
        raise PageError("has a key of impossible length")
    return keys, long


def read_branch(page: bytes, number: int) -> tuple[list[bytes], list[int]]:
    """Keys and children of a branch page; the first key is meaningless and given empty.

    Raises PageError.
    """
    places = node_places(page, number, BRANCH)
    keys = []
    ends = []
    children = []
    unpack = _NODE.unpack_from
    try:
        for at in places:
            low, high, key_bytes = unpack(page, at)
            at += 8
            end = at + key_bytes
            keys.append(page[at:end])
            children.append(low | high << 32)
            ends.append(end + (end & 1))
    except struct.error:
        raise PageError("has a record outside of it") from None
    _check_places(page, places, ends)
    keys[0] = b""
    if len(keys) < 2 or not all(keys[1:]) or max(map(len, keys)) > KEY_BYTES_MAX:
        raise PageError("has too few keys or one of impossible length")
    return keys, children


def key_of(page: bytes, at: int) -> bytes:
    """The key of the node at a place of a branch or leaf.  Raises struct.error outside the page."""
    _, _, key_bytes = _NODE.unpack_from(page, at)
    return page[at + NODE_BYTES : at + NODE_BYTES + key_bytes]


def child_of(page: bytes, at: int) -> int:
    """The child of the node at a place of a branch.  Raises struct.error outside the page."""
    low, high, _ = _NODE.unpack_from(page, at)
    return int(low | high << 32)


def is_ordered(keys: list[bytes]) -> bool:
    """Whether each key is greater than the one before."""
    return all(map(lt, keys, keys[1:]))


def leaf_nodes(page: bytes, places: tuple[int, ...]) -> list[Node]:
    """The nodes of a leaf that read_leaf has accepted."""
    return [leaf_node(page, at)[0] for at in places]


def leaf_node(page: bytes, at: int) -> tuple[Node, int, int]:
    """The node at a place, where it ends, and its flags.  Raises struct.error outside the page."""
    value_bytes, flags, key_bytes = _NODE.unpack_from(page, at)
    key_end = at + NODE_BYTES + key_bytes
    key = page[at + NODE_BYTES : key_end]
    if flags == NODE_LONG:
        node = Node(key, True, _NUMBER.unpack_from(page, key_end)[0], value_bytes)
        end = key_end + 8
    else:
        node = Node(key, False, key_end, value_bytes)
        end = key_end + value_bytes
    return node, end + (end & 1), flags
