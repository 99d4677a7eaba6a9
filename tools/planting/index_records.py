"""Damaged records of the index: a bit in the value, a bit in the key, a row that is gone.

In each of the seven databases.  Rows that a volume at rest does not have (an inode without a name,
garbage) are made first, as a crash would have left them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mpifs.core import records
from mpifs.core.image import decode_header
from mpifs.core.types import ChunkKey, ChunkRef

from .chunks import SPARE, add_chunk, delete_chunk
from .kinds import Stage, kind
from .planted import DAMAGE, ELSEWHERE, ERROR, LEFTOVER, SPOILED, WRONG, Place, Planted
from .rows import key_flip, row_spots
from .volume import NothingLeftError, RestingVolume, is_file

Row = tuple[str, bytes, Planted]
"""Database, key, and what a damage of that row means (without its kind)."""

_TRIES_MAX = 50
META_KEYS = {
    records.KEY_COUNTERS: ("counter", "total"),
    records.KEY_INODE_LIMIT: ("inode",),
    records.KEY_GENERATION_LIMIT: ("generation",),
    records.KEY_STORES: ("store", "worker"),
}
"""Keys in `meta`, and words that a finding about each must have."""


def inode_row(volume: RestingVolume) -> Row:
    """Of any inode but the root."""
    inode = volume.take_inode(lambda inode: True)
    ino = inode.ino
    about = frozenset((ino, *volume.parents(ino)))
    volume.bad_records.add(ino)
    # Without its record an inode's chunks and attributes are of no inode; the counters miss one.
    planted = Planted("", (Place(ino),), (Place(about), ELSEWHERE), loose=(ino,))
    return records.INODES, records.inode_key(ino), planted


def root_row(volume: RestingVolume) -> Row:
    """Of the root."""
    volume.bad_records.add(1)
    planted = Planted("", (Place(1),), (ELSEWHERE,), loose=(1,))
    return records.INODES, records.inode_key(1), planted


def dentry_row(volume: RestingVolume) -> Row:
    """Of a name."""
    ino = volume.take_inode(lambda inode: True).ino
    names = sorted(key for key, (child, _) in volume.dentries.items() if child == ino)
    parent, name = volume.choose(names)
    about = Place(frozenset((ino, parent)), chunk=None, worker=None)
    planted = Planted("", (about,), (about,), loose=(ino, parent))
    return records.DENTRIES, records.name_key(parent, name), planted


def ref_row(volume: RestingVolume) -> Row:
    """Of a chunk."""
    copy = volume.take_copy()
    # The stored chunk may be told as one that the index does not know, and the file's sum is off.
    here = Place(copy.ino, copy.chunk, severities=SPARE)
    planted = Planted("", (here,), (Place(copy.ino, None, severities=SPARE),))
    return records.REFS, records.ref_key(copy.ino, copy.chunk), planted


def xattr_row(volume: RestingVolume) -> Row:
    """Of an extended attribute."""
    having = {ino for ino, _ in volume.xattrs}
    ino = volume.take_inode(lambda inode: inode.ino in having).ino
    name = volume.choose(sorted(name for owner, name in volume.xattrs if owner == ino))
    planted = Planted("", (Place(ino),), (Place(ino),), loose=(ino,))
    return records.XATTRS, records.name_key(ino, name), planted


def orphan_row(volume: RestingVolume) -> Row:
    """Of an inode that lost its last name while it was open, in a volume that was killed then."""
    ino = unlink_open(volume)
    planted = Planted("", (Place(ino),), (Place(ino), ELSEWHERE), gone=(ino,))
    return records.ORPHANS, records.inode_key(ino), planted


def garbage_row(volume: RestingVolume) -> Row:
    """Of a chunk that was replaced and is not deleted yet."""
    key, worker = leave_garbage(volume)
    here = Place(key.inode, key.chunk, severities=SPARE)
    planted = Planted("", (here,), (Place(key.inode, key.chunk, worker, severities=SPARE),))
    return records.GARBAGE, records.garbage_key(key), planted


def meta_row(name: bytes) -> Callable[[RestingVolume], Row]:
    """Of the volume's own numbers."""

    def row(volume: RestingVolume) -> Row:
        about = Place(inode=None, chunk=None, severities=frozenset((DAMAGE, ERROR)))
        must = replace(about, words=META_KEYS[name])
        volume.has_bad_counters |= name == records.KEY_COUNTERS
        return records.META, name, Planted("", (must,), (about,))

    return row


def unlink_open(volume: RestingVolume) -> int:
    """Makes a file as it is when it was removed while somebody had it open."""
    inode = volume.take_inode(lambda inode: is_file(inode) and inode.nlink == 1)
    ((parent, name),) = (key for key, (child, _) in volume.dentries.items() if child == inode.ino)
    folder = volume.inodes[parent]
    folder = replace(folder, stable_size=folder.stable_size - 1)
    counters = volume.counters._replace(orphans=volume.counters.orphans + 1)
    key = records.inode_key(inode.ino)
    with volume.edit() as rows:
        rows.delete(records.DENTRIES, records.name_key(parent, name))
        rows.put(records.INODES, key, records.encode_inode(replace(inode, nlink=0)))
        volume.put_inode(rows, folder)
        rows.put(records.ORPHANS, key, records.encode_orphan(key))
        volume.put_counters(rows, counters)
    return inode.ino


def leave_garbage(volume: RestingVolume) -> tuple[ChunkKey, int]:
    """Stores an older generation of a chunk and lists it as garbage, as a commit leaves it."""
    copy = volume.take_copy(lambda copy: copy.ref.generation > 1)
    old = copy.key._replace(generation=volume.random.randrange(1, copy.ref.generation))
    payload = volume.payload(copy.ref.length)
    add_chunk(volume, copy.worker, old, volume.image(old, payload), copy.ref.length)
    key = records.garbage_key(old)
    with volume.edit() as rows:
        rows.put(records.GARBAGE, key, records.encode_garbage(key, (copy.worker,)))
    return old, copy.worker


ROWS: dict[str, Callable[[RestingVolume], Row]] = {
    "inode": inode_row,
    "root": root_row,
    "dentry": dentry_row,
    "ref": ref_row,
    "xattr": xattr_row,
    "orphan": orphan_row,
    "garbage": garbage_row,
    **{f"meta-{name.decode()}": meta_row(name) for name in META_KEYS},
}


def _flip_value(volume: RestingVolume, name: str) -> Planted:
    database, key, planted = ROWS[name](volume)
    with volume.index() as environment:
        spot = row_spots(environment, database, key)[1]
    spot.flip(volume.random.randrange(8 * spot.length))
    return replace(planted, kind=f"{name}-value-bit")


def _flip_key(volume: RestingVolume, name: str) -> Planted:
    for _ in range(_TRIES_MAX):  # between inodes 2 and 4 no bit of 3 can change: another one.
        before = volume.taken()
        database, key, planted = ROWS[name](volume)
        with volume.index() as environment:
            found = key_flip(environment, database, key, volume.random)
        if found:
            break
        volume.restore(before)
    else:
        raise NothingLeftError
    spot, bit, new = found
    spot.flip(bit)
    # The row shows up under the changed key, and is nobody's there.
    ino = None if database == records.META else int.from_bytes(new[:8], "big")
    return replace(
        planted, kind=f"{name}-key-bit", may=(*planted.may, Place(ino, severities=WRONG))
    )


def _drop(volume: RestingVolume, name: str) -> Planted:
    database, key, planted = ROWS[name](volume)
    with volume.edit() as rows:
        assert rows.delete(database, key)
    return replace(planted, kind=f"{name}-dropped")


def _register() -> None:
    ways = (
        ("value-bit", "One bit in the value", Stage.BITS, _flip_value),
        ("key-bit", "One bit in the key", Stage.BITS, _flip_key),
        ("dropped", "Nothing is left", Stage.ROWS, _drop),
    )
    for name, row in ROWS.items():
        family = "total" if name.startswith("meta-") else "root" if name == "root" else "record"
        about = (row.__doc__ or "Of the volume's own numbers.").lower()
        for way, words, stage, function in ways:
            if (name, way) == ("xattr", "dropped"):
                continue  # that an attribute is gone, nothing can know.
            plant = partial(function, name=name)
            plant.__doc__ = f"{words} of the record {about}"
            kind(f"{name}-{way}", family, stage)(plant)


_register()


@kind("ref-dropped-unstored", "record", Stage.ROWS)
def lose_ref_and_chunk(volume: RestingVolume) -> Planted:
    """A ref and all copies of its chunk are gone: a hole that must not read as zeros."""
    copy = volume.take_copy()
    for worker in copy.ref.stores:
        delete_chunk(volume, copy._replace(worker=worker))
    with volume.edit() as rows:
        rows.delete(records.REFS, records.ref_key(copy.ino, copy.chunk))
    # Which of the file's holes had a ref, nothing tells any more: all may give EIO.
    volume.holes.add((copy.ino, copy.chunk))
    volume.note_holes(volume.inodes[copy.ino])
    volume.take(copy.ino)
    here = Place(copy.ino, paths=volume.paths(copy.ino), severities=SPOILED)
    return Planted("ref-dropped-unstored", (here,), (Place(copy.ino, severities=SPARE | SPOILED),))


@kind("orphan-left", "record", Stage.ROWS)
def leave_orphan(volume: RestingVolume) -> Planted:
    """An inode without a name, as a kill leaves it: space in use that nothing needs."""
    ino = unlink_open(volume)
    here = Place(ino, severities=frozenset((LEFTOVER,)))
    return Planted("orphan-left", (here,), (here,), gone=(ino,))


@kind("garbage-of-live", "record", Stage.ROWS)
def list_live_as_garbage(volume: RestingVolume) -> Planted:
    """A garbage row that names the generation a ref names: the next mount would delete it."""
    copy = volume.take_copy()
    key = records.garbage_key(copy.key)
    with volume.edit() as rows:
        rows.put(records.GARBAGE, key, records.encode_garbage(key, copy.ref.stores))
    return Planted("garbage-of-live", (Place(copy.ino, copy.chunk, severities=SPARE),))


@kind("ref-past-end", "record", Stage.ROWS)
def add_ref_past_end(volume: RestingVolume) -> Planted:
    """A stored chunk and its ref far behind the end of the file, as a crash leaves them."""
    inode = volume.take_inode(is_file)
    chunk = inode.stable_size // inode.chunk_size + 3
    key = ChunkKey(inode.ino, chunk, volume.generation_limit - 2)
    length = min(inode.chunk_size, 5000)
    payload = volume.payload(length)
    worker = volume.choose(volume.free_workers)
    image = volume.image(key, payload)
    add_chunk(volume, worker, key, image, length)
    inode = replace(inode, bytes_stored=inode.bytes_stored + length)
    total = volume.counters.payload_bytes + length
    counters = volume.counters._replace(payload_bytes=total)
    row = records.ref_key(inode.ino, chunk)
    ref = ChunkRef(key.generation, length, decode_header(image).checksum, (worker,))
    with volume.edit() as rows:
        rows.put(records.REFS, row, records.encode_ref(row, ref))
        volume.put_inode(rows, inode)
        volume.put_counters(rows, counters)
    here = Place(inode.ino, chunk, severities=frozenset((LEFTOVER,)))
    return Planted("ref-past-end", (here,), (Place(inode.ino, chunk, severities=SPARE),))
