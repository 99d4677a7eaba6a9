"""The facade: making, opening, locking, damage, identity, bounds, numbers, garbage, failures."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path
from stat import S_IFDIR, S_IFREG

import pytest

from mpifs.core import records
from mpifs.core.errors import DamageError, FormatError, FullError, InUseError, PosixError
from mpifs.core.types import ChunkKey, ChunkRef, StoreEntry, StoreId, StoreState
from mpifs.index import inodes, names, refs
from mpifs.index.batch import Batch
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.kv import Environment
from tests.index.volumes import STORES, make_volume, open_volume

FILE = S_IFREG | 0o644


def make(index: Index, name: bytes, parent: int = 1) -> Inode:
    return index.create(index.inode(parent), name, FILE, 0, 0, now_ns=1)


def ref(generation: int, length: int = 10) -> ChunkRef:
    return ChunkRef(generation, length, b"c" * 16, (1,))


def test_made_volume(path: str) -> None:
    index = open_volume(path)
    root = index.resolve(b"/")
    assert (root.ino, root.mode, root.nlink, root.uid) == (1, S_IFDIR | 0o755, 2, os.getuid())
    assert (root.chunk_size, root.replicas) == (1 << 20, 1)
    assert index.stores() == STORES
    assert index.counters() == (0, 1, 0, 0)
    assert index.seal() is None
    assert index.is_empty(1)
    assert index.used_bytes() > 0
    assert index.free_bytes() > 0
    index.close()
    index.close()
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert all(os.stat(os.path.join(path, n)).st_mode & 0o777 == 0o600 for n in os.listdir(path))


def test_refusals(path: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds a volume already"):
        make_volume(tmp_path)
    (tmp_path / "other" / "index").mkdir(parents=True)
    (tmp_path / "other" / "index" / "thesis.tex").touch()
    with pytest.raises(FormatError, match="not empty"):
        make_volume(tmp_path / "other")
    with pytest.raises(FormatError, match="mpifs mkfs"):
        Index.open(str(tmp_path / "nowhere"))
    index = open_volume(path)
    with pytest.raises(InUseError):
        open_volume(path)
    index.close()
    os.truncate(os.path.join(path, "superblock"), 100)
    with pytest.raises(FormatError):
        open_volume(path)


def test_damaged_meta_and_root(path: str) -> None:
    for database, key in (
        (records.META, records.KEY_STORES),
        (records.INODES, records.inode_key(1)),
    ):
        environment = Environment(path, records.DATABASES)
        with environment.read() as reading:
            value = bytes(reading.get(database, key) or b"")
        with environment.write() as writing:
            writing.put(database, key, value[:-1] + bytes([value[-1] ^ 1]))
        environment.close()
        with pytest.raises(DamageError, match=f"{database} record"):
            open_volume(path)
        environment = Environment(path, records.DATABASES)
        with environment.write() as writing:
            writing.delete(database, key)
        environment.close()
        with pytest.raises(DamageError, match="missing"):
            open_volume(path)
        environment = Environment(path, records.DATABASES)
        with environment.write() as writing:
            writing.put(database, key, value)
        environment.close()
    open_volume(path).close()


def test_stores_table(path: str) -> None:
    index = open_volume(path)
    table = [StoreEntry(StoreId(9), b"9" * 16, StoreState.ACTIVE)]
    index.set_stores(table)
    index.abandon()
    index = open_volume(path)
    assert index.stores() == STORES
    index.set_stores(table)
    index.close()
    index = open_volume(path)
    assert index.stores() == table
    index.close()


def test_numbers(path: str) -> None:
    """A small range runs out within one batch: the next is made durable out of turn."""
    index = open_volume(path, reserve=8)
    seen = [index.next_generation() for _ in range(5)]
    batch = index.seal()  # wants a higher limit
    assert batch is not None
    seen += [index.next_generation() for _ in range(100)]
    index.commit(batch)  # must not lower the limit
    index.abandon()
    index = open_volume(path, reserve=8)
    seen.append(index.next_generation())
    assert len(set(seen)) == len(seen)
    assert min(seen) == 1
    last = seen[-1]
    index.close()
    index = open_volume(path, reserve=8)
    assert index.next_generation() == last + 1  # a clean close gives the rest of the range back
    index.close()


def test_number_is_durable_before_use(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_volume(path, reserve=4)
    with monkeypatch.context() as patch:
        patch.setattr(index._env, "write", _full)
        for _ in range(4):
            index.next_generation()
        with pytest.raises(FullError):
            index.next_generation()
        taken = [make(index, b"%d" % i).ino for i in range(4)]
        with pytest.raises(FullError):
            make(index, b"one too many")
    assert index.lookup(1, b"one too many") == 0
    assert make(index, b"now").ino > max(taken)
    index.abandon()


def _full(*_: object) -> None:
    raise FullError("the disk is full")


def test_failed_commit_keeps_everything(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(index, b"first")
    index.set_refs(first, [(0, ref(1))])
    batch = index.seal()
    assert batch is not None
    monkeypatch.setattr(Batch, "write", _full)
    with pytest.raises(FullError):
        index.commit(batch)
    index._cache.clear()
    index._names.clear()
    index._complete.clear()
    second = make(index, b"second")
    index.set_refs(first, [(0, ref(2)), (1, ref(3))])
    index.unlink(index.inode(1), b"first", 5)
    assert index.seal() is batch
    assert [row[0] for row in index.entries(1)] == [b"second"]
    assert index.refs(first.ino) == [(0, ref(2)), (1, ref(3))]
    monkeypatch.undo()
    index.commit(batch)
    index.commit(batch)  # repeated: nothing
    assert index.seal() is None
    assert index.lookup(1, b"second") == second.ino
    assert [key.generation for key, _ in index.garbage(9)] == [1]


def test_one_committer(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    make(index, b"f")
    batch = index.seal()
    assert batch is not None

    def write(_batch: Batch, _transaction: object) -> None:
        make(index, b"meanwhile")
        with pytest.raises(RuntimeError):
            index.seal()

    with monkeypatch.context() as patch:
        patch.setattr(Batch, "write", write)
        index.commit(batch)
    index.sync()
    assert index.lookup(1, b"meanwhile")


def test_identity_beyond_the_cache(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "INODE_CACHE_MAX", 50)
    monkeypatch.setattr(names, "DENTRY_CACHE_MAX", 50)
    held, pinned = make(index, b"held"), make(index, b"pinned")
    index.pin(pinned)
    pinned.data = object()
    made = [make(index, b"%d" % i).ino for i in range(500)]
    index.sync()
    assert len(index._cache) <= 52
    assert len(index._names) <= 50
    assert pinned.ino in index._cache
    assert held.ino not in index._cache
    assert index.inode(held.ino) is held
    data, number = pinned.data, pinned.ino
    del pinned
    gc.collect()
    assert index.inode(number).data is data
    index.unpin(index.inode(number))
    assert [index.inode(ino).name for ino in made] == [b"%d" % i for i in range(500)]
    # Changed after it has left the cache: still the one object, and written.
    held.mode = FILE | 0o111
    index.touch(held)
    for ino in made:
        index.inode(ino)
    del held
    gc.collect()
    assert index.resolve(b"/held").mode == FILE | 0o111


def test_all_pinned(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "INODE_CACHE_MAX", 20)
    for i in range(200):
        index.pin(make(index, b"%d" % i))
    assert len(index._cache) >= 200
    for i in range(200):
        index.unpin(index.resolve(b"/%d" % i))
    for i in range(200, 400):
        make(index, b"%d" % i)
    assert len(index._cache) <= 21


def test_huge_file_is_dropped_in_pieces(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refs, "DROP_COUNT_MAX", 10)
    file = make(index, b"sparse")
    chunks = [i * 10**12 for i in range(45)]
    index.set_refs(file, [(chunk, ref(i + 1)) for i, chunk in enumerate(chunks)])
    index.sync()
    assert index.drop_refs(file, chunks[40], chunks[41]) is None
    assert len(index.refs(file.ino)) == 43
    assert index.drop_refs(file, chunks[20] + 1) == chunks[31]
    assert index.drop_refs(file, chunks[31]) == chunks[43]
    assert index.drop_refs(file, chunks[43]) is None
    assert index.refs(file.ino, chunks[19]) == [(chunks[19], ref(20)), (chunks[20], ref(21))]
    index.unlink(index.inode(1), b"sparse", 2)
    index.set_xattr(file, b"user.a", b"1", now_ns=3)
    assert not index.reap(file)
    index.sync()
    index.set_refs(file, [(3, ref(99))])  # a flush that came too late
    assert not index.reap(file)
    assert index.reap(file)
    assert index.reap(file)
    index.touch(file)
    index.sync()
    with pytest.raises(PosixError) as caught:
        index.inode(file.ino)
    assert caught.value.errno == errno.ESTALE
    assert index.counters() == (0, 1, 0, 0)
    assert index.orphans(9) == []
    assert {key.generation for key, _ in index.garbage(1000)} == {*range(1, 46), 99}
    for database in (records.REFS, records.XATTRS, records.ORPHANS, records.DENTRIES):
        assert index.rows(database) == []
    assert len(index.rows(records.INODES)) == 1


def test_orphans_after_a_crash(path: str) -> None:
    index = open_volume(path)
    file = make(index, b"open")
    index.set_refs(file, [(0, ref(1))])
    index.unlink(index.inode(1), b"open", 2)
    index.sync()
    index.abandon()
    index = open_volume(path)
    assert index.orphans(5) == [file.ino]
    assert index.orphans(5, after=file.ino) == []
    assert index.reap(index.inode(file.ino))
    index.close()
    index = open_volume(path)
    assert index.orphans(5) == []
    assert index.counters() == (0, 1, 0, 0)
    index.close()


def test_garbage_only_when_committed(index: Index) -> None:
    file = make(index, b"f")
    index.set_refs(file, [(0, ref(1))])
    index.set_refs(file, [(0, ref(1)._replace(stores=(2,)))])  # healed: the same generation
    index.sync()
    assert index.garbage(9) == []
    index.set_refs(file, [(0, ref(2))])
    index.add_garbage(ChunkKey(7, 7, 7), [3, 4])
    batch = index.seal()
    assert batch is not None
    assert index.garbage(9) == []
    index.commit(batch)
    expected = [(ChunkKey(file.ino, 0, 1), (2,)), (ChunkKey(7, 7, 7), (3, 4))]
    assert index.garbage(9) == expected
    assert index.garbage(1) == expected[:1]
    assert index.garbage(9, after=expected[0][0]) == expected[1:]
    index.forget_garbage([expected[0][0]])
    assert index.garbage(9) == expected[1:]
    index.sync()
    assert index.garbage(9) == expected[1:]


def test_xattr_limits(index: Index) -> None:
    file = make(index, b"f")

    def failing(code: int, name: bytes, value: bytes = b"", flags: int = 0) -> None:
        with pytest.raises(PosixError) as caught:
            index.set_xattr(file, name, value, flags, now_ns=2)
        assert errno.errorcode[caught.value.errno] == errno.errorcode[code]

    failing(errno.ERANGE, b"")
    failing(errno.ERANGE, b"n" * 256)
    failing(errno.E2BIG, b"user.a", b"v" * (64 * 1024 + 1))
    failing(errno.ENODATA, b"user.a", b"", 2)
    failing(errno.EINVAL, b"user.a", b"", 4)
    index.set_xattr(file, b"user.a", b"v" * 64 * 1024, 1, now_ns=2)
    failing(errno.EEXIST, b"user.a", b"", 1)
    for i in range(255):
        index.set_xattr(file, b"%0255d" % i, b"", now_ns=2)
    index.sync()
    failing(errno.ENOSPC, b"n" * 255)
    assert len(index.list_xattrs(file)) == 256
    assert index.get_xattr(file, b"user.a") == b"v" * 64 * 1024
    index.set_xattr(file, b"user.a", b"", 2, now_ns=2)
    for name in index.list_xattrs(file):
        index.remove_xattr(file, name, now_ns=3)
    assert not file.flags & records.FLAG_XATTRS
    for call in (index.get_xattr, lambda i, n: index.remove_xattr(i, n, now_ns=4)):
        with pytest.raises(PosixError) as caught:
            call(file, b"user.a")
        assert caught.value.errno == errno.ENODATA
