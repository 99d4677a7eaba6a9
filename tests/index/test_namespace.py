"""Errnos and details of changing names that the model test does not reach."""

from __future__ import annotations

import errno
from collections.abc import Callable
from stat import S_IFBLK, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_ISGID

import pytest

from mpifs.core import limits
from mpifs.core.errors import DamageError, PosixError
from mpifs.index.index import Index
from mpifs.index.inode import Inode

DIR = S_IFDIR | 0o755
FILE = S_IFREG | 0o644


def make(index: Index, path: bytes, mode: int = FILE, now_ns: int = 1, **more: bytes) -> Inode:
    parent, name = index.resolve_parent(path)
    return index.create(parent, name, mode, 1, 2, now_ns=now_ns, **more)


@pytest.fixture
def tree(index: Index) -> Index:
    """/d/e (directories), /d/f, /full/x, /link → d, /empty."""
    for path, mode in (
        (b"/d", DIR),
        (b"/d/e", DIR),
        (b"/full", DIR),
        (b"/empty", DIR),
        (b"/d/f", FILE),
        (b"/full/x", FILE),
    ):
        make(index, path, mode)
    make(index, b"/link", S_IFLNK | 0o777, target=b"d")
    return index


def rename(index: Index, old: bytes, new: bytes, flags: int = 0) -> object:
    a, old_name = index.resolve_parent(old)
    b, new_name = index.resolve_parent(new)
    return index.rename(a, old_name, b, new_name, flags, 9)


def unlink(index: Index, path: bytes) -> Inode:
    return index.unlink(*index.resolve_parent(path), 9)


def rmdir(index: Index, path: bytes) -> Inode:
    return index.rmdir(*index.resolve_parent(path), 9)


def link(index: Index, old: bytes, new: bytes) -> None:
    index.link(index.resolve(old), *index.resolve_parent(new), 9)


Case = tuple[str, Callable[[Index], object], int]
CASES: list[Case] = [
    ("create over a file", lambda x: make(x, b"/d/f"), errno.EEXIST),
    ("create over a directory", lambda x: make(x, b"/d"), errno.EEXIST),
    ("create without parent", lambda x: make(x, b"/no/f"), errno.ENOENT),
    ("create under a file", lambda x: make(x, b"/d/f/g"), errno.ENOTDIR),
    ("create under a link", lambda x: make(x, b"/link/g"), errno.ENOTDIR),
    ("create the root", lambda x: make(x, b"/"), errno.EBUSY),
    ("name too long", lambda x: make(x, b"/" + b"n" * 256), errno.ENAMETOOLONG),
    ("component too long", lambda x: x.resolve(b"/d/" + b"n" * 256 + b"/f"), errno.ENAMETOOLONG),
    ("lookup too long", lambda x: x.lookup(x.resolve(b"/d").ino, b"n" * 256), errno.ENAMETOOLONG),
    ("dot", lambda x: make(x, b"/d/."), errno.EINVAL),
    ("dot dot", lambda x: make(x, b"/d/.."), errno.EINVAL),
    ("NUL", lambda x: make(x, b"/d/a\0b"), errno.EINVAL),
    ("slash", lambda x: x.create(x.resolve(b"/"), b"a/b", FILE, 0, 0, now_ns=1), errno.EINVAL),
    ("empty name", lambda x: x.create(x.resolve(b"/"), b"", FILE, 0, 0, now_ns=1), errno.EINVAL),
    ("unknown type", lambda x: make(x, b"/q", 0o050000), errno.EINVAL),
    ("empty target", lambda x: make(x, b"/q", S_IFLNK), errno.ENOENT),
    ("long target", lambda x: make(x, b"/q", S_IFLNK, target=b"t" * 4096), errno.ENAMETOOLONG),
    ("resolve missing", lambda x: x.resolve(b"/d/no"), errno.ENOENT),
    ("resolve through a file", lambda x: x.resolve(b"/d/f/g"), errno.ENOTDIR),
    ("unlink a directory", lambda x: unlink(x, b"/d"), errno.EISDIR),
    ("unlink missing", lambda x: unlink(x, b"/no"), errno.ENOENT),
    ("rmdir a file", lambda x: rmdir(x, b"/d/f"), errno.ENOTDIR),
    ("rmdir a link", lambda x: rmdir(x, b"/link"), errno.ENOTDIR),
    ("rmdir full", lambda x: rmdir(x, b"/full"), errno.ENOTEMPTY),
    ("rmdir dot", lambda x: rmdir(x, b"/d/."), errno.EINVAL),
    ("rmdir dot dot", lambda x: rmdir(x, b"/d/.."), errno.ENOTEMPTY),
    ("rmdir missing", lambda x: rmdir(x, b"/no"), errno.ENOENT),
    ("link a directory", lambda x: link(x, b"/d", b"/q"), errno.EPERM),
    ("link over a file", lambda x: link(x, b"/d/f", b"/full/x"), errno.EEXIST),
    ("rename missing", lambda x: rename(x, b"/no", b"/q"), errno.ENOENT),
    ("rename into itself", lambda x: rename(x, b"/d", b"/d/q"), errno.EINVAL),
    ("rename into own subtree", lambda x: rename(x, b"/d", b"/d/e/q"), errno.EINVAL),
    ("rename over the parent", lambda x: rename(x, b"/d/f", b"/d"), errno.ENOTEMPTY),
    ("exchange with the parent", lambda x: rename(x, b"/d/f", b"/d", 2), errno.EINVAL),
    ("directory over a file", lambda x: rename(x, b"/empty", b"/d/f"), errno.ENOTDIR),
    ("file over a directory", lambda x: rename(x, b"/d/f", b"/empty"), errno.EISDIR),
    ("directory over a full one", lambda x: rename(x, b"/empty", b"/full"), errno.ENOTEMPTY),
    ("noreplace", lambda x: rename(x, b"/d/f", b"/full/x", 1), errno.EEXIST),
    ("noreplace itself", lambda x: rename(x, b"/d/f", b"/d/f", 1), errno.EEXIST),
    ("exchange with nothing", lambda x: rename(x, b"/d/f", b"/q", 2), errno.ENOENT),
    ("both flags", lambda x: rename(x, b"/d/f", b"/q", 3), errno.EINVAL),
    ("whiteout", lambda x: rename(x, b"/d/f", b"/q", 4), errno.EINVAL),
    ("rename to dot", lambda x: rename(x, b"/d/f", b"/."), errno.EINVAL),
    ("rename too long", lambda x: rename(x, b"/d/f", b"/" + b"n" * 256), errno.ENAMETOOLONG),
    ("no such inode", lambda x: x.inode(12345), errno.ESTALE),
]


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_errno(tree: Index, case: Case, committed: bool) -> None:
    if committed:
        tree.sync()
        tree._cache.clear()
        tree._names.clear()
        tree._complete.clear()
    before = [(i.ino, i.nlink, i.size) for i in map(tree.inode, range(1, 9))]
    with pytest.raises(PosixError) as caught:
        case[1](tree)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[case[2]]
    assert [(i.ino, i.nlink, i.size) for i in map(tree.inode, range(1, 9))] == before


def test_links_max(tree: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINKS_MAX", 3)
    make(tree, b"/empty/1", DIR)
    calls: list[Callable[[], object]] = [
        lambda: make(tree, b"/empty/2", DIR),
        lambda: rename(tree, b"/d/e", b"/empty/2"),
    ]
    make(tree, b"/empty/f")
    calls.append(lambda: rename(tree, b"/d/e", b"/empty/f", 2))
    for name in (b"/l1", b"/l2"):
        link(tree, b"/d/f", name)
    calls.append(lambda: link(tree, b"/d/f", b"/l3"))
    for call in calls:
        with pytest.raises(PosixError) as caught:
            call()
        assert caught.value.errno == errno.EMLINK
    rename(tree, b"/d/e", b"/empty/1")  # takes the place of a directory: the count stays
    assert tree.resolve(b"/empty").nlink == 3


def test_removed_directory_takes_nothing(tree: Index) -> None:
    gone = rmdir(tree, b"/empty")
    assert (gone.nlink, tree.orphans(9)) == (0, [gone.ino])
    file = tree.resolve(b"/d/f")
    for call in (
        lambda: tree.create(gone, b"a", FILE, 0, 0, now_ns=1),
        lambda: tree.link(file, gone, b"a", 1),
        lambda: tree.rename(tree.resolve(b"/d"), b"f", gone, b"a", 0, 1),
    ):
        with pytest.raises(PosixError) as caught:
            call()
        assert caught.value.errno == errno.ENOENT
    unlink(tree, b"/d/f")
    with pytest.raises(PosixError) as caught:
        tree.link(file, tree.resolve(b"/d"), b"again", 1)
    assert caught.value.errno == errno.ENOENT


def test_inheritance(index: Index) -> None:
    top = make(index, b"/top", DIR | S_ISGID)
    assert top.gid == 2
    top.gid = 77
    top.chunk_size, top.replicas = 4096, 3
    index.touch(top)
    sub = make(index, b"/top/sub", DIR)
    file = make(index, b"/top/sub/file")
    assert (sub.gid, bool(sub.mode & S_ISGID), sub.chunk_size, sub.replicas) == (77, True, 4096, 3)
    assert (file.gid, bool(file.mode & S_ISGID), file.chunk_size) == (77, False, 4096)


def test_types_times_and_reopening(path: str) -> None:
    from tests.index.volumes import open_volume

    index = open_volume(path)
    make(index, b"/pipe", S_IFIFO | 0o600, now_ns=-(2**62) * 1000)
    device = index.create(
        index.inode(1),
        b"disk",
        S_IFBLK | 0o600,
        0,
        0,
        rdev=2**40 + 7,
        now_ns=2**34 * 10**9 + 999_999_999,
    )
    plain = index.create(index.inode(1), b"plain", 0o600, 2**32 - 2, 2**32 - 2, now_ns=5)
    assert plain.mode == S_IFREG | 0o600
    plain.size = 10**15
    index.touch(plain)
    numbers = (device.ino, plain.ino)
    index.close()
    index = open_volume(path)
    assert index.resolve(b"/pipe").mtime_ns == -(2**62) * 1000
    device = index.resolve(b"/disk")
    assert (device.rdev, device.mtime_ns % 10**9) == (2**40 + 7, 999_999_999)
    plain = index.resolve(b"/plain")
    assert (device.ino, plain.ino) == numbers
    assert plain.size == plain.stable_size == 0  # only the stable size is stored
    assert plain.uid == 2**32 - 2
    index.close()


def test_newest_name_and_paths(tree: Index) -> None:
    file = tree.resolve(b"/d/f")
    assert tree.path_of(file.ino) == b"/d/f"
    link(tree, b"/d/f", b"/full/second")
    assert tree.path_of(file.ino) == b"/full/second"
    unlink(tree, b"/d/f")
    assert tree.path_of(file.ino) == b"/full/second"
    rename(tree, b"/full", b"/d/e/deep")
    assert tree.path_of(file.ino) == b"/d/e/deep/second"
    link(tree, b"/d/e/deep/second", b"/third")
    unlink(tree, b"/third")
    assert tree.path_of(file.ino) == b"(inode %d)" % file.ino
    assert tree.path_of(1) == b"/"
    assert tree.path_of(999) == b"(inode 999)"


def test_dentry_to_nowhere_is_damage(tree: Index) -> None:
    file = tree.resolve(b"/d/f")
    tree._remove_inode(file)
    with pytest.raises(DamageError, match=f"names inode {file.ino}"):
        tree.resolve(b"/d/f")
    assert (b"f", file.ino, S_IFREG) in tree.entries(tree.resolve(b"/d").ino)


def test_directory_in_itself_is_damage(tree: Index) -> None:
    tree.resolve(b"/d").parent = tree.resolve(b"/d/e").ino
    with pytest.raises(DamageError, match="lies in itself"):
        rename(tree, b"/empty", b"/d/e/x")
    assert tree.path_of(tree.resolve(b"/d/e").ino).startswith(b"(inode ")


def test_long_paths(index: Index) -> None:
    path = b""
    for _ in range(40):
        path += b"/" + b"p" * 200
        made = make(index, path, DIR)
    assert index.resolve(path) is made
    assert index.path_of(made.ino) == path
    index.sync()
    index._names.clear()
    index._complete.clear()
    index._cache.clear()
    number = made.ino
    del made
    assert index.resolve(path + b"/").ino == number
