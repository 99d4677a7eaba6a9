"""Faults of whole stores and of their files."""

from __future__ import annotations

import os
import shutil

from mpifs.core.image import IMAGE_HEADER_BYTES
from mpifs.core.superblock import SUPERBLOCK_BYTES, SUPERBLOCK_NAME
from mpifs.store.chunks import ChunkStore

from .kinds import Stage, kind
from .mapped import PAGE_BYTES, Spot
from .planted import SPOILED, WRONG, Place, Planted
from .rows import key_flip, row_spots
from .volume import Copy, RestingVolume


def of_store(worker: int) -> Place:
    """A finding about a store as such."""
    return Place(inode=None, chunk=None, worker=worker, severities=WRONG)


def of_any_chunk(worker: int) -> Place:
    """A finding about anything that a store has, or about the store."""
    return Place(worker=worker, severities=WRONG)


def take_store(volume: RestingVolume) -> int:
    """One of the reserved stores; a verify run may not reach what it holds."""
    worker = volume.reserved[volume.stores_taken]
    volume.stores_taken += 1
    volume.unsure.update((copy.ino, copy.chunk) for copy in held(volume, worker))
    return worker


def held(volume: RestingVolume, worker: int, side: str = "") -> list[Copy]:
    """All copies on a store, or in one of its environments."""
    return [c for c in volume.copies() if c.worker == worker and side in ("", c.side)]


def missing(volume: RestingVolume, copies: list[Copy]) -> tuple[Place, ...]:
    """Spoils copies; where each has its finding, if nothing else was done to it."""
    for copy in copies:
        volume.spoil(copy)
    return _findings_of(volume, copies)


def _findings_of(volume: RestingVolume, copies: list[Copy]) -> tuple[Place, ...]:
    return tuple(
        Place(copy.ino, copy.chunk, copy.worker, volume.paths(copy.ino), SPOILED)
        for copy in copies
        if volume.is_free(copy)
    )


def _spoil_store(volume: RestingVolume, worker: int, name: str) -> Planted:
    """All copies of a store are gone: a finding for the store, and one for each of its chunks."""
    chunks = missing(volume, held(volume, worker))
    return Planted(name, (of_store(worker), *chunks), (of_any_chunk(worker),))


def let_go(volume: RestingVolume, planted: Planted) -> bool:
    """What a user does who knows that a store's disk is lost for good: puts an empty folder in its
    place.  False if the fault is none of that."""
    worker = planted.must[0].worker
    if planted.kind not in ("store-removed", "store-foreign") or not isinstance(worker, int):
        return False
    shutil.rmtree(volume.store_folder(worker), ignore_errors=True)
    os.mkdir(volume.store_folder(worker), 0o700)
    return True


@kind("store-removed", "store", Stage.FILES, stores=1)
def remove(volume: RestingVolume) -> Planted:
    """A store's folder is not there (its disk is not mounted, or gone)."""
    worker = take_store(volume)
    shutil.rmtree(volume.store_folder(worker))
    return _spoil_store(volume, worker, "store-removed")


@kind("store-emptied", "store", Stage.FILES, stores=1)
def empty(volume: RestingVolume) -> Planted:
    """A store's folder is there and has nothing in it."""
    worker = take_store(volume)
    _empty(volume.store_folder(worker))
    return _spoil_store(volume, worker, "store-emptied")


def _empty(folder: str) -> None:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


@kind("store-exchanged", "store", Stage.FILES, stores=2)
def exchange(volume: RestingVolume) -> Planted:
    """Two stores' folders have each other's names."""
    first = take_store(volume)
    second = take_store(volume)
    one, other = volume.store_folder(first), volume.store_folder(second)
    os.rename(one, one + ".x")
    os.rename(other, one)
    os.rename(one + ".x", other)
    return Planted(
        "store-exchanged",
        (of_store(first), of_store(second)),
        (of_any_chunk(first), of_any_chunk(second)),
    )


@kind("store-foreign", "store", Stage.FILES, stores=1)
def replace_by_foreign(volume: RestingVolume) -> Planted:
    """In a store's place stands one of another volume; the right one is gone."""
    worker = take_store(volume)
    folder = volume.store_folder(worker)
    shutil.rmtree(folder)
    ChunkStore.open(
        folder,
        volume_uuid=volume.payload(16),
        store_uuid=volume.payload(16),
        store=worker,
        chunk_size=volume.geometry.chunk_size,
        checksum=volume.geometry.checksum,
        create=True,
    ).close()
    return _spoil_store(volume, worker, "store-foreign")


@kind("store-superblock-bit", "store", Stage.FILES, stores=1)
def flip_superblock(volume: RestingVolume) -> Planted:
    """One bit of a store's superblock."""
    worker = take_store(volume)
    path = os.path.join(volume.store_folder(worker), SUPERBLOCK_NAME)
    Spot(path, 0, SUPERBLOCK_BYTES).flip(volume.random.randrange(8 * SUPERBLOCK_BYTES))
    return Planted("store-superblock-bit", (of_store(worker),), (of_any_chunk(worker),))


@kind("store-superblock-lost", "store", Stage.FILES, stores=1)
def destroy_superblock(volume: RestingVolume) -> Planted:
    """A store's superblock is missing, empty or nothing but zeros."""
    worker = take_store(volume)
    path = os.path.join(volume.store_folder(worker), SUPERBLOCK_NAME)
    content = volume.random.choice((None, b"", bytes(SUPERBLOCK_BYTES)))
    os.unlink(path)
    if content is not None:
        with open(path, "wb") as file:
            file.write(content)
    return Planted("store-superblock-lost", (of_store(worker),), (of_any_chunk(worker),))


@kind("store-truncated", "store", Stage.FILES, stores=1)
def truncate(volume: RestingVolume) -> Planted:
    """The file of the long chunks ends in the middle; what lies before is still there."""
    worker, name = take_store(volume), volume.random.choice(("small", "large"))
    spots = _value_spots(volume, worker, name)
    path = os.path.join(volume.store_folder(worker), name, "data.mdb")
    ends = sorted(spot.end for spot in spots.values())
    size = ends[len(ends) // 2] // PAGE_BYTES * PAGE_BYTES + volume.random.randrange(PAGE_BYTES)
    os.truncate(path, size)
    cut = [c for c, s in spots.items() if s.offset + IMAGE_HEADER_BYTES + c.ref.length > size]
    volume.shaky.update((copy.ino, copy.chunk, copy.worker) for copy in cut)
    must = (of_store(worker), *_findings_of(volume, cut))
    return Planted("store-truncated", must, (of_any_chunk(worker),))


@kind("store-file-lost", "store", Stage.FILES, stores=1)
def lose_file(volume: RestingVolume) -> Planted:
    """One of a store's data files is missing or empty."""
    worker, name = take_store(volume), volume.random.choice(("small", "large"))
    path = os.path.join(volume.store_folder(worker), name, "data.mdb")
    if volume.random.random() < 0.5:
        os.unlink(path)
    else:
        os.truncate(path, 0)
    chunks = missing(volume, held(volume, worker, name))
    return Planted("store-file-lost", (of_store(worker), *chunks), (of_any_chunk(worker),))


@kind("store-page", "store", Stage.FILES, stores=1)
def damage_page(volume: RestingVolume) -> Planted:
    """One bit in the head or the pointers of a page of a store's tree; the images are whole."""
    worker, name = take_store(volume), volume.random.choice(("small", "large"))
    copy = volume.choose(held(volume, worker, name))
    with volume.side(worker, name) as environment:
        database = volume.random.choice(("chunks", "headers"))
        flip_page_bit(volume, row_spots(environment, database, copy.stored_key)[0])
    return Planted("store-page", (of_any_chunk(worker),), (of_any_chunk(worker),))


@kind("store-key-order", "store", Stage.FILES, stores=1)
def disorder_key(volume: RestingVolume) -> Planted:
    """One bit of a key in `chunks`, such that the order of the keys is broken."""
    worker = take_store(volume)
    copies = held(volume, worker)
    volume.random.shuffle(copies)
    for copy in copies:
        with volume.side(worker, copy.side) as environment:
            found = key_flip(
                environment, "chunks", copy.stored_key, volume.random, keeps_order=False
            )
        if found:
            found[0].flip(found[1])
            return Planted("store-key-order", (of_any_chunk(worker),), (of_any_chunk(worker),))
    raise AssertionError("no key can be brought out of order")


def flip_page_bit(volume: RestingVolume, inside: Spot) -> None:
    """Flips a bit of the page's head (number, flags, bounds) or of its pointers to nodes.

    The two bytes at 8 are LMDB's padding: nothing reads them.
    """
    start = inside.page * PAGE_BYTES
    with open(inside.path, "rb") as file:
        page = os.pread(file.fileno(), PAGE_BYTES, start)
    lower = int.from_bytes(page[12:14], "little")
    indexes = [*range(8), *range(10, lower)]
    Spot(inside.path, start, PAGE_BYTES).change(
        volume.random.choice(indexes), 1 << volume.random.randrange(8)
    )


def _value_spots(volume: RestingVolume, worker: int, name: str) -> dict[Copy, Spot]:
    """Where the images of a store's environment lie."""
    with volume.side(worker, name) as environment:
        return {
            copy: row_spots(environment, "chunks", copy.stored_key)[1]
            for copy in held(volume, worker, name)
        }
