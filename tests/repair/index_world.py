"""An index on disk with every kind of thing in it, to be broken row by row and checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG

from mpifs.core import records
from mpifs.core.records import InodeRecord, inode_key
from mpifs.core.types import ChunkKey, ChunkRef
from mpifs.index.amendment import Amendment
from mpifs.index.index import Index
from mpifs.index.inode import Inode
from mpifs.index.raw import RawIndex
from mpifs.kv import Environment
from mpifs.repair.check_index import check_index
from mpifs.repair.findings import Finding, Progress
from mpifs.repair.volume import VolumeView
from mpifs.repair.volume_offline import OfflineVolume
from tests.index.volumes import make_volume, open_volume

CHUNK = 1 << 20
FILE = S_IFREG | 0o640
FOLDER = S_IFDIR | 0o750
Row = tuple[str, bytes]


class Tree:
    """Makes files in an open index; every inode by its path in `ino`."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.ino: dict[str, int] = {"/": 1}
        self._now = 1_700_000_000 * 10**9

    def make(self, path: str, mode: int = FILE, *, chunks: int = 0, target: bytes = b"") -> Inode:
        self._now += 1_000_003
        parent, _, name = path.rpartition("/")
        above = self.index.inode(self.ino[parent or "/"])
        made = self.index.create(
            above, os.fsencode(name), mode, 1000, 100, target=target, now_ns=self._now
        )
        self.ino[path] = made.ino
        if chunks:
            self.fill(made, chunks)
        return made

    def fill(self, inode: Inode, chunks: int) -> None:
        lengths = [CHUNK] * (chunks - 1) + [1000 + inode.ino]
        refs = [
            (i, ChunkRef(self.index.next_generation(), n, bytes([i % 251]) * 16, (1 + i % 4,)))
            for i, n in enumerate(lengths)
        ]
        self.index.set_refs(inode, refs)
        inode.size = inode.stable_size = sum(lengths)
        self.index.touch(inode)

    def link(self, old: str, new: str) -> None:
        parent, _, name = new.rpartition("/")
        inode = self.index.inode(self.ino[old])
        above = self.index.inode(self.ino[parent or "/"])
        self.index.link(inode, above, os.fsencode(name), self._now)
        self.ino[new] = inode.ino

    def unlink(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        self.index.unlink(self.index.inode(self.ino[parent or "/"]), os.fsencode(name), self._now)


def build(folder: Path | str) -> dict[str, int]:
    """A volume without any fault or leftover; gives the inode numbers by path."""
    index = open_volume(make_volume(folder), reserve=64)
    tree = Tree(index)
    for path in ("/a", "/a/b", "/a/b/c", "/d", "/empty", "/d/e"):
        tree.make(path, FOLDER)
    for number in range(20):
        tree.make(f"/a/file{number}", chunks=number % 4)
    for path in ("/a/b/deep", "/a/b/c/deeper", "/d/one", "/d/e/two", "/top"):
        tree.make(path, chunks=2)
    tree.make("/d/many", chunks=40)
    tree.make("/d/link", S_IFLNK | 0o777, target=b"../a/b")
    tree.make("/d/fifo", S_IFIFO | 0o600)
    for number in range(3):
        tree.make(f"/d/hard{number}", chunks=1)
        tree.link(f"/d/hard{number}", f"/a/b/other{number}")
    tree.link("/d/hard0", "/d/e/third")
    tree.unlink("/a/b/other1")  # its newest name: the record tells none now
    for path, count in (("/top", 3), ("/d/one", 1), ("/a", 2), ("/d/link", 1)):
        for number in range(count):
            inode = index.inode(tree.ino[path])
            index.set_xattr(inode, b"user.x%d" % number, b"value %d" % number, now_ns=5)
    index.set_xattr(index.inode(tree.ino["/top"]), b"user.big", os.urandom(3000), now_ns=5)
    for number in range(3):
        index.add_garbage(ChunkKey(9, number, index.next_generation()), (1, 2))
    del tree.ino["/a/b/other1"]
    index.close()
    return tree.ino


class World:
    """A volume's index at rest, with the tools to break it."""

    def __init__(self, folder: Path, ino: dict[str, int]) -> None:
        self.path = os.fspath(folder / "index")
        self.ino = ino

    @contextmanager
    def environment(self) -> Iterator[Environment]:
        environment = Environment(self.path, records.DATABASES, sync="relaxed", preallocate=False)
        try:
            yield environment
        finally:
            environment.close()

    def rows(self) -> dict[Row, bytes]:
        with self.environment() as environment, environment.read() as transaction:
            return {
                (database, bytes(key)): bytes(value)
                for database in records.DATABASES
                for key, value in transaction.scan(database)
            }

    def write(self, changes: dict[Row, bytes | None]) -> None:
        with self.environment() as environment, environment.write() as transaction:
            for (database, key), value in changes.items():
                if value is None:
                    assert transaction.delete(database, key), (database, key)
                else:
                    transaction.put(database, key, value)

    def record(self, path: str) -> InodeRecord:
        return self.inode(self.ino[path])

    def inode(self, ino: int) -> InodeRecord:
        key = inode_key(ino)
        return records.decode_inode(key, self.rows()[records.INODES, key], InodeRecord)

    def put_inode(self, record: InodeRecord) -> None:
        self.write({(records.INODES, inode_key(record.ino)): records.encode_inode(record)})

    def entry(self, path: str) -> Row:
        """Place of the entry of a path."""
        parent, _, name = path.rpartition("/")
        return records.DENTRIES, records.name_key(self.ino[parent or "/"], os.fsencode(name))

    @contextmanager
    def view(self, copy: dict[Row, bytes] | None = None) -> Iterator[OfflineVolume]:
        index = RawIndex.open(self.path)
        try:
            yield OfflineVolume(index, None if copy is None else lambda d, k: copy.get((d, k)))
        finally:
            index.close()

    def check(self, copy: dict[Row, bytes] | None = None) -> list[Finding]:
        with self.view(copy) as view:
            return list(check_index(view, Progress()))

    def repair(self, copy: dict[Row, bytes] | None = None, rounds: int = 8) -> list[Finding]:
        """Rounds until one finds nothing; all findings."""
        with self.view(copy) as view:
            return repair(view, rounds)

    def repair_until(self, amendments: int, copy: dict[Row, bytes] | None = None) -> bool:
        """Repairs, and dies before the amendment after so many; False if there were no more."""
        with self.view(copy) as view:
            left = amendments
            amend = view.amend

            def mortal(amendment: Amendment) -> bool:
                nonlocal left
                if not left:
                    raise DeadError
                left -= 1
                return amend(amendment)

            view.amend = mortal  # type: ignore[method-assign]
            try:
                repair(view)
            except DeadError:
                return True
        return False


class DeadError(Exception):
    """The process that repaired is no more."""


def repair(view: VolumeView, rounds: int = 8) -> list[Finding]:
    """Rounds of checks and remedies until one finds nothing to repair; all findings."""
    found: list[Finding] = []
    for _ in range(rounds):
        these = []
        for finding in check_index(view, Progress()):
            these.append(finding)
            if finding.remedy is not None:
                finding.repaired = finding.remedy()
        found += these
        if not any(finding.repaired for finding in these):
            return found
    raise AssertionError(f"no end after {rounds} rounds: {found[-3:]}")


def copy_of(source: Path, target: Path, ino: dict[str, int]) -> World:
    """The same volume in another folder."""
    shutil.copytree(source, target)
    return World(target, ino)


def facts(findings: list[Finding]) -> list[tuple[str, bytes | None, int | None]]:
    """What of findings a test compares."""
    return sorted(((f.check, f.path, f.inode) for f in findings), key=repr)
