"""Rows of LMDB databases as places in files: their spots, and bits of keys that may change."""

from __future__ import annotations

import os
import random

from mpifs.kv import Environment

from .mapped import Spot, spot_of


def row_spots(environment: Environment, database: str, key: bytes) -> tuple[Spot, Spot]:
    """Where key and value of a row lie in the data file.  Requires: the row is there."""
    path = os.path.join(environment.path, "data.mdb")
    with environment.read() as transaction:
        for found, value in transaction.scan(database, key):
            assert bytes(found) == key, f"{database} has no {key.hex()}"
            return spot_of(found, path), spot_of(value, path)
    raise AssertionError(f"{database} has no {key.hex()}")


def key_flip(
    environment: Environment,
    database: str,
    key: bytes,
    chance: random.Random,
    *,
    keeps_order: bool = True,
) -> tuple[Spot, int, bytes] | None:
    """A bit of a stored key to flip: its spot, the bit and the key as it will be; None: no bit.

    The new key is nobody's.  With `keeps_order` it also stands between its neighbours in the same
    page, so that the tree stays whole; else it does not.
    """
    path = os.path.join(environment.path, "data.mdb")
    with environment.read() as transaction:
        rows = [(bytes(found), spot_of(found, path)) for found, _ in transaction.scan(database)]
    keys = [found for found, _ in rows]
    at = keys.index(key)
    spot = rows[at][1]
    left = keys[at - 1] if at > 0 and rows[at - 1][1].page == spot.page else None
    right = keys[at + 1] if at + 1 < len(rows) and rows[at + 1][1].page == spot.page else None
    bits = list(range(8 * len(key)))
    chance.shuffle(bits)
    for bit in bits:
        changed = bytearray(key)
        changed[bit // 8] ^= 1 << bit % 8
        new = bytes(changed)
        if new in keys:
            continue
        if keeps_order:
            is_wanted = _stands_between(
                new, key, left, right, is_first=at == 0, is_last=at + 1 == len(rows)
            )
        else:
            is_wanted = bool((left and new < left) or (right and new > right))
        if is_wanted:
            return spot, bit, new
    return None


def _stands_between(
    new: bytes,
    key: bytes,
    left: bytes | None,
    right: bytes | None,
    *,
    is_first: bool,
    is_last: bool,
) -> bool:
    """Whether a changed key keeps its place; at the edge of a page it may only move inwards,
    because the separators in the page above count there, unless it is the edge of all."""
    if new < key:
        return is_first or (left is not None and left < new)
    return is_last or (right is not None and new < right)
