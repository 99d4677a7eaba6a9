"""lost+found: the directory in the root that takes what no name leads to, as `#` and its number.

Made when it is first needed, with the root's owner and for nobody else (mode 0700).  Everything is
derived from the index alone, times too, so that the same damage always has the same repair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from stat import S_IFDIR

from mpifs.core.errors import DamageError
from mpifs.core.records import DATABASES, KEY_INODE_LIMIT, InodeRecord
from mpifs.core.types import ROOT_INODE
from mpifs.repair.tree_edit import DIRECTORY, TreeEdit, kind_of

FOLDER = b"lost+found"


def attach(edit: TreeEdit, ino: int) -> bytes:
    """Gives an inode, which has a record (perhaps of this edit), the name lost+found/#<ino>.

    Gives the path.  A file's link count grows by one if this is not the first name that it counts:
    the caller sets it.  Raises DamageError if the root or a limit cannot be read.
    """
    folder, folder_name = _folder(edit)
    record = edit.inode(ino)
    assert record is not None, "only what has a record is attached"
    name = _free_name(edit, folder.ino, b"#%d" % ino)
    edit.set_inode(replace(record, parent=folder.ino, name=name))
    edit.add_entry(folder.ino, name, ino, kind_of(record))
    return b"/" + folder_name + b"/" + name


def _folder(edit: TreeEdit) -> tuple[InodeRecord, bytes]:
    """The directory and its name in the root, made if there is none."""
    root = edit.inode(ROOT_INODE)
    if root is None:
        raise DamageError("index: the root directory is missing")
    for name in _numbered(FOLDER):
        ino = edit.entry(ROOT_INODE, name)
        found = edit.inode(ino) if ino else None
        if found is not None and kind_of(found) == DIRECTORY:
            return found, name
        if not ino:
            return _make_folder(edit, root, name), name
    raise AssertionError("names do not end")


def _make_folder(edit: TreeEdit, root: InodeRecord, name: bytes) -> InodeRecord:
    """An empty directory in the root.  Its number is the limit of numbers, which goes up: nobody
    was ever given it."""
    ino = edit.number(KEY_INODE_LIMIT)
    while any(next(edit.snapshot.owners(each, ino, ino + 1), None) for each in DATABASES[1:]):
        ino += 1  # something lost has that number: the limit was wrong
    edit.set_number(KEY_INODE_LIMIT, ino + 1)
    folder = replace(
        root,
        ino=ino,
        mode=S_IFDIR | 0o700,
        nlink=2,
        stable_size=0,
        atime_ns=root.mtime_ns,
        ctime_ns=root.mtime_ns,
        parent=ROOT_INODE,
        name=name,
        flags=0,
    )
    edit.create_inode(folder)
    edit.add_entry(ROOT_INODE, name, ino, DIRECTORY)
    return folder


def _free_name(edit: TreeEdit, folder: int, name: bytes) -> bytes:
    """The name, or the first of name-1, name-2, … that is not taken."""
    return next(each for each in _numbered(name) if not edit.entry(folder, each))


def _numbered(name: bytes) -> Iterator[bytes]:
    yield name
    for number in count(1):
        yield b"%s-%d" % (name, number)
