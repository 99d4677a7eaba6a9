"""Absent names: of a directory known with all its names no search, and never a wrong answer."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from stat import S_IFDIR, S_IFREG

import pytest

from mpifs.core import records
from mpifs.core.errors import DamageError, PosixError
from mpifs.core.records import DENTRIES, INODES, InodeRecord
from mpifs.index import inodes as inodes_module
from mpifs.index import names as names_module
from mpifs.index.amendment import Amendment, RowKey
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.kv import Environment, ReadTransaction
from tests.index.volumes import make_volume, open_volume

DIR = S_IFDIR | 0o755
FILE = S_IFREG | 0o644
LONG = b"n" * 256


class Reads:
    """How often the disk was asked."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, index: Index, parent: int, *names: bytes) -> int:
        """Reads for looking up names that are not there."""
        before = self.count
        for name in names:
            assert index.lookup(parent, name) == 0
        return self.count - before


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    reads, real = Reads(), Environment.read

    def read(environment: Environment) -> ReadTransaction:
        reads.count += 1
        return real(environment)

    monkeypatch.setattr(Environment, "read", read)
    return reads


def make(index: Index, parent: int, name: bytes, mode: int = FILE) -> int:
    return index.create(index.inode(parent), name, mode, 0, 0, now_ns=1).ino


def fill(index: Index, parent: int, count: int) -> dict[bytes, int]:
    """Names b"0", b"1", …"""
    return {b"%d" % n: make(index, parent, b"%d" % n) for n in range(count)}


def absent(count: int) -> list[bytes]:
    return [b"absent %d" % number for number in range(count)]


def check(index: Index, parent: int, expected: dict[bytes, int], *gone: bytes) -> None:
    """All names that are there, and some that are not."""
    for name, ino in expected.items():
        assert index.lookup(parent, name) == ino, name
    for name in (b"", b"absent", b"..", b"00", *gone):
        assert index.lookup(parent, name) == 0, name
    assert {name: ino for name, ino, _ in index.entries(parent, limit=10_000)} == expected


@pytest.fixture
def old(path: str) -> Iterator[tuple[Index, int, dict[bytes, int]]]:
    """A directory of 20 names that was there when the index was opened."""
    index = open_volume(path)
    parent = make(index, 1, b"old", DIR)
    entries = fill(index, parent, 20)
    index.close()
    index = open_volume(path)
    index.inode(parent)  # whoever looks up in it knows it
    yield index, parent, entries
    index.abandon()


def test_a_new_directory_is_never_searched(index: Index, reads: Reads) -> None:
    new = make(index, 1, b"new", DIR)
    for number in range(200):
        assert reads.of(index, new, b"%d" % number) == 0
        make(index, new, b"%d" % number)
    index.sync()
    assert reads.of(index, new, *absent(100)) == 0
    index._cache.clear()
    assert reads.of(index, new, *absent(100)) == 0
    check(index, new, {b"%d" % n: index.lookup(new, b"%d" % n) for n in range(200)})


def test_it_stays_known_through_changes(index: Index, reads: Reads) -> None:
    new, other = make(index, 1, b"new", DIR), make(index, 1, b"other", DIR)
    entries = fill(index, new, 10)
    here, there = index.inode(new), index.inode(other)
    index.sync()
    before = reads.count
    index.unlink(here, b"0", 1)
    index.rename(here, b"1", there, b"x", 0, 1)
    index.rename(here, b"2", here, b"y", 0, 1)
    index.rename(here, b"3", here, b"4", 0, 1)  # over another one
    index.rename(here, b"5", there, b"x", 2, 1)  # an exchange
    index.link(index.inode(entries[b"6"]), here, b"z", 1)
    check_names = {
        b"y": entries[b"2"],
        b"4": entries[b"3"],
        b"5": entries[b"1"],
        b"z": entries[b"6"],
        **{name: entries[name] for name in (b"6", b"7", b"8", b"9")},
    }
    gone = (b"0", b"1", b"2", b"3")
    assert reads.of(index, new, *gone) == 0
    assert reads.count == before
    for _ in range(2):
        check(index, new, check_names, *gone)
        check(index, other, {b"x": entries[b"5"]}, b"1")
        index.sync()
    assert index.rename(there, b"x", here, b"0", 0, 1) is None
    check(index, new, {**check_names, b"0": entries[b"5"]}, b"1")
    check(index, other, {}, b"x")


def test_a_removed_directory_and_its_successor(index: Index, reads: Reads) -> None:
    first = make(index, 1, b"d", DIR)
    make(index, first, b"f")
    index.sync()
    index.unlink(index.inode(first), b"f", 1)
    index.rmdir(index.inode(1), b"d", 1)
    assert reads.of(index, first, b"f") == 0
    second = make(index, 1, b"d", DIR)
    assert second != first
    assert reads.of(index, second, b"f", b"g") == 0
    ino = make(index, second, b"f")
    index.sync()
    check(index, second, {b"f": ino}, b"g")
    assert index.lookup(first, b"f") == 0
    third = make(index, 1, b"e", DIR)
    assert index.rename(index.inode(1), b"e", index.inode(1), b"d2", 0, 1) is None
    ino = make(index, third, b"f")
    check(index, third, {b"f": ino})


@pytest.mark.parametrize("is_synced", [False, True])
def test_names_that_left_the_cache(
    index: Index, reads: Reads, monkeypatch: pytest.MonkeyPatch, is_synced: bool
) -> None:
    """One name that leaves, by its own directory or by another one: it may be there."""
    monkeypatch.setattr(names_module, "DENTRY_CACHE_MAX", 30)
    first, second = make(index, 1, b"first", DIR), make(index, 1, b"second", DIR)
    some = fill(index, first, 20)
    assert first in index._complete
    more = fill(index, second, 40)
    assert not index._complete & {first, second}
    if is_synced:
        index.sync()
    for _ in range(3):
        check(index, first, some)
        check(index, second, more)
    make(index, make(index, 1, b"third", DIR), b"0")
    check(index, first, some)
    assert len(index._names) <= 30


@pytest.mark.parametrize("is_learned", [False, True])
def test_after_an_amendment(path: str, is_learned: bool) -> None:
    """Repair changes names behind the caches' back."""
    index = open_volume(path)
    parent = make(index, 1, b"d", DIR)
    entries = fill(index, parent, 6)
    index.sync()
    if is_learned:
        index.close()
        index = open_volume(path)
        index.inode(parent)
        for name in absent(10):
            assert index.lookup(parent, name) == 0
    assert parent in index._complete
    key = records.name_key(parent, b"found")
    row = records.encode_dentry(key, entries[b"0"], FILE >> 12)
    assert index.amend(Amendment({RowKey(DENTRIES, key): row}))
    check(index, parent, {**entries, b"found": entries[b"0"]})
    assert index.amend(Amendment({RowKey(DENTRIES, records.name_key(parent, b"1")): None}))
    del entries[b"1"]
    check(index, parent, {**entries, b"found": entries[b"0"]}, b"1")
    index.abandon()


def test_a_small_directory_is_learned(
    old: tuple[Index, int, dict[bytes, int]], reads: Reads
) -> None:
    """After as many vain searches as its names are worth, and not at the first one."""
    index, parent, entries = old
    assert reads.of(index, parent, b"absent") == 1
    assert parent not in index._complete
    assert 3 <= reads.of(index, parent, *absent(20)) <= 8
    assert reads.of(index, parent, *absent(100)) == 0
    before = reads.count
    for name, ino in entries.items():
        assert index.lookup(parent, name) == ino
    assert reads.count == before
    assert parent not in index._absences
    check(index, parent, entries)
    make(index, parent, b"more")
    index.unlink(index.inode(parent), b"7", 1)
    del entries[b"7"]
    assert reads.of(index, parent, b"7", b"absent") == 0
    check(index, parent, {**entries, b"more": index.lookup(parent, b"more")}, b"7")


def test_it_is_learned_with_what_is_not_committed(
    old: tuple[Index, int, dict[bytes, int]], reads: Reads
) -> None:
    index, parent, entries = old
    here = index.inode(parent)
    index.unlink(here, b"3", 1)
    index.seal()
    entries[b"sealed"] = make(index, parent, b"sealed")
    index.unlink(here, b"4", 1)
    reads.of(index, parent, *absent(30))
    assert parent in index._complete
    assert reads.of(index, parent, b"3", b"4") == 0
    del entries[b"3"], entries[b"4"]
    check(index, parent, entries, b"3", b"4")


def test_a_large_directory_is_searched(
    old: tuple[Index, int, dict[bytes, int]], reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, parent, entries = old
    monkeypatch.setattr(names_module, "COMPLETED_ENTRIES_MAX", len(entries) - 1)
    assert reads.of(index, parent, *absent(50)) == 50
    assert not index._complete
    assert not index._absences
    monkeypatch.setattr(names_module, "COMPLETED_ENTRIES_MAX", len(entries))
    assert reads.of(index, parent, *absent(50)) < 10
    check(index, parent, entries)


def test_a_directory_that_counts_wrongly_is_searched(
    old: tuple[Index, int, dict[bytes, int]], reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More names than it says, and than would be read."""
    index, parent, entries = old
    monkeypatch.setattr(names_module, "COMPLETED_ENTRIES_MAX", len(entries) - 1)
    index.inode(parent).size = 5
    reads.of(index, parent, *absent(20))
    assert parent not in index._complete
    check(index, parent, entries)


def test_a_damaged_directory_is_searched(path: str, reads: Reads) -> None:
    """Its damage is told to whoever wants that name, to nobody else."""
    index = open_volume(path)
    parent = make(index, 1, b"old", DIR)
    entries = fill(index, parent, 20)
    index.close()
    environment = Environment(path, records.DATABASES)
    key = records.name_key(parent, b"7")
    with environment.write() as rows:
        row = rows.get(DENTRIES, key)
        assert row is not None
        rows.put(DENTRIES, key, bytes([row[0] ^ 1]) + bytes(row[1:]))
    environment.close()
    index = open_volume(path)
    index.inode(parent)
    for name in absent(50):
        assert reads.of(index, parent, name) >= 1
    assert parent not in index._complete
    del entries[b"7"]
    for name, ino in entries.items():
        assert index.lookup(parent, name) == ino
    with pytest.raises(DamageError):
        index.lookup(parent, b"7")
    index.abandon()


def test_learning_does_not_outgrow_the_cache(
    old: tuple[Index, int, dict[bytes, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory whose names do not all fit in is not known."""
    index, parent, entries = old
    monkeypatch.setattr(names_module, "DENTRY_CACHE_MAX", 8)
    for _ in range(3):
        for name in absent(20):
            assert index.lookup(parent, name) == 0
        assert parent not in index._complete
        check(index, parent, entries)
    assert len(index._names) <= 8


def test_what_is_known_is_bounded(path: str, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "COMPLETE_DIRECTORIES_MAX", 5)
    index = open_volume(path)
    parents = [make(index, 1, b"d%d" % number, DIR) for number in range(23)]
    assert 0 < len(index._complete) <= 5
    assert parents[-1] in index._complete
    entries = {parent: fill(index, parent, 8) for parent in parents}
    index.sync()
    for parent in parents:
        check(index, parent, entries[parent])
    index.close()
    index = open_volume(path)
    for turn in range(6):
        for parent in parents:
            index.inode(parent)
            assert reads.of(index, parent, b"%d absent" % turn) <= 2
            assert len(index._absences) <= 5
            assert len(index._complete) <= 5
    for parent in parents:
        reads.of(index, parent, *absent(10))
        assert len(index._complete) <= 5
        check(index, parent, entries[parent])
    assert index._complete
    index.abandon()


def too_long(index: Index, parent: int) -> None:
    with pytest.raises(PosixError) as caught:
        index.lookup(parent, LONG)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert index.lookup(parent, LONG[1:]) == 0


def test_names_that_are_too_long(old: tuple[Index, int, dict[bytes, int]], reads: Reads) -> None:
    """Whatever is known of the directory."""
    index, parent, _ = old
    new = make(index, 1, b"new", DIR)
    before = reads.count
    too_long(index, new)
    assert reads.count == before
    for _ in range(20):
        too_long(index, parent)
    assert parent in index._complete
    index._complete.clear()
    too_long(index, new)
    make(index, new, LONG[1:])
    index.sync()
    index._names.clear()
    for directory in (new, parent):
        with pytest.raises(PosixError) as caught:
            index.resolve(index.path_of(directory) + b"/" + LONG)
        assert caught.value.errno == errno.ENAMETOOLONG
    assert index.lookup(new, LONG[1:])


class Model:
    """Directories as dicts, beside an index whose caches hold hardly anything."""

    def __init__(self, path: str, seed: int) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.index = open_volume(path)
        self.tree: dict[int, dict[bytes, int]] = {1: {}}
        self.where: dict[int, int] = {}

    def name(self) -> bytes:
        return b"%d" % self.chance.randrange(9)

    def here(self) -> int:
        return self.chance.choice(list(self.tree))

    def live(self, ino: int) -> Inode:
        return self.index.inode(ino)

    def create(self) -> None:
        parent, name = self.here(), self.name()
        if name in self.tree[parent]:
            return
        is_directory = len(self.tree) < 8 and self.chance.random() < 0.3
        ino = make(self.index, parent, name, DIR if is_directory else FILE)
        self.tree[parent][name] = ino
        if is_directory:
            self.tree[ino] = {}
            self.where[ino] = parent

    def remove(self) -> None:
        parent, name = self.here(), self.name()
        ino = self.tree[parent].get(name)
        if ino is None or self.tree.get(ino):
            return
        if ino in self.tree:
            self.index.rmdir(self.live(parent), name, 1)
            del self.tree[ino]
        else:
            self.index.unlink(self.live(parent), name, 1)
        del self.tree[parent][name]

    def link(self) -> None:
        parent, name, to, new = self.here(), self.name(), self.here(), self.name()
        ino = self.tree[parent].get(name)
        if ino is None or ino in self.tree or new in self.tree[to]:
            return
        self.index.link(self.live(ino), self.live(to), new, 1)
        self.tree[to][new] = ino

    def rename(self) -> None:
        """Of what is no directory, or of one to a free name that is not below it."""
        parent, name, to, new = self.here(), self.name(), self.here(), self.name()
        ino, there = self.tree[parent].get(name), self.tree[to].get(new)
        if ino is None or ino == there or there in self.tree:
            return
        if ino in self.tree:
            above = to
            while above not in (1, ino):
                above = self.where[above]
            if above == ino or there is not None:
                return
            self.where[ino] = to
        flags = 2 if there is not None and self.chance.random() < 0.5 else 0
        self.index.rename(self.live(parent), name, self.live(to), new, flags, 1)
        del self.tree[parent][name]
        if flags and there is not None:
            self.tree[parent][name] = there
        self.tree[to][new] = ino

    def amend(self) -> None:
        """As repair does: a file gets one more name, all in rows on disk."""
        parent, name, to, new = self.here(), self.name(), self.here(), self.name()
        ino = self.tree[parent].get(name)
        if ino is None or ino in self.tree or new in self.tree[to]:
            return
        self.index.sync()
        key = records.name_key(to, new)
        rows: dict[RowKey, bytes | None] = {
            RowKey(DENTRIES, key): records.encode_dentry(key, ino, FILE >> 12)
        }
        with self.index.snapshot() as snapshot:
            for number in (ino, to):
                row_key = records.inode_key(number)
                value = snapshot.get(INODES, row_key)
                assert value is not None
                record = records.decode_inode(row_key, value, InodeRecord)
                if number == ino:
                    record.nlink += 1
                else:
                    record.stable_size += 1
                rows[RowKey(INODES, row_key)] = records.encode_inode(record)
        assert self.index.amend(Amendment(rows))
        self.tree[to][new] = ino

    def sync(self) -> None:
        self.index.sync()

    def reopen(self) -> None:
        self.index.close()
        self.index = open_volume(self.path)

    def look(self) -> None:
        """Most names that are looked for are not there; so directories are learned."""
        parent = self.here()
        self.live(parent)
        for number in range(12):
            name = b"%d" % number
            assert self.index.lookup(parent, name) == self.tree[parent].get(name, 0), (parent, name)

    def check(self) -> None:
        for parent, entries in self.tree.items():
            check(self.index, parent, entries)


@pytest.mark.parametrize("seed", range(8))
def test_any_changes_with_a_tiny_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(names_module, "DENTRY_CACHE_MAX", 12)
    monkeypatch.setattr(names_module, "COMPLETE_DIRECTORIES_MAX", 3)
    monkeypatch.setattr(names_module, "COMPLETED_ENTRIES_MAX", 6)
    monkeypatch.setattr(inodes_module, "INODE_CACHE_MAX", 4)
    model = Model(make_volume(tmp_path), seed)
    known = 0
    actions = [model.create] * 6 + [model.remove, model.rename, model.link] * 3
    actions += [model.look] * 8 + [model.amend, model.sync, model.sync, model.reopen]
    for _ in range(2000):
        model.chance.choice(actions)()
        model.look()
        known += len(model.index._complete)
        assert len(model.index._complete) <= 3
        assert len(model.index._names) <= 12
    assert known > 200, "no directory was ever known"
    model.check()
    model.reopen()
    model.check()
    model.index.abandon()
