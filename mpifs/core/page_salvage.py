"""What can still be read of one damaged branch or leaf page of an LMDB file.

The places of a page's nodes are told twice, by the list at its beginning and by the nodes' own
lengths from `upper` to the end of the page.  Where the one does not add up, the other one does; so
one wrong byte costs at most the record it stands in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from mpifs.core import tree_page
from mpifs.core.tree_page import Node, Order

_NODE = struct.Struct("<IHH")


def salvage_leaf(page: bytes, kind: int, order: Order) -> list[Node | None]:
    """What can be read of a leaf, in key order; None stands for a record that is lost."""
    places, is_tiled = _find_places(page, lambda at: _leaf_end(page, at, kind), order)
    ends = _ends(places, len(page))
    nodes: list[Node | None] = []
    for at in places:
        if kind == tree_page.NODE_TREE:
            nodes.append(_tree_node(page, at, ends[at]))
        elif _leaf_end(page, at, kind) == ends[at]:
            nodes.append(tree_page.leaf_node(page, at)[0])
        else:
            nodes.append(None)
    if is_tiled:
        nodes.sort(key=lambda node: b"" if node is None else order(node.key))
    return nodes


def salvage_branch(page: bytes, order: Order) -> list[tuple[bytes | None, int]]:
    """Keys and children of a branch page, in key order; None: the key is lost."""
    places, is_tiled = _find_places(page, lambda at: _branch_end(page, at), order)
    ends = _ends(places, len(page))
    nodes: list[tuple[bytes | None, int]] = []
    for at in places:
        low, high, key_bytes = _NODE.unpack_from(page, at)
        key_at = at + tree_page.NODE_BYTES
        is_right = _branch_end(page, at) == ends[at]
        nodes.append((page[key_at : key_at + key_bytes] if is_right else None, low | high << 32))
    if is_tiled:
        nodes.sort(key=lambda node: order(node[0] or b""))
    return nodes


def _tree_node(page: bytes, at: int, end: int) -> Node | None:
    """The record of a database between two places.

    Its lengths are not believed, as a whole database is at stake: the name ends where what can be
    a Tree begins.
    """
    key_at = at + tree_page.NODE_BYTES
    space = end - key_at - tree_page.TREE_BYTES
    _, _, told = _NODE.unpack_from(page, at)
    sizes = [size for size in (told, space, space - 1) if size > 0 and size in (space, space - 1)]
    if not sizes:
        return None

    def is_sane(size: int) -> bool:
        tree = tree_page.decode_tree(page, key_at + size)
        return not tree.unused and not tree.flags and 0 < tree.depth <= tree_page.DEPTH_MAX

    size = next(filter(is_sane, sizes), sizes[0])
    if size != told and not is_sane(size):
        return None  # a record of another tree
    return Node(page[key_at : key_at + size], False, key_at + size, tree_page.TREE_BYTES)


def _leaf_end(page: bytes, at: int, kind: int) -> int:
    """Where the node at a place ends; 0 if there can be none."""
    try:
        node, end, flags = tree_page.leaf_node(page, at)
    except struct.error:
        return 0
    is_sane = flags in (kind, tree_page.NODE_LONG) and 0 < len(node.key) <= tree_page.KEY_BYTES_MAX
    return end if is_sane and end <= len(page) else 0


def _branch_end(page: bytes, at: int) -> int:
    """As _leaf_end, of a node of a branch page."""
    if at > len(page) - tree_page.NODE_BYTES:
        return 0
    (key_bytes,) = struct.unpack_from("<H", page, at + 6)
    end = at + tree_page.NODE_BYTES + key_bytes
    end += end & 1
    return end if key_bytes <= tree_page.KEY_BYTES_MAX and end <= len(page) else 0


def _find_places(page: bytes, end_of: Callable[[int], int], order: Order) -> tuple[list[int], bool]:
    """Places of the nodes: True, if they fill the page from `upper` on, and then in any order;
    else as the page lists them, those that can be right.
    """
    lower, at = struct.unpack_from("<HH", page, 12)
    tiled = []
    while tree_page.HEADER_BYTES < at < len(page):
        tiled.append(at)
        at = end_of(at)
    count = max(0, min(lower, len(page)) - tree_page.HEADER_BYTES) >> 1
    places = struct.unpack_from(f"<{count}H", page, tree_page.HEADER_BYTES)
    last = len(page) - tree_page.NODE_BYTES
    good = (at for at in places if tree_page.HEADER_BYTES < at <= last and not at & 1)
    listed = list(dict.fromkeys(good))
    if not tiled or at != len(page):
        return listed, False
    # Where the two differ, a listed node that ends where the next one begins is right: then a wrong
    # length has only by chance led to the end of the page.
    ends = _ends(listed, len(page))
    is_tiled = all(end_of(place) != ends[place] for place in set(listed) - set(tiled))
    if set(listed) > set(tiled):
        # Either `upper` is too great, or `lower` is and the list goes on with old entries.
        keys = [order(_key_at(page, place)) for place in listed[1:]]
        is_tiled = is_tiled or not tree_page.is_ordered(keys)
    return (tiled if is_tiled else listed), is_tiled


def _key_at(page: bytes, at: int) -> bytes:
    (size,) = struct.unpack_from("<H", page, at + 6)
    return page[at + tree_page.NODE_BYTES : at + tree_page.NODE_BYTES + size]


def _ends(places: list[int], end: int) -> dict[int, int]:
    """Where the node at each place must end: the next one begins there, or the page ends."""
    starts = sorted(places)
    return dict(zip(starts, [*starts[1:], end], strict=False))
