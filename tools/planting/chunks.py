"""Faults of single stored chunks."""

from __future__ import annotations

import os
from collections.abc import Callable

from mpifs.core import records
from mpifs.core.image import IMAGE_HEADER_BYTES, decode_key, encode_key
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.store.side import Side

from .kinds import Stage, kind
from .mapped import Spot
from .planted import DAMAGE, ERROR, LEFTOVER, LOST, SPOILED, Place, Planted
from .rows import key_flip, row_spots
from .volume import Copy, RestingVolume, side_of

MENDABLE = frozenset((DAMAGE, ERROR))
"""The payload is still there, and the store itself can put it right."""
SPARE = frozenset((LEFTOVER, ERROR, DAMAGE))


def place_of(
    volume: RestingVolume, copy: Copy, severities: frozenset[str], worker: int = 0
) -> Place:
    """Where a finding about a copy stands (on another worker: about what lies there)."""
    return Place(copy.ino, copy.chunk, worker or copy.worker, volume.paths(copy.ino), severities)


def value_spot(volume: RestingVolume, copy: Copy, database: str = "chunks") -> Spot:
    """Where the stored value lies in its file."""
    with volume.side(copy.worker, copy.side) as environment:
        return row_spots(environment, database, copy.stored_key)[1]


def read_value(volume: RestingVolume, copy: Copy) -> bytes:
    """The stored value."""
    with volume.side(copy.worker, copy.side) as environment, environment.read() as rows:
        value = rows.get("chunks", copy.stored_key)
        assert value is not None, f"{copy} is not stored"
        return bytes(value)


def store_value(volume: RestingVolume, copy: Copy, value: bytes, side: str = "") -> None:
    """Puts a value under the key of a copy, listed by its own header."""
    with volume.side(copy.worker, side or copy.side) as environment, environment.write() as rows:
        rows.put("chunks", copy.stored_key, value)
        rows.put("headers", copy.stored_key, value[:IMAGE_HEADER_BYTES])


def add_chunk(volume: RestingVolume, worker: int, key: ChunkKey, value: bytes, length: int) -> None:
    """Stores one more chunk, and counts it."""
    path = os.path.join(volume.store_folder(worker), side_of(length))
    side = Side(path, create=False, relaxed=False)
    try:
        with side.change() as change:
            change.put(encode_key(key), memoryview(value), length)
    finally:
        side.close()


def delete_chunk(volume: RestingVolume, copy: Copy) -> None:
    """Removes a stored copy, and counts it."""
    path = os.path.join(volume.store_folder(copy.worker), copy.side)
    side = Side(path, create=False, relaxed=False)
    try:
        with side.change() as change:
            assert change.delete(copy.stored_key), f"{copy} is not stored"
    finally:
        side.close()


@kind("chunk-data-bit", "chunk", Stage.BITS)
def flip_data(volume: RestingVolume) -> Planted:
    """One bit of a payload."""
    copy = volume.take_copy()
    return _flip_data(volume, [copy], "chunk-data-bit")


@kind("chunk-data-bit-all", "chunk", Stage.BITS)
def flip_data_everywhere(volume: RestingVolume) -> Planted:
    """One bit of the payload of each copy of a chunk: lost whatever the number of replicas."""
    copy = volume.take_copy()
    copies = [copy._replace(worker=worker) for worker in copy.ref.stores]
    return _flip_data(volume, copies, "chunk-data-bit-all")


def _flip_data(volume: RestingVolume, copies: list[Copy], name: str) -> Planted:
    for copy in copies:
        spot = value_spot(volume, copy)
        spot.flip(8 * IMAGE_HEADER_BYTES + volume.random.randrange(8 * copy.ref.length))
        volume.spoil(copy)
    return Planted(
        name,
        tuple(place_of(volume, copy, SPOILED) for copy in copies),
        (Place(copies[0].ino, copies[0].chunk, severities=SPOILED),),
    )


@kind("chunk-header-bit", "chunk", Stage.BITS)
def flip_header(volume: RestingVolume) -> Planted:
    """One bit of an image's header."""
    copy = volume.take_copy()
    value_spot(volume, copy).flip(volume.random.randrange(8 * IMAGE_HEADER_BYTES))
    return Planted("chunk-header-bit", (place_of(volume, copy, MENDABLE),))


@kind("chunk-list-bit", "chunk", Stage.BITS)
def flip_listed(volume: RestingVolume) -> Planted:
    """One bit of the header that a listing shows."""
    copy = volume.take_copy()
    value_spot(volume, copy, "headers").flip(volume.random.randrange(8 * IMAGE_HEADER_BYTES))
    return Planted("chunk-list-bit", (place_of(volume, copy, MENDABLE),))


@kind("chunk-key-bit", "chunk", Stage.BITS)
def flip_image_key(volume: RestingVolume) -> Planted:
    """One bit of a key in `chunks`; the order of the keys stays."""
    return _flip_key(volume, "chunks", "chunk-key-bit")


@kind("chunk-list-key-bit", "chunk", Stage.BITS)
def flip_listed_key(volume: RestingVolume) -> Planted:
    """One bit of a key in `headers`; the order of the keys stays."""
    return _flip_key(volume, "headers", "chunk-list-key-bit")


def _flip_key(volume: RestingVolume, database: str, name: str) -> Planted:
    def flip_of(copy: Copy) -> tuple[Spot, int, bytes] | None:
        with volume.side(copy.worker, copy.side) as environment:
            return key_flip(environment, database, copy.stored_key, volume.random)

    copies = volume.free_copies()
    volume.random.shuffle(copies)
    copy, found = volume.choose(
        next(([(copy, flip)] for copy in copies if (flip := flip_of(copy))), [])
    )
    volume.take_chunk(copy)
    spot, bit, key = found
    spot.flip(bit)
    other = decode_key(key)
    phantom = Place(other.inode, other.chunk, copy.worker, severities=SPARE)
    return Planted(name, (place_of(volume, copy, MENDABLE),), (phantom,))


@kind("chunk-swapped", "chunk", Stage.ROWS)
def swap(volume: RestingVolume) -> Planted:
    """Two chunks of a store, each under the other's key; the listing agrees with the images."""
    return _rotate(volume, 2, "chunk-swapped")


@kind("chunk-rotated", "chunk", Stage.ROWS)
def rotate(volume: RestingVolume) -> Planted:
    """Three chunks of a store, each under the next one's key."""
    return _rotate(volume, 3, "chunk-rotated")


def _rotate(volume: RestingVolume, count: int, name: str) -> Planted:
    first = volume.take_copy(lambda copy: len(_neighbours(volume, copy)) > count + 1)
    copies = [first]
    while len(copies) < count:
        copy = volume.choose(_neighbours(volume, first))
        volume.take_chunk(copy)
        copies.append(copy)
    values = [read_value(volume, copy) for copy in copies]
    for copy, value in zip(copies, values[1:] + values[:1], strict=True):
        store_value(volume, copy, value)
    return Planted(name, tuple(place_of(volume, copy, MENDABLE) for copy in copies))


def _neighbours(volume: RestingVolume, copy: Copy) -> list[Copy]:
    """Copies in the same environment that are free."""
    where = (copy.worker, copy.side)
    return volume.free_copies(lambda other: (other.worker, other.side) == where)


@kind("chunk-older", "chunk", Stage.ROWS)
def replace_by_older(volume: RestingVolume) -> Planted:
    """The image of an older generation under the key of the new one."""
    copy = volume.take_copy(lambda copy: copy.ref.generation > 1)
    old = copy.key._replace(generation=volume.random.randrange(1, copy.ref.generation))
    return _replace(volume, copy, old, "chunk-older")


@kind("chunk-older-forged", "chunk", Stage.ROWS)
def replace_by_forged(volume: RestingVolume) -> Planted:
    """An older payload under a header that is right in itself: only the index knows better."""
    copy = volume.take_copy()
    return _replace(volume, copy, copy.key, "chunk-older-forged")


def _replace(volume: RestingVolume, copy: Copy, key: ChunkKey, name: str) -> Planted:
    store_value(volume, copy, volume.image(key, volume.payload(copy.ref.length)))
    volume.spoil(copy)
    return Planted(name, (place_of(volume, copy, SPOILED),))


@kind("chunk-deleted", "chunk", Stage.ROWS)
def delete(volume: RestingVolume) -> Planted:
    """A copy that is not there any more."""
    copy = volume.take_copy()
    delete_chunk(volume, copy)
    volume.spoil(copy)
    return Planted("chunk-deleted", (place_of(volume, copy, SPOILED),))


@kind("chunk-image-dropped", "chunk", Stage.ROWS)
def drop_image(volume: RestingVolume) -> Planted:
    """A copy that is listed and not there."""
    copy = _drop(volume, "chunks")
    volume.spoil(copy)
    return Planted("chunk-image-dropped", (place_of(volume, copy, SPOILED),))


@kind("chunk-list-dropped", "chunk", Stage.ROWS)
def drop_listed(volume: RestingVolume) -> Planted:
    """A copy that is there and not listed."""
    copy = _drop(volume, "headers")
    return Planted("chunk-list-dropped", (place_of(volume, copy, MENDABLE),))


def _drop(volume: RestingVolume, database: str) -> Copy:
    copy = volume.take_copy()
    with volume.side(copy.worker, copy.side) as environment, environment.write() as rows:
        assert rows.delete(database, copy.stored_key), f"{copy} is not in {database}"
    return copy


@kind("chunk-cut", "chunk", Stage.ROWS)
def cut(volume: RestingVolume) -> Planted:
    """A copy whose payload ends too early."""
    copy = volume.take_copy(lambda copy: copy.ref.length > 1)
    value = read_value(volume, copy)
    keep = IMAGE_HEADER_BYTES + volume.random.randrange(copy.ref.length)
    with volume.side(copy.worker, copy.side) as environment, environment.write() as rows:
        rows.put("chunks", copy.stored_key, value[:keep])
    volume.spoil(copy)
    return Planted("chunk-cut", (place_of(volume, copy, SPOILED),))


@kind("chunk-twice", "chunk", Stage.ROWS)
def store_twice(volume: RestingVolume) -> Planted:
    """A copy in both environments of its store."""
    copy = volume.take_copy()
    other = "large" if copy.side == "small" else "small"
    store_value(volume, copy, read_value(volume, copy), other)
    return Planted("chunk-twice", (place_of(volume, copy, SPARE),))


@kind("chunk-orphan", "chunk", Stage.ROWS)
def add_orphan(volume: RestingVolume) -> Planted:
    """A generation that the index does not know, of a chunk that it does."""
    copy = volume.take_copy(lambda copy: copy.ref.generation > 1)
    key = copy.key._replace(generation=volume.random.randrange(1, copy.ref.generation))
    value = volume.image(key, volume.payload(copy.ref.length))
    worker = volume.choose(volume.free_workers)
    add_chunk(volume, worker, key, value, copy.ref.length)
    return Planted("chunk-orphan", (place_of(volume, copy, frozenset((LEFTOVER,)), worker),))


@kind("chunk-orphan-file", "chunk", Stage.ROWS)
def add_orphan_of_no_file(volume: RestingVolume) -> Planted:
    """A chunk of an inode that does not exist."""
    used = set(volume.inodes)
    ino = volume.choose([n for n in range(2, max(used) + 100) if n not in used])
    length = volume.random.choice((1, 4096, 40_000))
    key = ChunkKey(ino, volume.random.randrange(4), volume.generation_limit - 1)
    worker = volume.choose(volume.free_workers)
    add_chunk(volume, worker, key, volume.image(key, volume.payload(length)), length)
    place = Place(ino, key.chunk, worker, severities=frozenset((LEFTOVER,)))
    return Planted("chunk-orphan-file", (place,), gone=(ino,))


@kind("chunk-duplicate", "chunk", Stage.ROWS)
def duplicate(volume: RestingVolume) -> Planted:
    """A copy too many, on a store that the ref does not name."""
    copy, worker = _with_other_worker(volume)
    add_chunk(volume, worker, copy.key, read_value(volume, copy), copy.ref.length)
    return Planted("chunk-duplicate", (place_of(volume, copy, SPARE, worker),))


@kind("chunk-misplaced", "chunk", Stage.ROWS)
def misplace(volume: RestingVolume) -> Planted:
    """A copy on another store than the ref says."""
    copy, worker = _with_other_worker(volume)
    add_chunk(volume, worker, copy.key, read_value(volume, copy), copy.ref.length)
    delete_chunk(volume, copy)
    missing = place_of(volume, copy, frozenset((DAMAGE, ERROR)))
    return Planted("chunk-misplaced", (missing,), (place_of(volume, copy, SPARE, worker),))


def _with_other_worker(volume: RestingVolume) -> tuple[Copy, int]:
    def others(copy: Copy) -> list[int]:
        return [worker for worker in volume.free_workers if worker not in copy.ref.stores]

    # If a store of the chunk itself is lost, one copy more elsewhere is no copy too many.
    stay = set(volume.free_workers)
    copy = volume.take_copy(lambda copy: bool(others(copy)) and stay.issuperset(copy.ref.stores))
    return copy, volume.choose(others(copy))


def change_ref(volume: RestingVolume, copy: Copy, change: Callable[[ChunkRef], ChunkRef]) -> None:
    """Writes another ref with a right guard."""
    key = records.ref_key(copy.ino, copy.chunk)
    with volume.edit() as rows:
        rows.put(records.REFS, key, records.encode_ref(key, change(copy.ref)))


@kind("ref-copy-forgotten", "ref", Stage.ROWS, replicas=2)
def forget_copy(volume: RestingVolume) -> Planted:
    """A ref that names fewer stores than it should; the copy is still on the other one."""
    copy = volume.take_copy(lambda copy: len(copy.ref.stores) > 1)
    stores = tuple(worker for worker in copy.ref.stores if worker != copy.worker)
    change_ref(volume, copy, lambda ref: ref._replace(stores=stores))
    here = Place(copy.ino, copy.chunk, paths=volume.paths(copy.ino), severities=SPARE)
    return Planted("ref-copy-forgotten", (here,))


@kind("ref-unknown-store", "ref", Stage.ROWS)
def name_unknown_store(volume: RestingVolume) -> Planted:
    """A ref that names a store which the volume does not have; the chunk is where it was."""
    copy = volume.take_copy()
    unknown = max(volume.workers) + 7
    stores = tuple(unknown if w == copy.worker else w for w in copy.ref.stores)
    change_ref(volume, copy, lambda ref: ref._replace(stores=stores))
    severities = SPARE
    here = Place(copy.ino, copy.chunk, paths=volume.paths(copy.ino), severities=severities)
    return Planted("ref-unknown-store", (here,))


@kind("ref-checksum", "ref", Stage.ROWS)
def change_checksum(volume: RestingVolume) -> Planted:
    """A ref whose checksum no stored copy has; its own guard is right."""
    copy = volume.take_copy()
    change_ref(volume, copy, lambda ref: ref._replace(checksum=volume.payload(16)))
    for worker in copy.ref.stores:
        volume.spoil(copy._replace(worker=worker))
    here = Place(copy.ino, copy.chunk, paths=volume.paths(copy.ino), severities=SPOILED)
    must = Place(copy.ino, copy.chunk, severities=frozenset((LOST,)))
    return Planted("ref-checksum", (must,), (here,))
