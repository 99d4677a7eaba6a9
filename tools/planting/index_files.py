"""Faults of the index as a whole: its folder, its file, its pages, and its copies on the stores."""

from __future__ import annotations

import os
import shutil

from mpifs.core import records
from mpifs.core.image import IMAGE_HEADER_BYTES, decode_key
from mpifs.core.superblock import SUPERBLOCK_BYTES, SUPERBLOCK_NAME

from .kinds import Stage, kind
from .mapped import PAGE_BYTES, Spot
from .planted import ELSEWHERE, WRONG, Place, Planted
from .rows import key_flip, row_spots
from .stores import flip_page_bit
from .volume import RestingVolume

COPY = "copy"


def _whole(volume: RestingVolume, name: str, *, is_lost: bool) -> Planted:
    """The index cannot be opened, so that a verify run cannot say more (but it may)."""
    volume.unsure.update(volume.refs)
    loose = tuple(volume.inodes) if is_lost else ()
    return Planted(name, (ELSEWHERE,), (ELSEWHERE,), loose=loose, hides=True)


@kind("index-removed", "index", Stage.FILES)
def remove(volume: RestingVolume) -> Planted:
    """The index's folder is gone."""
    shutil.rmtree(volume.index_folder)
    return _whole(volume, "index-removed", is_lost=True)


@kind("index-file-lost", "index", Stage.FILES)
def lose_file(volume: RestingVolume) -> Planted:
    """The index's data file is missing, empty, or nothing but zeros."""
    path = os.path.join(volume.index_folder, "data.mdb")
    size = os.path.getsize(path)
    what = volume.random.randrange(3)
    os.unlink(path)
    if what:
        with open(path, "wb") as file:
            file.truncate(size if what == 2 else 0)
    return _whole(volume, "index-file-lost", is_lost=True)


@kind("index-truncated", "index", Stage.FILES)
def truncate(volume: RestingVolume) -> Planted:
    """The index's data file ends among its rows."""
    with volume.index() as environment:
        used = environment.used_bytes()
    least = 3 * PAGE_BYTES
    size = volume.random.randrange(least, used // 2)  # behind it may be free pages only.
    os.truncate(os.path.join(volume.index_folder, "data.mdb"), size)
    return _whole(volume, "index-truncated", is_lost=True)


@kind("index-superblock-bit", "index", Stage.FILES)
def flip_superblock(volume: RestingVolume) -> Planted:
    """One bit of the index's superblock."""
    path = os.path.join(volume.index_folder, SUPERBLOCK_NAME)
    Spot(path, 0, SUPERBLOCK_BYTES).flip(volume.random.randrange(8 * SUPERBLOCK_BYTES))
    return _whole(volume, "index-superblock-bit", is_lost=False)


@kind("index-superblock-lost", "index", Stage.FILES)
def lose_superblock(volume: RestingVolume) -> Planted:
    """The index's superblock is gone."""
    os.unlink(os.path.join(volume.index_folder, SUPERBLOCK_NAME))
    return _whole(volume, "index-superblock-lost", is_lost=False)


@kind("index-page-bit", "index", Stage.FILES)
def damage_page(volume: RestingVolume) -> Planted:
    """One bit in the head or the pointers of a page of the index's tree."""
    flip_page_bit(volume, _some_key(volume))
    return _whole(volume, "index-page-bit", is_lost=True)


@kind("index-page-zero", "index", Stage.FILES)
def clear_page(volume: RestingVolume) -> Planted:
    """A page of the index's rows is nothing but zeros."""
    spot = _some_key(volume)
    with open(spot.path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), bytes(PAGE_BYTES), spot.page * PAGE_BYTES)
    return _whole(volume, "index-page-zero", is_lost=True)


@kind("index-key-order", "index", Stage.FILES)
def disorder_key(volume: RestingVolume) -> Planted:
    """One bit of a key, such that the order of the keys is broken."""
    places = sorted(volume.refs)
    volume.random.shuffle(places)
    for place in places:
        key = records.ref_key(*place)
        with volume.index() as environment:
            found = key_flip(environment, records.REFS, key, volume.random, keeps_order=False)
        if found:
            found[0].flip(found[1])
            return _whole(volume, "index-key-order", is_lost=True)
    raise AssertionError("no key can be brought out of order")


def _some_key(volume: RestingVolume) -> Spot:
    database = volume.random.choice((records.INODES, records.DENTRIES, records.REFS))
    with volume.index() as environment:
        with environment.read() as rows:
            keys = [bytes(key) for key in rows.scan_keys(database)]
        return row_spots(environment, database, volume.choose(keys))[0]


def copy_holders(volume: RestingVolume) -> dict[int, list[bytes]]:
    """Stores that hold copies of the index, and the keys of their pieces."""
    found = {}
    for worker in volume.workers:
        if os.path.exists(os.path.join(volume.store_folder(worker), COPY, "data.mdb")):
            with volume.side(worker, COPY) as environment, environment.read() as rows:
                keys = [bytes(key) for key in rows.scan_keys("chunks")]
            if keys:
                found[worker] = keys
    return found


def _of_copy(worker: int) -> Place:
    return Place(frozenset((None, 0)), worker=worker, severities=WRONG)


@kind("copy-bit", "copy", Stage.BITS)
def flip_copy(volume: RestingVolume) -> Planted:
    """One bit in a piece of a copy of the index."""
    worker, keys = volume.choose(sorted(copy_holders(volume).items()))
    with volume.side(worker, COPY) as environment:
        spot = row_spots(environment, "chunks", volume.choose(_newest(keys)))[1]
    spot.flip(8 * IMAGE_HEADER_BYTES + volume.random.randrange(8 * 64))
    return Planted("copy-bit", (_of_copy(worker),), (_of_copy(worker),))


@kind("copy-piece-lost", "copy", Stage.ROWS)
def lose_piece(volume: RestingVolume) -> Planted:
    """A piece of a copy of the index is gone."""
    worker, keys = volume.choose(sorted(copy_holders(volume).items()))
    key = volume.choose([key for key in _newest(keys) if decode_key(key).chunk])
    with volume.side(worker, COPY) as environment, environment.write() as rows:
        rows.delete("chunks", key)
        rows.delete("headers", key)
    return Planted("copy-piece-lost", (_of_copy(worker),), (_of_copy(worker),))


def _newest(keys: list[bytes]) -> list[bytes]:
    newest = max(decode_key(key).generation for key in keys)
    return [key for key in keys if decode_key(key).generation == newest]


def remove_copies(volume: RestingVolume) -> None:
    """Takes all copies of the index away: what a volume is that was never unmounted cleanly."""
    for worker in copy_holders(volume):
        with volume.side(worker, COPY) as environment, environment.write() as rows:
            for key in [bytes(key) for key in rows.scan_keys("chunks")]:
                rows.delete("chunks", key)
                rows.delete("headers", key)
