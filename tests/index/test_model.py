"""Random operations against a model that is obviously right, with commits, failures and crashes."""

from __future__ import annotations

import copy
import errno
import random
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpifs.core.errors import FullError, PosixError
from mpifs.core.types import ChunkRef
from mpifs.index.batch import Batch
from mpifs.index.inode import Inode
from tests.index.volumes import make_volume, open_volume

SOME_NAMES = [b"a", b"b", b"\xff\xfe", b"n" * 255]
NAMES = st.sampled_from(SOME_NAMES)
PICK = st.integers(0, 1000)


@dataclass
class Node:
    kind: int
    gid: int = 0
    setgid: bool = False
    target: bytes = b""
    mtime: int = 0
    ctime: int = 0
    entries: dict[bytes, int] = field(default_factory=dict)
    refs: dict[int, ChunkRef] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Model:
    """A tree of dicts.  Link counts and parents are counted, never kept."""

    def __init__(self, root: Inode) -> None:
        self.nodes = {1: Node(stat.S_IFDIR, root.gid, False, b"", root.mtime_ns, root.ctime_ns)}
        self.garbage: set[tuple[int, int, int]] = set()

    def is_dir(self, ino: int) -> bool:
        return self.nodes[ino].kind == stat.S_IFDIR

    def parents(self, ino: int) -> list[int]:
        return [n for n, node in self.nodes.items() for i in node.entries.values() if i == ino]

    def nlink(self, ino: int) -> int:
        if not self.is_dir(ino):
            return len(self.parents(ino))
        if ino != 1 and not self.parents(ino):
            return 0
        return 2 + sum(self.is_dir(i) for i in self.nodes[ino].entries.values())

    def lies_in(self, ino: int, ancestor: int) -> bool:
        while ino != ancestor:
            above = self.parents(ino)
            if ino == 1 or not above:
                return False
            ino = above[0]
        return True

    def stamp(self, now: int, *directories: int) -> None:
        for directory in directories:
            self.nodes[directory].mtime = self.nodes[directory].ctime = now


class Machine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="mpifs-index-")
        self.path = make_volume(self.folder)
        self.index = open_volume(self.path, reserve=64)
        self.model = Model(self.index.inode(1))
        self.durable = copy.deepcopy(self.model)
        self.sealed: Model | None = None
        self.batch: Batch | None = None
        self.now = -5_000_000_000
        self.inos_seen = {1}
        self.generations_seen: set[int] = {0}

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.abandon()
            shutil.rmtree(self.folder)

    # Choosing.
    def tick(self) -> int:
        self.now += 1_234_567_891
        return self.now

    def directory(self, pick: int) -> int:
        found = [i for i in self.model.nodes if self.model.is_dir(i)]
        return found[pick % len(found)]

    def any_node(self, pick: int) -> int:
        return list(self.model.nodes)[pick % len(self.model.nodes)]

    def agree(self, expected: int, call: Callable[[], object]) -> object:
        """Runs the call; its errno must be the expected one (0: none)."""
        if not expected:
            return call()
        with pytest.raises(PosixError) as caught:
            call()
        assert errno.errorcode[caught.value.errno] == errno.errorcode[expected]
        return None

    # Names.
    @rule(
        pick=PICK,
        name=NAMES,
        kind=st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO]),
        setgid=st.booleans(),
    )
    def create(self, pick: int, name: bytes, kind: int, setgid: bool) -> None:
        m, parent, now = self.model, self.directory(pick), self.tick()
        where = m.nodes[parent]
        expected = 0
        if not m.nlink(parent):
            expected = errno.ENOENT
        elif name in where.entries:
            expected = errno.EEXIST
        is_dir = kind == stat.S_IFDIR
        target = b"t/" + name if kind == stat.S_IFLNK else b""
        mode = kind | 0o640 | (stat.S_ISGID if setgid and is_dir else 0)
        made = self.agree(
            expected,
            lambda: self.index.create(
                self.index.inode(parent), name, mode, 5, 6, target=target, now_ns=now
            ),
        )
        if made is None:
            return
        assert isinstance(made, Inode)
        assert made.ino not in self.inos_seen, "number used twice"
        self.inos_seen.add(made.ino)
        gid = where.gid if where.setgid else 6
        bit = is_dir and (setgid or where.setgid)
        m.nodes[made.ino] = Node(kind, gid, bit, target, now, now)
        where.entries[name] = made.ino
        m.stamp(now, parent)

    @rule(pick=PICK, other=PICK, name=NAMES)
    def link(self, pick: int, other: int, name: bytes) -> None:
        m, parent, ino, now = self.model, self.directory(pick), self.any_node(other), self.tick()
        expected = 0
        if m.is_dir(ino):
            expected = errno.EPERM
        elif not m.nlink(parent):
            expected = errno.ENOENT
        elif name in m.nodes[parent].entries:
            expected = errno.EEXIST
        elif not m.nlink(ino):
            expected = errno.ENOENT
        self.agree(
            expected,
            lambda: self.index.link(self.index.inode(ino), self.index.inode(parent), name, now),
        )
        if not expected:
            m.nodes[parent].entries[name] = ino
            m.nodes[ino].ctime = now
            m.stamp(now, parent)

    @rule(pick=PICK, name=NAMES, is_rmdir=st.booleans())
    def remove(self, pick: int, name: bytes, is_rmdir: bool) -> None:
        m, parent, now = self.model, self.directory(pick), self.tick()
        ino = m.nodes[parent].entries.get(name, 0)
        expected = 0
        if not ino:
            expected = errno.ENOENT
        elif is_rmdir and not m.is_dir(ino):
            expected = errno.ENOTDIR
        elif is_rmdir and m.nodes[ino].entries:
            expected = errno.ENOTEMPTY
        elif not is_rmdir and m.is_dir(ino):
            expected = errno.EISDIR
        call = self.index.rmdir if is_rmdir else self.index.unlink
        gone = self.agree(expected, lambda: call(self.index.inode(parent), name, now))
        if not expected:
            assert isinstance(gone, Inode)
            assert gone.ino == ino
            del m.nodes[parent].entries[name]
            m.nodes[ino].ctime = now
            m.stamp(now, parent)

    @rule(a=PICK, b=PICK, old=NAMES, new=NAMES, flags=st.sampled_from([0, 0, 0, 1, 2, 3, 4]))
    def rename(self, a: int, b: int, old: bytes, new: bytes, flags: int) -> None:
        m, source, dest, now = self.model, self.directory(a), self.directory(b), self.tick()
        moved = m.nodes[source].entries.get(old, 0)
        there = m.nodes[dest].entries.get(new, 0)
        expected = self.rename_errno(source, dest, moved, there, flags)
        lost = self.agree(
            expected,
            lambda: self.index.rename(
                self.index.inode(source), old, self.index.inode(dest), new, flags, now
            ),
        )
        if expected or moved == there:
            assert lost is None
            return
        if flags == 2:
            m.nodes[source].entries[old] = there
            m.nodes[there].ctime = now
            assert lost is None
        else:
            del m.nodes[source].entries[old]
            assert (lost.ino if isinstance(lost, Inode) else 0) == there
            if there:
                m.nodes[there].ctime = now
        m.nodes[dest].entries[new] = moved
        m.nodes[moved].ctime = now
        m.stamp(now, source, dest)

    def rename_errno(self, source: int, dest: int, moved: int, there: int, flags: int) -> int:
        m = self.model
        if flags > 2:
            return errno.EINVAL
        if not m.nlink(dest) or not moved:
            return errno.ENOENT
        if there and flags == 1:
            return errno.EEXIST
        if not there and flags == 2:
            return errno.ENOENT
        if source != dest and m.is_dir(moved) and m.lies_in(dest, moved):
            return errno.EINVAL
        if source != dest and there and m.is_dir(there) and m.lies_in(source, there):
            return errno.EINVAL if flags == 2 else errno.ENOTEMPTY
        if not there or there == moved or flags == 2:
            return 0
        if m.is_dir(moved) and not m.is_dir(there):
            return errno.ENOTDIR
        if m.is_dir(there) and not m.is_dir(moved):
            return errno.EISDIR
        return errno.ENOTEMPTY if m.nodes[there].entries else 0

    # Refs, attributes, orphans, garbage.
    @rule(
        pick=PICK,
        chunks=st.lists(st.integers(0, 5), min_size=1, max_size=3),
        length=st.integers(1, 99),
    )
    def set_refs(self, pick: int, chunks: list[int], length: int) -> None:
        m, ino = self.model, self.any_node(pick)
        if m.nodes[ino].kind != stat.S_IFREG:
            return  # only regular files have chunks
        refs = []
        for chunk in chunks:
            generation = self.index.next_generation()
            assert generation not in self.generations_seen, "generation used twice"
            self.generations_seen.add(generation)
            refs.append((chunk, ChunkRef(generation, length, b"s" * 16, (1, 2))))
        inode = self.index.inode(ino)
        self.index.set_refs(inode, refs)
        inode.size = inode.stable_size = (
            7 * inode.chunk_size
        )  # what lies past it is dropped at load
        self.index.touch(inode)
        for chunk, ref in refs:
            self.drop_model_ref(ino, chunk)
            m.nodes[ino].refs[chunk] = ref

    def drop_model_ref(self, ino: int, chunk: int) -> None:
        old = self.model.nodes[ino].refs.pop(chunk, None)
        if old is not None:
            self.model.garbage.add((ino, chunk, old.generation))

    @rule(pick=PICK, first=st.integers(0, 6), count=st.one_of(st.none(), st.integers(0, 3)))
    def drop_refs(self, pick: int, first: int, count: int | None) -> None:
        ino = self.any_node(pick)
        last = None if count is None else first + count
        assert self.index.drop_refs(self.index.inode(ino), first, last) is None
        for chunk in list(self.model.nodes[ino].refs):
            if chunk >= first and (last is None or chunk <= last):
                self.drop_model_ref(ino, chunk)

    @rule(pick=PICK, name=NAMES, value=st.binary(max_size=5), flags=st.sampled_from([0, 0, 1, 2]))
    def set_xattr(self, pick: int, name: bytes, value: bytes, flags: int) -> None:
        ino, now = self.any_node(pick), self.tick()
        node = self.model.nodes[ino]
        expected = 0
        if flags == 1 and name in node.xattrs:
            expected = errno.EEXIST
        if flags == 2 and name not in node.xattrs:
            expected = errno.ENODATA
        inode = self.index.inode(ino)
        self.agree(expected, lambda: self.index.set_xattr(inode, name, value, flags, now_ns=now))
        if not expected:
            node.xattrs[name] = value
            node.ctime = now

    @rule(pick=PICK, name=NAMES)
    def remove_xattr(self, pick: int, name: bytes) -> None:
        ino, now = self.any_node(pick), self.tick()
        node = self.model.nodes[ino]
        expected = 0 if name in node.xattrs else errno.ENODATA
        inode = self.index.inode(ino)
        self.agree(expected, lambda: self.index.remove_xattr(inode, name, now_ns=now))
        if not expected:
            del node.xattrs[name]
            node.ctime = now

    @rule()
    def reap(self) -> None:
        for ino in self.index.orphans(2):
            assert not self.model.nlink(ino)
            assert self.index.reap(self.index.inode(ino))
            for chunk in list(self.model.nodes[ino].refs):
                self.drop_model_ref(ino, chunk)
            del self.model.nodes[ino]

    @rule()
    def forget_garbage(self) -> None:
        found = self.index.garbage(3)
        assert {tuple(key) for key, _ in found} <= self.durable.garbage
        assert all(stores == (1, 2) for _, stores in found)
        self.index.forget_garbage([key for key, _ in found])
        self.model.garbage -= {tuple(key) for key, _ in found}

    # Commits and crashes.
    @rule()
    def seal(self) -> None:
        batch = self.index.seal()
        if batch is not None:
            self.batch = batch
            self.sealed = copy.deepcopy(self.model)

    @precondition(lambda self: self.batch is not None)
    @rule()
    def commit(self) -> None:
        self.index.commit(self.batch)
        assert self.sealed is not None
        self.durable, self.batch = self.sealed, None

    @precondition(lambda self: self.batch is not None)
    @rule()
    def commit_fails(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Batch, "write", _full)
            with pytest.raises(FullError):
                self.index.commit(self.batch)

    @rule(is_crash=st.booleans())
    def reopen(self, is_crash: bool) -> None:
        if is_crash:
            self.index.abandon()
            self.model = copy.deepcopy(self.durable)
        else:
            self.index.close()
            self.durable = copy.deepcopy(self.model)
        self.batch = None
        self.index = open_volume(self.path, reserve=64)
        # What a crash lost was never durable; its numbers may not come again all the same.

    @rule()
    def forget_caches(self) -> None:
        self.index._cache.clear()
        self.index._names.clear()
        self.index._complete.clear()

    @invariant()
    def is_the_model(self) -> None:
        if not hasattr(self, "index"):
            return
        m, index = self.model, self.index
        for ino, node in m.nodes.items():
            self.check_node(ino, node)
        orphans = [i for i in m.nodes if not m.nlink(i)]
        assert index.orphans(1000) == sorted(orphans)
        counters = index.counters()
        directories = sum(m.is_dir(i) for i in m.nodes)
        stored = sum(ref.length for node in m.nodes.values() for ref in node.refs.values())
        assert counters == (len(m.nodes) - directories, directories, stored, len(orphans))
        listed = {tuple(key) for key, _ in index.garbage(100_000)}
        assert listed == self.durable.garbage & m.garbage

    def check_node(self, ino: int, node: Node) -> None:
        m, index = self.model, self.index
        inode = index.inode(ino)
        assert (stat.S_IFMT(inode.mode), inode.gid) == (node.kind, node.gid)
        assert bool(inode.mode & stat.S_ISGID) == node.setgid
        assert (inode.nlink, inode.target) == (m.nlink(ino), node.target)
        assert (inode.mtime_ns, inode.ctime_ns) == (node.mtime, node.ctime)
        expected = [(n, i, m.nodes[i].kind) for n, i in sorted(node.entries.items())]
        assert index.entries(ino) == expected
        paged = []
        while page := index.entries(ino, paged[-1][0] if paged else b"", 2):
            paged += page
        assert paged == expected
        if m.is_dir(ino):
            assert inode.size == len(expected)
        for name in (b"a", b"b", b"n" * 255):
            assert index.lookup(ino, name) == node.entries.get(name, 0)
        assert index.refs(ino) == sorted(node.refs.items())
        for chunk in range(7):
            assert index.ref(inode, chunk) == node.refs.get(chunk)
        assert inode.bytes_stored == sum(ref.length for ref in node.refs.values())
        assert index.list_xattrs(inode) == sorted(node.xattrs)
        for name, value in node.xattrs.items():
            assert index.get_xattr(inode, name) == value
        if inode.parent:
            assert ino == 1 or m.nodes[inode.parent].entries[inode.name] == ino


def _full(*_: object) -> None:
    raise FullError("the disk is full")


TestIndexModel = Machine.TestCase
TestIndexModel.settings = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("seed", range(12))
def test_long_random_runs(seed: int) -> None:
    """Hypothesis prefers short runs; trees deep and full enough need hundreds of steps."""
    rng = random.Random(seed)
    machine = Machine()
    machine.start()
    try:
        for step in range(500):
            _random_step(machine, rng)
            if step % 8 == 0:
                machine.is_the_model()
        machine.is_the_model()
    finally:
        machine.teardown()


def _random_step(machine: Machine, rng: random.Random) -> None:
    def pick() -> int:
        return rng.randrange(1000)

    def name() -> bytes:
        return rng.choice(SOME_NAMES)

    kinds = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFLNK]
    steps: list[tuple[int, Callable[[], None]]] = [
        (20, lambda: machine.create(pick(), name(), rng.choice(kinds), rng.random() < 0.2)),
        (4, lambda: machine.link(pick(), pick(), name())),
        (6, lambda: machine.remove(pick(), name(), rng.random() < 0.5)),
        (30, lambda: machine.rename(pick(), pick(), name(), name(), rng.choice([0, 0, 1, 2, 2]))),
        (8, lambda: machine.set_refs(pick(), [rng.randrange(6) for _ in range(3)], 9)),
        (3, lambda: machine.drop_refs(pick(), rng.randrange(6), rng.choice([None, 1]))),
        (4, lambda: machine.set_xattr(pick(), name(), b"v", rng.choice([0, 1, 2]))),
        (3, lambda: machine.remove_xattr(pick(), name())),
        (3, machine.reap),
        (2, machine.forget_garbage),
        (8, machine.seal),
        (4, lambda: machine.commit() if machine.batch else None),
        (2, lambda: machine.commit_fails() if machine.batch else None),
        (1, lambda: machine.reopen(rng.random() < 0.7)),
        (3, machine.forget_caches),
    ]
    rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()
