"""Rows of the index that are whole in themselves and wrong: names, inodes, totals."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mpifs.core import records
from mpifs.core.records import InodeRecord
from mpifs.kv import WriteTransaction

from .chunks import SPARE
from .kinds import Stage, kind
from .planted import DAMAGE, ELSEWHERE, ERROR, LEFTOVER, WRONG, Place, Planted
from .volume import RestingVolume, is_directory, is_file

CONTRADICTION = frozenset((ERROR, DAMAGE))


def change_inode(volume: RestingVolume, inode: InodeRecord, **fields: Any) -> None:
    """Writes an inode's record with other fields."""
    with volume.edit() as rows:
        volume.put_inode(rows, replace(inode, **fields))


@contextmanager
def naming(volume: RestingVolume) -> Iterator[WriteTransaction]:
    """A change of names."""
    with volume.edit() as rows:
        yield rows


def put_name(rows: WriteTransaction, parent: int, name: bytes, ino: int, mode: int) -> None:
    """Writes a dentry."""
    key = records.name_key(parent, name)
    rows.put(records.DENTRIES, key, records.encode_dentry(key, ino, mode >> 12))


def about(ino: int, name: str, **more: Any) -> Planted:
    """A fault of one inode's own record."""
    return Planted(name, (Place(ino, severities=CONTRADICTION),), (Place(ino),), **more)


@kind("nlink-file", "name", Stage.ROWS)
def change_link_count(volume: RestingVolume) -> Planted:
    """A link count that is not the number of names."""
    inode = volume.take_inode(lambda inode: not is_directory(inode))
    change_inode(volume, inode, nlink=inode.nlink + volume.random.choice((1, 5)))
    return about(inode.ino, "nlink-file")


@kind("nlink-zero", "name", Stage.ROWS)
def clear_link_count(volume: RestingVolume) -> Planted:
    """A link count of 0 for a file that has a name."""
    inode = volume.take_inode(is_file)
    change_inode(volume, inode, nlink=0)
    return about(inode.ino, "nlink-zero")


@kind("nlink-directory", "name", Stage.FOLDERS)
def change_directory_links(volume: RestingVolume) -> Planted:
    """A directory's link count that is not 2 and its subdirectories."""
    inode = volume.take_inode(is_directory)
    change_inode(volume, inode, nlink=inode.nlink + 1)
    return about(inode.ino, "nlink-directory")


@kind("entry-count", "name", Stage.FOLDERS)
def change_entry_count(volume: RestingVolume) -> Planted:
    """A directory's count of entries that is not their number."""
    inode = volume.take_inode(is_directory)
    change_inode(volume, inode, stable_size=inode.stable_size + 1)
    return about(inode.ino, "entry-count")


@kind("parent-directory", "name", Stage.FOLDERS)
def change_parent(volume: RestingVolume) -> Planted:
    """A directory whose parent is another one than the one that names it."""
    inode = volume.take_inode(is_directory)
    other = volume.choose(
        [d.ino for d in volume.inodes.values() if is_directory(d) and d.ino != inode.parent]
    )
    change_inode(volume, inode, parent=other)
    return about(inode.ino, "parent-directory")


@kind("parent-file", "name", Stage.ROWS)
def change_file_parent(volume: RestingVolume) -> Planted:
    """A file whose record names a directory that does not have it."""
    inode = volume.take_inode(is_file)
    other = volume.choose(
        [d.ino for d in volume.inodes.values() if is_directory(d) and d.ino != inode.parent]
    )
    change_inode(volume, inode, parent=other)
    return about(inode.ino, "parent-file")


@kind("type-inode", "name", Stage.ROWS)
def change_type(volume: RestingVolume) -> Planted:
    """A regular file with data whose record says that it is a FIFO."""
    inode = volume.take_inode(is_file)
    change_inode(volume, inode, mode=stat.S_IFIFO | stat.S_IMODE(inode.mode))
    return about(inode.ino, "type-inode", loose=(inode.ino,))


@kind("type-dentry", "name", Stage.ROWS)
def change_dentry_type(volume: RestingVolume) -> Planted:
    """A name that tells another type than the inode."""
    inode = volume.take_inode(is_file)
    (parent, name) = min(key for key, (ino, _) in volume.dentries.items() if ino == inode.ino)
    with naming(volume) as rows:
        put_name(rows, parent, name, inode.ino, stat.S_IFLNK)
    place = Place(frozenset((inode.ino, parent)), severities=CONTRADICTION)
    return Planted("type-dentry", (place,), (place,))


@kind("chunk-size", "name", Stage.ROWS)
def change_chunk_size(volume: RestingVolume) -> Planted:
    """A chunk size that cannot be."""
    inode = volume.take_inode(is_file)
    change_inode(volume, inode, chunk_size=volume.random.choice((0, 1, 12_345, 1 << 30)))
    return about(inode.ino, "chunk-size", is_blind=True)


@kind("replicas", "name", Stage.ROWS)
def change_replicas(volume: RestingVolume) -> Planted:
    """A number of replicas that cannot be."""
    inode = volume.take_inode(is_file)
    change_inode(volume, inode, replicas=volume.random.choice((0, 9, 255)))
    return about(inode.ino, "replicas")


@kind("size-small", "name", Stage.ROWS)
def shrink(volume: RestingVolume) -> Planted:
    """A size that leaves chunks behind the end of the file."""
    inode = volume.take_inode(lambda i: is_file(i) and i.stable_size > 2 * i.chunk_size)
    change_inode(volume, inode, stable_size=inode.chunk_size + 1)
    return about(inode.ino, "size-small", loose=(inode.ino,), is_blind=True)


@kind("bytes-stored", "name", Stage.ROWS)
def change_bytes_stored(volume: RestingVolume) -> Planted:
    """A sum of chunk lengths that is wrong, of a file without holes."""
    inode = volume.take_inode(lambda i: is_file(i) and i.bytes_stored == i.stable_size)
    off = volume.random.choice((-1, 1, 4096))
    change_inode(volume, inode, bytes_stored=inode.bytes_stored + off)
    return about(inode.ino, "bytes-stored")


@kind("bytes-stored-holes", "name", Stage.ROWS)
def change_bytes_stored_of_sparse(volume: RestingVolume) -> Planted:
    """The same of a file with holes: nobody can know that no chunk is missing."""
    inode = volume.take_inode(
        lambda i: is_file(i) and i.bytes_stored < i.stable_size - i.chunk_size
    )
    change_inode(volume, inode, bytes_stored=inode.bytes_stored + 17)
    volume.note_holes(inode)
    return Planted("bytes-stored-holes", (Place(inode.ino),), (Place(inode.ino),))


@kind("dentry-dangling", "name", Stage.FOLDERS)
def add_dangling(volume: RestingVolume) -> Planted:
    """A name of an inode that does not exist."""
    folder = volume.take_inode(is_directory)
    ghost = volume.choose([n for n in range(2, volume.inode_limit) if n not in volume.inodes][:50])
    with naming(volume) as rows:
        put_name(rows, folder.ino, b"dangling", ghost, stat.S_IFREG)
        volume.put_inode(rows, replace(folder, stable_size=folder.stable_size + 1))
    place = Place(frozenset((ghost, folder.ino)))
    return Planted("dentry-dangling", (place,), (place,), gone=(ghost,))


@kind("directory-cycle", "name", Stage.TREES)
def make_cycle(volume: RestingVolume) -> Planted:
    """A directory that stands in a directory below itself; all counts are right."""
    top = volume.take_inode(
        lambda i: is_directory(i) and any(is_directory(volume.inodes[n]) for n in _under(volume, i))
    )
    inner = volume.inodes[
        volume.choose([n for n in _under(volume, top) if is_directory(volume.inodes[n])])
    ]
    ((parent, name),) = (key for key, (ino, _) in volume.dentries.items() if ino == top.ino)
    above = volume.inodes[parent]
    with naming(volume) as rows:
        rows.delete(records.DENTRIES, records.name_key(parent, name))
        put_name(rows, inner.ino, name, top.ino, top.mode)
        volume.put_inode(rows, replace(top, parent=inner.ino))
        volume.put_inode(
            rows, replace(above, nlink=above.nlink - 1, stable_size=above.stable_size - 1)
        )
        volume.put_inode(
            rows, replace(inner, nlink=inner.nlink + 1, stable_size=inner.stable_size + 1)
        )
    tree = tuple(volume.below(top.ino))
    place = Place(frozenset(tree), severities=CONTRADICTION)
    return Planted("directory-cycle", (place,), (place, Place(above.ino)), loose=tree)


def _under(volume: RestingVolume, inode: InodeRecord) -> list[int]:
    return [ino for ino in volume.below(inode.ino) if ino != inode.ino]


@kind("directory-two-names", "name", Stage.FOLDERS)
def name_directory_twice(volume: RestingVolume) -> Planted:
    """A directory with a second name."""
    inode = volume.take_inode(is_directory)
    folder = volume.take_inode(is_directory)
    with naming(volume) as rows:
        put_name(rows, folder.ino, b"second", inode.ino, inode.mode)
        volume.put_inode(
            rows,
            replace(folder, stable_size=folder.stable_size + 1, nlink=folder.nlink + 1),
        )
    place = Place(frozenset((inode.ino, folder.ino)), severities=CONTRADICTION)
    return Planted("directory-two-names", (place,), (place,), loose=(inode.ino, folder.ino))


@kind("orphan-of-linked", "name", Stage.ROWS)
def list_linked_as_orphan(volume: RestingVolume) -> Planted:
    """A file with a name that is listed for deletion: the next mount would delete it."""
    inode = volume.take_inode(is_file)
    key = records.inode_key(inode.ino)
    counters = volume.counters._replace(orphans=volume.counters.orphans + 1)
    with volume.edit() as rows:
        rows.put(records.ORPHANS, key, records.encode_orphan(key))
        volume.put_counters(rows, counters)
    return about(inode.ino, "orphan-of-linked")


@kind("orphan-of-none", "name", Stage.ROWS)
def list_missing_as_orphan(volume: RestingVolume) -> Planted:
    """An inode that does not exist is listed for deletion."""
    ghost = volume.choose([n for n in range(2, volume.inode_limit) if n not in volume.inodes][:50])
    key = records.inode_key(ghost)
    counters = volume.counters._replace(orphans=volume.counters.orphans + 1)
    with volume.edit() as rows:
        rows.put(records.ORPHANS, key, records.encode_orphan(key))
        volume.put_counters(rows, counters)
    return Planted("orphan-of-none", (Place(ghost),), (Place(ghost),))


@kind("xattr-of-none", "name", Stage.ROWS)
def add_xattr_of_none(volume: RestingVolume) -> Planted:
    """An attribute of an inode that does not exist."""
    ghost = volume.choose([n for n in range(2, volume.inode_limit) if n not in volume.inodes][:50])
    key = records.name_key(ghost, b"user.ghost")
    with volume.edit() as rows:
        rows.put(records.XATTRS, key, records.encode_xattr(key, b"boo"))
    return Planted("xattr-of-none", (Place(ghost),), (Place(ghost),))


@kind("xattr-flag", "name", Stage.ROWS)
def clear_xattr_flag(volume: RestingVolume) -> Planted:
    """An inode with attributes whose record says that it has none."""
    having = {ino for ino, _ in volume.xattrs}
    inode = volume.take_inode(lambda inode: inode.ino in having)
    change_inode(volume, inode, flags=inode.flags & ~records.FLAG_XATTRS)
    return about(inode.ino, "xattr-flag")


@kind("ref-of-none", "name", Stage.ROWS)
def remove_inode_and_name(volume: RestingVolume) -> Planted:
    """Chunks of an inode that is gone with its name; the stores still have them."""
    inode = volume.take_inode(lambda i: is_file(i) and i.nlink == 1)
    ((parent, name),) = (key for key, (ino, _) in volume.dentries.items() if ino == inode.ino)
    folder = volume.inodes[parent]
    counters = volume.counters._replace(files=volume.counters.files - 1)
    with naming(volume) as rows:
        rows.delete(records.DENTRIES, records.name_key(parent, name))
        rows.delete(records.INODES, records.inode_key(inode.ino))
        volume.put_inode(rows, replace(folder, stable_size=folder.stable_size - 1))
        volume.put_counters(rows, counters)
    here = Place(inode.ino)
    # Nobody can know whether the counter lacks the file too, so it may be told as well.
    return Planted("ref-of-none", (here,), (here, ELSEWHERE), loose=(inode.ino,))


@kind("counters", "total", Stage.ROWS)
def change_counters(volume: RestingVolume) -> Planted:
    """A total of the volume that is wrong."""
    field = volume.random.choice(("files", "directories", "payload_bytes", "orphans"))
    value = getattr(volume.counters, field) + volume.random.choice((1, 100))
    with volume.edit() as rows:
        volume.put_counters(rows, volume.counters._replace(**{field: value}))
    return Planted("counters", (replace(ELSEWHERE, words=("counter", "total")),), (ELSEWHERE,))


@kind("inode-limit", "total", Stage.ROWS)
def lower_inode_limit(volume: RestingVolume) -> Planted:
    """The limit of inode numbers is below numbers in use: they would be used again."""
    key = records.KEY_INODE_LIMIT
    with volume.edit() as rows:
        rows.put(records.META, key, records.encode_number(key, 3))
    place = Place(frozenset((None, max(volume.inodes))), words=("limit", "inode"))
    return Planted("inode-limit", (place,), (place,))


@kind("generation-limit", "total", Stage.ROWS)
def lower_generation_limit(volume: RestingVolume) -> Planted:
    """The limit of generations is below generations in use: they would be used again."""
    key = records.KEY_GENERATION_LIMIT
    with volume.edit() as rows:
        rows.put(records.META, key, records.encode_number(key, 2))
    newest = max(volume.refs, key=lambda place: volume.refs[place].generation)
    place = Place(
        frozenset((None, newest[0])), frozenset((None, newest[1])), words=("limit", "generation")
    )
    return Planted("generation-limit", (place,), (place,))


@kind("store-forgotten", "total", Stage.ROWS)
def forget_store(volume: RestingVolume) -> Planted:
    """The volume's table of stores lacks one that holds chunks."""
    worker = volume.stores[-1].store
    with volume.edit() as rows:
        value = records.encode_stores(volume.stores[:-1])
        rows.put(records.META, records.KEY_STORES, value)
    here = Place(worker=frozenset((None, worker)), inode=None)
    chunks = frozenset((LEFTOVER,)) | SPARE | WRONG
    return Planted("store-forgotten", (here,), (here, Place(severities=chunks, worker=worker)))
