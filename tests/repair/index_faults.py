"""Kinds of broken index records: how to plant one, and which findings it must give.

A fault that is `exact` leaves enough to restore every row as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from stat import S_IFDIR, S_IFIFO, S_IFREG

from mpifs.core import records
from mpifs.core.records import (
    DENTRIES,
    INODES,
    META,
    ORPHANS,
    XATTRS,
    Counters,
    inode_key,
    name_key,
)
from tests.repair.index_world import Row, World

GONE = 7000
"""A number that no inode has."""

Fact = tuple[str, bytes | None, int | None]


@dataclass(frozen=True)
class Planted:
    """What a fault changes, and what a check must say."""

    changes: dict[Row, bytes | None]
    facts: list[Fact]
    exact: bool = True
    copy: bool = False
    """The repair needs a copy of the index to be exact."""


Fault = Callable[[World], Planted]


def _inode_row(ino: int) -> Row:
    return INODES, inode_key(ino)


def _flip(value: bytes, at: int, bit: int = 0x10) -> bytes:
    return value[:at] + bytes([value[at] ^ bit]) + value[at + 1 :]


def _two(value: bytes) -> bytes:
    """Damage that no guard corrects."""
    return _flip(_flip(_flip(value, 3), 8), -3)


def _inode(world: World, path: str, **changes: object) -> dict[Row, bytes | None]:
    record = replace(world.record(path), **changes)  # type: ignore[arg-type]
    return {_inode_row(record.ino): records.encode_inode(record)}


def flipped_value(database: str, path: str, check: str) -> Fault:
    def plant(world: World) -> Planted:
        row, shown, ino = _row_of(world, database, path)
        value = world.rows()[row]
        return Planted({row: _flip(value, len(value) // 2)}, [(check, shown, ino)])

    return plant


def flipped_key(database: str, path: str, check: str, at: int) -> Fault:
    def plant(world: World) -> Planted:
        row, shown, ino = _row_of(world, database, path)
        value = world.rows()[row]
        moved = database, _flip(row[1], at, 0x40)
        return Planted({row: None, moved: value}, [(check, shown, ino)])

    return plant


def _row_of(world: World, database: str, path: str) -> tuple[Row, bytes | None, int | None]:
    if database == META:
        return (META, path.encode()), None, None
    ino = world.ino[path]
    if database == INODES:
        return _inode_row(ino), path.encode(), ino
    if database == XATTRS:
        return (XATTRS, name_key(ino, b"user.x0")), path.encode(), ino
    return world.entry(path), path.encode(), ino


def spoiled_meta(key: bytes, check: str, *, drop: bool) -> Fault:
    def plant(world: World) -> Planted:
        value = None if drop else _two(world.rows()[META, key])
        exact = key in (records.KEY_COUNTERS, records.KEY_STORES)
        return Planted({(META, key): value}, [(check, None, None)], exact, copy=True)

    return plant


def dropped_inode(path: str, *, exact: bool = False, copy: bool = False) -> Fault:
    def plant(world: World) -> Planted:
        ino = world.ino[path]
        return Planted(
            {_inode_row(ino): None}, [("check_inodes_exist", path.encode(), ino)], exact, copy
        )

    return plant


def spoiled_inode(path: str, *, exact: bool = False, copy: bool = False) -> Fault:
    def plant(world: World) -> Planted:
        ino = world.ino[path]
        value = world.rows()[_inode_row(ino)]
        return Planted(
            {_inode_row(ino): _two(value)},
            [("check_records_readable", path.encode(), ino)],
            exact,
            copy,
        )

    return plant


def impossible_field(path: str, at: int, value: bytes) -> Fault:
    """A record with a right guard that no decoder takes."""

    def plant(world: World) -> Planted:
        ino = world.ino[path]
        key = inode_key(ino)
        old = world.rows()[INODES, key]
        body = old[:at] + value + old[at + len(value) : -8]
        guard = records.guard64(key + body).to_bytes(8, "little")
        return Planted(
            {(INODES, key): body + guard},
            [("check_records_readable", path.encode(), ino)],
            exact=False,
        )

    return plant


def dropped_root(world: World) -> Planted:
    return Planted({_inode_row(1): None}, [("check_root", b"/", 1)], copy=True)


def dropped_entry(path: str, check: str) -> Fault:
    def plant(world: World) -> Planted:
        return Planted({world.entry(path): None}, [(check, path.encode(), world.ino[path])])

    return plant


def dropped_older_name(world: World) -> Planted:
    """A name that no record tells: that it is lost shows at both ends, and nothing brings it back."""
    facts: list[Fact] = [
        ("check_link_counts", b"/d/e/third", world.ino["/d/e/third"]),
        ("check_directory_counts", b"/a/b", world.ino["/a/b"]),
    ]
    return Planted({world.entry("/a/b/other0"): None}, facts, exact=False)


def spoiled_entry(path: str) -> Fault:
    def plant(world: World) -> Planted:
        row = world.entry(path)
        return Planted(
            {row: _two(world.rows()[row])},
            [("check_records_readable", path.encode(), world.ino[path])],
        )

    return plant


def changed(path: str, check: str, *, exact: bool = True, **fields: object) -> Fault:
    def plant(world: World) -> Planted:
        fact = check, path.encode(), world.ino[path]
        return Planted(_inode(world, path, **fields), [fact], exact)

    return plant


def moved_record(path: str, parent: str, name: bytes) -> Fault:
    """A record that tells another place."""

    def plant(world: World) -> Planted:
        changes = _inode(world, path, parent=world.ino[parent], name=name)
        return Planted(changes, [("check_own_names", path.encode(), world.ino[path])])

    return plant


def wrong_entry_type(path: str, kind: int) -> Fault:
    def plant(world: World) -> Planted:
        database, key = world.entry(path)
        value = records.encode_dentry(key, world.ino[path], kind)
        return Planted(
            {(database, key): value}, [("check_entry_types", path.encode(), world.ino[path])]
        )

    return plant


def wrong_inode_type(path: str, kind: int, *, exact: bool = True) -> Fault:
    def plant(world: World) -> Planted:
        mode = kind | world.record(path).mode & 0o7777
        fact = "check_entry_types", path.encode(), world.ino[path]
        return Planted(_inode(world, path, mode=mode), [fact], exact)

    return plant


def dangling(world: World) -> Planted:
    """A name that was never an inode's; counted by nobody."""
    key = name_key(world.ino["/d"], b"ghost")
    value = records.encode_dentry(key, GONE, 0o10)
    return Planted({(DENTRIES, key): value}, [("check_inodes_exist", b"/d/ghost", GONE)])


def dangling_high(world: World) -> Planted:
    """The same with a number that does not exist yet."""
    key = name_key(world.ino["/d"], b"ghost")
    value = records.encode_dentry(key, 2**40, 0o10)
    return Planted({(DENTRIES, key): value}, [("check_inodes_exist", b"/d/ghost", 2**40)])


def bad_name(world: World) -> Planted:
    key = name_key(world.ino["/d"], b"x/y")
    ino = world.ino["/d/one"]
    value = records.encode_dentry(key, ino, 0o10)
    return Planted({(DENTRIES, key): value}, [("check_entry_names", b"/d/x/y", ino)])


def entry_in_file(world: World) -> Planted:
    key = name_key(world.ino["/top"], b"inside")
    ino = world.ino["/d/one"]
    value = records.encode_dentry(key, ino, 0o10)
    return Planted(
        {(DENTRIES, key): value}, [("check_entries_in_directories", b"/top/inside", ino)]
    )


def second_name(world: World) -> Planted:
    """A second entry for a directory."""
    key = name_key(world.ino["/d"], b"again")
    ino = world.ino["/a/b"]
    value = records.encode_dentry(key, ino, 0o04)
    return Planted(
        {(DENTRIES, key): value}, [("check_directories_have_one_name", b"/d/again", ino)]
    )


def stray_entry(world: World) -> Planted:
    """The only entry of a directory stands in another one."""
    old = world.entry("/a/b")
    key = name_key(world.ino["/d"], b"b")
    value = records.encode_dentry(key, world.ino["/a/b"], 0o04)
    return Planted(
        {old: None, (DENTRIES, key): value}, [("check_own_names", b"/a/b", world.ino["/a/b"])]
    )


def cycle(world: World) -> Planted:
    """/a is moved below /a/b/c, with all counts right."""
    a, c = world.record("/a"), world.record("/a/b/c")
    old = world.entry("/a")
    key = name_key(c.ino, b"a")
    root = world.record("/")
    changes: dict[Row, bytes | None] = {
        old: None,
        (DENTRIES, key): records.encode_dentry(key, a.ino, 0o04),
    }
    for record in (
        replace(a, parent=c.ino, name=b"a"),
        replace(c, nlink=3, stable_size=c.stable_size + 1),
        replace(root, nlink=root.nlink - 1, stable_size=root.stable_size - 1),
    ):
        changes[_inode_row(record.ino)] = records.encode_inode(record)
    path = b"/lost+found/#%d" % a.ino
    return Planted(changes, [("check_no_directory_cycles", path, a.ino)], exact=False)


def orphan_row(path: str) -> Fault:
    def plant(world: World) -> Planted:
        ino = world.ino[path]
        row = ORPHANS, inode_key(ino)
        value = records.encode_orphan(inode_key(ino))
        return Planted({row: value}, [("check_orphans", path.encode(), ino)])

    return plant


def orphan_of_nothing(world: World) -> Planted:
    key = inode_key(GONE)
    return Planted({(ORPHANS, key): records.encode_orphan(key)}, [("check_orphans", None, GONE)])


def xattr_of_nothing(world: World) -> Planted:
    key = name_key(GONE, b"user.none")
    return Planted(
        {(XATTRS, key): records.encode_xattr(key, b"v")}, [("check_xattrs_have_inodes", None, GONE)]
    )


def xattr_without_flag(world: World) -> Planted:
    flags = world.record("/top").flags & ~records.FLAG_XATTRS
    fact = "check_xattr_flag", b"/top", world.ino["/top"]
    return Planted(_inode(world, "/top", flags=flags), [fact])


def flag_without_xattr(world: World) -> Planted:
    flags = world.record("/a/file1").flags | records.FLAG_XATTRS
    fact = "check_xattr_flag", b"/a/file1", world.ino["/a/file1"]
    return Planted(_inode(world, "/a/file1", flags=flags), [fact])


def only_xattr_dropped(world: World) -> Planted:
    row = XATTRS, name_key(world.ino["/d/one"], b"user.x0")
    return Planted({row: None}, [("check_xattr_flag", b"/d/one", world.ino["/d/one"])], exact=False)


def spoiled_xattr(world: World) -> Planted:
    row = XATTRS, name_key(world.ino["/top"], b"user.big")
    value = _two(world.rows()[row])
    return Planted(
        {row: value}, [("check_records_readable", b"/top", world.ino["/top"])], copy=True
    )


def counters(**deltas: int) -> Fault:
    def plant(world: World) -> Planted:
        row = META, records.KEY_COUNTERS
        old = records.decode_counters(world.rows()[row])
        new = Counters(*(value + deltas.get(name, 0) for name, value in old._asdict().items()))
        return Planted({row: records.encode_counters(new)}, [("check_counters", None, None)])

    return plant


def inode_limit(world: World) -> Planted:
    row = META, records.KEY_INODE_LIMIT
    value = records.encode_number(records.KEY_INODE_LIMIT, 5)
    return Planted({row: value}, [("check_inode_limit", None, None)], exact=False)


def no_stores(world: World) -> Planted:
    row = META, records.KEY_STORES
    return Planted(
        {row: records.encode_stores([])}, [("check_stores_table", None, None)], copy=True
    )


def inode_without_a_trace(world: World) -> Planted:
    """Entry and record of a file with chunks are gone: the refs are left."""
    ino = world.ino["/d/one"]
    return Planted(
        {world.entry("/d/one"): None, _inode_row(ino): None},
        [
            ("check_inodes_exist", b"/lost+found/#%d" % ino, ino),
            ("check_directory_counts", b"/d", world.ino["/d"]),
        ],
        exact=False,
    )


def forgotten_file(world: World) -> Planted:
    """The same with all counts right: only the refs are left to tell."""
    planted = inode_without_a_trace(world)
    folder = world.record("/d")
    smaller = replace(folder, stable_size=folder.stable_size - 1)
    changes = planted.changes | {_inode_row(folder.ino): records.encode_inode(smaller)}
    changes |= counters(files=-1)(world).changes
    return Planted(changes, planted.facts[:1], exact=False)


def directory_without_a_trace(world: World) -> Planted:
    """Entry and record of a directory are gone: its entries are left."""
    ino = world.ino["/a/b"]
    return Planted(
        {world.entry("/a/b"): None, _inode_row(ino): None},
        [
            ("check_inodes_exist", b"/lost+found/#%d" % ino, ino),
            ("check_directory_counts", b"/a", world.ino["/a"]),
            ("check_directory_counts", b"/a", world.ino["/a"]),
        ],
        exact=False,
    )


def foreign_key(world: World) -> Planted:
    """A row that no number can name."""
    return Planted({(INODES, b"odd"): b"thing"}, [("check_records_readable", None, None)])


BIG = 2**64 - 1

FAULTS: dict[str, Fault] = {
    "inode: bit in value": flipped_value(INODES, "/a/file3", "check_records_readable"),
    "inode: bit in value of a directory": flipped_value(INODES, "/a/b", "check_records_readable"),
    "inode: bit in value of the root": flipped_value(INODES, "/", "check_records_readable"),
    "inode: bit in key": flipped_key(INODES, "/a/file3", "check_records_readable", 7),
    "inode: bit in high byte of key": flipped_key(INODES, "/a/b", "check_records_readable", 1),
    "inode: bit in key of the root": flipped_key(INODES, "/", "check_records_readable", 3),
    "entry: bit in value": flipped_value(DENTRIES, "/a/b/deep", "check_records_readable"),
    "entry: bit in value of a directory": flipped_value(DENTRIES, "/a/b", "check_records_readable"),
    "entry: bit in name": flipped_key(DENTRIES, "/a/b/deep", "check_records_readable", 9),
    "entry: bit in directory's number": flipped_key(
        DENTRIES, "/a/b/deep", "check_records_readable", 6
    ),
    "xattr: bit in value": flipped_value(XATTRS, "/top", "check_records_readable"),
    "xattr: bit in key": flipped_key(XATTRS, "/top", "check_records_readable", 10),
    "xattr: bit in number": flipped_key(XATTRS, "/d/one", "check_records_readable", 5),
    "meta: bit in counters": flipped_value(META, "counters", "check_records_readable"),
    "meta: bit in stores": flipped_value(META, "stores", "check_records_readable"),
    "meta: bit in a key": flipped_key(META, "inode-limit", "check_records_readable", 2),
    "meta: counters spoiled": spoiled_meta(b"counters", "check_counters", drop=False),
    "meta: counters dropped": spoiled_meta(b"counters", "check_counters", drop=True),
    "meta: inode limit spoiled": spoiled_meta(b"inode-limit", "check_inode_limit", drop=False),
    "meta: inode limit dropped": spoiled_meta(b"inode-limit", "check_inode_limit", drop=True),
    "meta: generation limit dropped": spoiled_meta(
        b"generation-limit", "check_generation_limit", drop=True
    ),
    "meta: stores spoiled": spoiled_meta(b"stores", "check_stores_table", drop=False),
    "meta: stores dropped": spoiled_meta(b"stores", "check_stores_table", drop=True),
    "meta: no stores": no_stores,
    "inode: dropped, file with chunks": dropped_inode("/a/file3"),
    "inode: dropped, empty file": dropped_inode("/a/file0"),
    "inode: dropped, directory": dropped_inode("/a/b"),
    "inode: dropped, empty directory": dropped_inode("/empty"),
    "inode: dropped, link": dropped_inode("/d/link"),
    "inode: dropped, hard links": dropped_inode("/a/b/other0"),
    "inode: dropped, file in copy": dropped_inode("/a/file3", exact=True, copy=True),
    "inode: dropped, directory in copy": dropped_inode("/a/b", exact=True, copy=True),
    "inode: dropped, link in copy": dropped_inode("/d/link", exact=True, copy=True),
    "inode: spoiled, file with chunks": spoiled_inode("/a/file3"),
    "inode: spoiled, empty file": spoiled_inode("/a/file4"),
    "inode: spoiled, directory": spoiled_inode("/a/b"),
    "inode: spoiled, link in copy": spoiled_inode("/d/link", exact=True, copy=True),
    "inode: impossible time": impossible_field("/a/file3", 92, b"\xff\xff\xff\x7f"),
    "inode: impossible type": impossible_field("/a/file3", 9, b"\x31"),
    "root dropped": dropped_root,
    "root: not a directory": lambda w: Planted(
        _inode(w, "/", mode=S_IFREG | w.record("/").mode & 0o7777), [("check_root", b"/", 1)]
    ),
    "root: lies elsewhere": lambda w: Planted(
        _inode(w, "/", parent=w.ino["/a"], name=b"r"), [("check_root", b"/", 1)]
    ),
    "entry: dropped, file": dropped_entry("/a/file3", "check_inodes_reached"),
    "entry: dropped, directory": dropped_entry("/a/b", "check_inodes_reached"),
    "entry: dropped, one of three names": dropped_older_name,
    "entry: dropped, newest name": dropped_entry("/d/e/third", "check_own_names"),
    "entry: spoiled, file": spoiled_entry("/a/file3"),
    "entry: spoiled, directory": spoiled_entry("/a/b"),
    "entry: dangling": dangling,
    "entry: dangling, number to come": dangling_high,
    "entry: impossible name": bad_name,
    "entry: in a file": entry_in_file,
    "entry: second one of a directory": second_name,
    "entry: of a directory, in another one": stray_entry,
    "entry: cycle": cycle,
    "entry: wrong type, file": wrong_entry_type("/a/file3", 0o04),
    "entry: wrong type, directory": wrong_entry_type("/a/b", 0o10),
    "inode: wrong type, file": wrong_inode_type("/a/file3", S_IFDIR),
    "inode: wrong type, directory": wrong_inode_type("/a/b", S_IFREG),
    "inode: wrong type, empty directory": wrong_inode_type("/empty", S_IFREG),
    "inode: wrong type, link": wrong_inode_type("/d/link", S_IFIFO),
    "inode: wrong type, fifo": wrong_inode_type("/a/file2", S_IFIFO),
    "inode: nlink of a file": changed("/a/file3", "check_link_counts", nlink=2),
    "inode: nlink 0 of a file": changed("/a/file3", "check_link_counts", nlink=0),
    "inode: nlink of a hard link": changed("/d/e/third", "check_link_counts", nlink=1),
    "inode: nlink of a directory": changed("/a/b", "check_directory_counts", nlink=9),
    "inode: nlink 0 of a directory": changed("/a/b", "check_directory_counts", nlink=0),
    "inode: nlink of the root": changed("/", "check_directory_counts", nlink=3),
    "inode: entries of a directory": changed("/a", "check_directory_counts", stable_size=4),
    "inode: entries of an empty directory": changed(
        "/empty", "check_directory_counts", stable_size=BIG
    ),
    "inode: parent of a file": moved_record("/a/file3", "/d", b"file3"),
    "inode: name of a file": moved_record("/a/file3", "/a", b"file"),
    "inode: parent of a directory": moved_record("/a/b", "/d", b"b"),
    "inode: parent of a directory: cycle": moved_record("/a", "/a/b", b"a"),
    "inode: parent unknown, directory": lambda w: Planted(
        _inode(w, "/a/b", parent=0), [("check_own_names", b"/a/b", w.ino["/a/b"])]
    ),
    "inode: parent does not exist": lambda w: Planted(
        _inode(w, "/a/b", parent=777), [("check_own_names", b"/a/b", w.ino["/a/b"])]
    ),
    "inode: flags": changed("/a/file3", "check_flags", flags=64),
    "inode: chunk size 0": changed("/a/file3", "check_chunk_size", chunk_size=0),
    "inode: chunk size no power of two": changed("/a/b", "check_chunk_size", chunk_size=5000),
    "inode: replicas 0": changed("/a/file3", "check_replicas", replicas=0),
    "inode: replicas 200": changed("/a/file3", "check_replicas", replicas=200),
    "inode: target of a file": changed("/a/file3", "check_target", target=b"x"),
    "inode: size of a link": changed("/d/link", "check_size", stable_size=3),
    "inode: size of a fifo": changed("/d/fifo", "check_size", stable_size=3),
    "inode: size too large": changed("/a/file3", "check_size", stable_size=2**63 + 1),
    "inode: bytes stored in a directory": changed(
        "/a/b", "check_only_files_store_bytes", bytes_stored=17
    ),
    "orphan: row of a file": orphan_row("/a/file3"),
    "orphan: row of a directory": orphan_row("/a/b"),
    "orphan: row of nothing": orphan_of_nothing,
    "xattr: of no inode": xattr_of_nothing,
    "xattr: no flag": xattr_without_flag,
    "xattr: flag, but none": flag_without_xattr,
    "xattr: the only one dropped": only_xattr_dropped,
    "xattr: spoiled": spoiled_xattr,
    "counters: files": counters(files=2),
    "counters: directories": counters(directories=-1),
    "counters: orphans": counters(orphans=1),
    "limit of inodes too low": inode_limit,
    "file without entry and record": inode_without_a_trace,
    "file without a trace but its chunks": forgotten_file,
    "directory without entry and record": directory_without_a_trace,
    "row under an impossible key": foreign_key,
}
