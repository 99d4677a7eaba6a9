"""Reading LMDB files without LMDB, compared with LMDB itself in another process."""

from __future__ import annotations

import os
import random
import shutil
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs.core.errors import FormatError
from mpifs.core.image import IMAGE_HEADER_BYTES, MAGIC, decode_header, encode_header_into
from mpifs.core.limits import TREE_PROBLEMS_MAX
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.kv import Environment
from mpifs.pagefile import PageFile
from tests.page_anatomy import (
    CONTENT,
    FREE_LIST,
    IDLE,
    MAIN,
    META,
    NODE,
    PAGE,
    UNUSED,
    Anatomy,
    LmdbReader,
    Page,
    value_sum,
)

NAMES = ["chunks", "headers", "meta"]


def seed_of(turn: int) -> int:
    """MPIFS_SEED repeats a failure."""
    seed = int(os.environ.get("MPIFS_SEED", time.time_ns() % 10**9)) + turn
    print("seed", seed)
    return seed


def build(folder: str, seed: int) -> None:
    """An environment with a history: several databases, long values, deletes, a long free list."""
    rng = random.Random(seed)
    environment = Environment(
        folder, NAMES, create=True, preallocate=rng.random() < 0.5, sync="relaxed"
    )
    sizes = rng.choice([[8, 17, 53, 120], [0, 100, 300], [2100, 4160, 9000], [7, 64, 1900, 20_000]])
    live: list[bytes] = []
    for _ in range(rng.choice([2, 5, 20, 50])):
        if rng.random() < 0.3:
            environment.preallocate_ahead(1 << 20)
        with environment.write() as writing:
            for _ in range(rng.choice([3, 30, 300])):
                if live and rng.random() < 0.35:
                    key = live.pop(rng.randrange(len(live)))
                    writing.delete("chunks", key)
                    writing.delete("headers", key)
                    continue
                key = struct.pack(">QQQ", rng.randrange(50), rng.randrange(4), rng.getrandbits(20))
                if len(sizes) == 4 and rng.random() < 0.5:
                    key = key[:8] + rng.randbytes(rng.randrange(1, 60))
                writing.put("chunks", key, rng.randbytes(rng.choice(sizes)))
                writing.put("headers", key, rng.randbytes(64))
                live.append(key)
            writing.put("meta", b"counters", rng.randbytes(24))
    environment.close()
    os.remove(os.path.join(folder, "lock.mdb"))


def read_rows(file: PageFile) -> dict[str, list[tuple[bytes, str]]]:
    return {name: [(key, value_sum(value)) for key, value in file.rows(name)] for name in NAMES}


def is_inside(ranges: list[tuple[bytes, bytes | None]], key: bytes) -> bool:
    return any(low <= key and (high is None or key < high) for low, high in ranges)


@pytest.fixture
def folder() -> Iterator[str]:
    """In memory: thousands of small changes."""
    place = "/dev/shm" if os.path.isdir("/dev/shm") else None
    path = tempfile.mkdtemp(prefix="mpifs-pages-", dir=place)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def lmdb_reader() -> Iterator[LmdbReader]:
    reader = LmdbReader()
    yield reader
    reader.close()


@pytest.mark.parametrize("turn", range(12))
def test_a_whole_file(folder: str, turn: int) -> None:
    """After each of many commits nothing is wrong and every row is there, in order."""
    rng = random.Random(seed_of(turn))
    environment = Environment(folder, NAMES, create=True, preallocate=False, sync="relaxed")
    model: dict[str, dict[bytes, bytes]] = {name: {} for name in NAMES}
    deletes = rng.random() * 0.7
    sizes = rng.choice([[0, 8, 9, 50], [500, 1900, 2040], [4080, 5000, 40_000], [0, 60, 5000]])

    def compare() -> None:
        with PageFile(folder) as file:
            assert list(file.problems(NAMES)) == []
            assert sorted(file.databases()) == NAMES
            for name in NAMES:
                rows = [(key, bytes(value)) for key, value in file.rows(name)]
                assert rows == sorted(model[name].items())
                assert file.lost_ranges(name) == []

    compare()
    for _ in range(rng.choice([1, 5, 30])):
        before = {name: dict(rows) for name, rows in model.items()}
        with environment.write() as writing:
            for _ in range(rng.choice([1, 5, 50, 500])):
                name = rng.choice(NAMES)
                rows = model[name]
                if rows and rng.random() < deletes:
                    key = rng.choice(list(rows))
                    assert writing.delete(name, key)
                    del rows[key]
                else:
                    key = rng.randbytes(rng.choice([8, 16, 24]))
                    rows[key] = rng.randbytes(rng.choice(sizes))
                    writing.put(name, key, rows[key])
        with PageFile(folder) as file:
            for name in NAMES:
                older = {key: bytes(value) for key, value in file.rows(name, older=True)}
                assert older == before[name]
        compare()
    environment.close()
    environment = Environment(folder, NAMES)
    copy = folder + "-copy"
    os.mkdir(copy)
    try:
        with open(os.path.join(copy, "data.mdb"), "wb") as target:
            assert environment.copy_to(target.write) == target.tell()
        environment.close()
        folder, whole = copy, folder
        compare()
        folder = whole
    finally:
        shutil.rmtree(copy)


def check_flip(file: str, page: Page, part: str, good: dict[str, list[tuple[bytes, str]]]) -> bool:
    """What PageFile says of a file with one wrong byte; whether it found something wrong."""
    with PageFile(file) as pages:
        problems = list(pages.problems(NAMES))
        quick = pages.first_problem(1 << 20, lambda: False)
        found = read_rows(pages)
        lost = {name: pages.lost_ranges(name) for name in NAMES}
        for name in NAMES:
            for _ in pages.rows(name, older=True):
                pass
    assert bool(quick) == any(not problem.endswith("is missing") for problem in problems)
    assert not (problems and part in IDLE), problems
    for name in NAMES:
        true = dict(good[name])
        given = set(found[name])
        foreign = [row for row in found[name] if true.get(row[0]) != row[1]]
        missing = [key for key, value in good[name] if (key, value) not in given]
        assert len(foreign) <= 1
        if page.kind in ("leaf", "long") and page.tree in NAMES:
            assert len(missing) <= 2
        unexplained = [key for key in missing if not is_inside(lost[name], key)]
        assert len(unexplained) <= len(foreign), (len(missing), lost[name])
    return bool(problems)


@pytest.mark.parametrize("turn", range(12))
def test_one_wrong_byte(folder: str, lmdb_reader: LmdbReader, turn: int) -> None:
    """Every wrong byte that changes what LMDB does is told, unless it is in a key or a value.

    What is not told does no harm: LMDB then gives the same rows and changes the file well.
    """
    rng = random.Random(seed_of(turn))
    build(folder, rng.getrandbits(30))
    path = os.path.join(folder, "data.mdb")
    anatomy = Anatomy(path)
    with PageFile(path) as file:
        assert list(file.problems(NAMES)) == []
        good = read_rows(file)
    gold = {name: {key.hex(): value for key, value in rows} for name, rows in good.items()}
    assert lmdb_reader.read(folder, NAMES) == {"rows": gold}
    kinds: dict[tuple[str, str], list[Page]] = {}
    for page in anatomy.pages:
        kinds.setdefault((page.tree, page.kind), []).append(page)
    assert {tree for tree, _ in kinds} == {META, FREE_LIST, MAIN, *NAMES}
    with open(path, "r+b", buffering=0) as raw:
        for _ in range(int(os.environ.get("MPIFS_FLIPS", "40"))):
            page = rng.choice(kinds[rng.choice(sorted(kinds))])
            part = rng.choice(sorted(set(page.parts) - {UNUSED}))
            at = rng.choice([at for at, what in enumerate(page.parts) if what == part])
            offset = page.number * PAGE + at
            old = anatomy.data[offset]
            new = (
                old ^ (1 << rng.randrange(8)) if rng.random() < 0.6 else old ^ rng.randrange(1, 256)
            )
            print(f"page {page.number} ({page.tree}, {page.kind}), {part} at {at}: {old} -> {new}")
            os.pwrite(raw.fileno(), bytes([new]), offset)
            is_told = check_flip(path, page, part, good)
            found = lmdb_reader.read(folder, NAMES)
            if found != {"rows": gold} and not is_told:
                rows = found.get("rows")
                assert isinstance(rows, dict), f"LMDB failed and nobody told: {found}"
                changed = sum(
                    len(set(gold[name].items()) ^ set(rows[name].items())) for name in NAMES
                )
                # A length that is one off inside its own even number of bytes is content, too.
                assert part in CONTENT or (part == NODE and changed == 2)
            if not is_told:
                spare = folder + "-spare"
                os.mkdir(spare)
                try:
                    shutil.copy(path, spare)
                    found = lmdb_reader.read(spare, NAMES, rng.getrandbits(30))
                    assert found.get("changed_well"), found.get("error", found.get("crash"))
                    with PageFile(spare) as file:
                        assert list(file.problems(NAMES)) == []
                finally:
                    shutil.rmtree(spare)
            os.pwrite(raw.fileno(), bytes([old]), offset)
            if os.path.exists(os.path.join(folder, "lock.mdb")):
                os.remove(os.path.join(folder, "lock.mdb"))


def spoil(data: bytearray, used: list[int], rng: random.Random) -> None:
    """One damage of more than a byte."""
    page = rng.choice(used)
    at, end = page * PAGE, (page + 1) * PAGE
    if end > len(data):
        return
    match rng.choice(["zero", "noise", "swap", "copy", "cut", "tail", "words"]):
        case "zero":
            data[at:end] = bytes(PAGE)
        case "noise":
            data[at:end] = rng.randbytes(PAGE)
        case "swap" | "copy":
            other = rng.choice(used) * PAGE
            if other + PAGE <= len(data):
                data[at:end] = data[other : other + PAGE]
        case "cut":
            del data[rng.choice([at, at + 7, rng.randrange(3 * PAGE)]) :]
        case "tail":
            data[at:] = bytes(len(data) - at)
        case "words":
            place = at + rng.randrange(0, PAGE - 8, 2)
            data[place : place + 8] = rng.randbytes(8)


@pytest.mark.parametrize("turn", range(6))
def test_anything(folder: str, lmdb_reader: LmdbReader, turn: int) -> None:
    """Whatever the bytes are: no failure, no endless loop; what is not told is harmless."""
    rng = random.Random(seed_of(turn))
    build(folder, rng.getrandbits(30))
    path = os.path.join(folder, "data.mdb")
    data = Path(path).read_bytes()
    used = [page.number for page in Anatomy(path).pages]
    for _ in range(40):
        spoilt = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5, 30])):
            spoil(spoilt, used, rng)
        Path(path).write_bytes(spoilt)
        start = time.process_time()
        with PageFile(path) as file:
            problems = list(file.problems(NAMES))
            assert len(problems) <= TREE_PROBLEMS_MAX + 1
            file.first_problem(50, lambda: False)
            file.databases()
            read_rows(file)
            for name in NAMES:
                assert all(high is None or low < high for low, high in file.lost_ranges(name))
                for _ in file.rows(name, older=True):
                    pass
            for _ in file.scan_for(b"\0\1"):
                pass
        assert time.process_time() - start < 20
        if not problems and len(spoilt) == len(data):
            found = lmdb_reader.read(folder, NAMES, rng.getrandbits(30))
            assert found.get("changed_well"), found.get("error", found.get("crash"))


def test_noise_is_no_file(tmp_path: Path) -> None:
    rng = random.Random(5)
    path = tmp_path / "data.mdb"
    for length in (0, 1, 151, 152, 4096, 4248, 8192, 100_000):
        path.write_bytes(rng.randbytes(length))
        with PageFile(str(path)) as file:
            assert list(file.problems())
            assert list(file.rows("a")) == []
            assert file.lost_ranges("a") == [(b"", None)]
            assert file.databases() == []
            assert list(file.scan_for(b"mpCH")) == []
    with pytest.raises(FormatError):
        PageFile(str(tmp_path / "nothing"))


def txn_at(data: bytes, slot: int) -> int:
    """Place of a meta page's transaction number."""
    return slot * PAGE + 16 + 24 + 96 + 8


@pytest.mark.parametrize("step", [-3, -2, -1, 1, 2, 1 << 32])
@pytest.mark.parametrize("which", ["newer", "older"])
def test_a_wrong_transaction_number(folder: str, step: int, which: str) -> None:
    """T - 1 that became T + 1 looks like the successor of T: LMDB would go back to the past."""
    environment = Environment(folder, ["a"], create=True)
    for number in range(12):
        with environment.write() as writing:
            writing.put("a", b"%d" % number, b"x" * 3000)
    environment.close()
    path = Path(folder, "data.mdb")
    data = bytearray(path.read_bytes())
    newest = max((0, 1), key=lambda slot: data[txn_at(data, slot) : txn_at(data, slot) + 8][0])
    place = txn_at(data, newest if which == "newer" else 1 - newest)
    struct.pack_into("<Q", data, place, struct.unpack_from("<Q", data, place)[0] + step)
    path.write_bytes(data)
    with PageFile(folder) as file:
        assert list(file.problems())
        assert len(list(file.rows("a"))) == 12
        assert len(list(file.rows("a", older=True))) == 11
    with pytest.raises(FormatError, match="run mpifs fsck"):
        Environment(folder, ["a"])


def test_a_destroyed_meta_page(folder: str) -> None:
    environment = Environment(folder, ["a"], create=True)
    for number in range(5):
        with environment.write() as writing:
            writing.put("a", b"%d" % number, b"x")
    environment.close()
    path = Path(folder, "data.mdb")
    data = path.read_bytes()
    for slot in (0, 1):
        path.write_bytes(data[: slot * PAGE] + bytes(PAGE) + data[(slot + 1) * PAGE :])
        with PageFile(folder) as file:
            assert list(file.problems())
            assert not file.has_both_metas
            assert len(list(file.rows("a"))) in (4, 5)
            assert list(file.rows("a", older=True)) == []
            assert file.lost_ranges("a") == [(b"", None)]


def test_a_name_with_a_wrong_byte(folder: str) -> None:
    environment = Environment(folder, ["refs", "inodes"], create=True)
    with environment.write() as writing:
        writing.put("refs", b"k", b"v")
    environment.close()
    path = Path(folder, "data.mdb")
    path.write_bytes(path.read_bytes().replace(b"refs", b"reds"))
    with PageFile(folder) as file:
        assert list(file.problems(["refs", "inodes"])) == ["database refs is missing"]
        assert [(key, bytes(value)) for key, value in file.rows("refs")] == [(b"k", b"v")]
        assert list(file.rows("orphans")) == []
    with pytest.raises(FormatError, match="lacks a database"):
        Environment(folder, ["refs", "inodes"])


def test_a_live_file(folder: str) -> None:
    """While commits go on, a file opened under a read transaction stays as it was."""
    environment = Environment(folder, NAMES, create=True, sync="relaxed")
    stop = threading.Event()

    def write() -> None:
        rng = random.Random(1)
        while not stop.is_set():
            with environment.write() as writing:
                for _ in range(50):
                    key = b"%04d" % rng.randrange(2000)
                    if rng.random() < 0.5:
                        writing.delete("chunks", key)
                    else:
                        writing.put("chunks", key, rng.randbytes(rng.choice([50, 3000])))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(60):
            with environment.read() as reading:
                count = reading.count("chunks")
                with PageFile(folder) as file:
                    assert list(file.problems(NAMES)) == []
                    assert file.lost_ranges("chunks") == [(b"", None)]
                    rows = sum(1 for _ in file.rows("chunks"))
                    assert file.lost_ranges("chunks") == []
                assert abs(rows - count) < 2000
    finally:
        stop.set()
        thread.join()
        environment.close()


def image(key: ChunkKey, payload: bytes) -> bytes:
    whole = bytearray(IMAGE_HEADER_BYTES) + payload
    encode_header_into(whole, 0, ChecksumKind.XXH3_128, key, len(payload), b"s" * 16)
    return bytes(whole)


def length_of(head: memoryview) -> int:
    try:
        return IMAGE_HEADER_BYTES + decode_header(head).length
    except OSError:
        return 0


def test_images_are_found_without_any_tree(folder: str) -> None:
    rng = random.Random(3)
    environment = Environment(folder, ["chunks"], create=True)
    images = {}
    with environment.write() as writing:
        for number in range(200):
            key = ChunkKey(number, 0, number + 1)
            payload = rng.randbytes(rng.choice([1, 20, 1000, 5000, 70_000])) + b"mpCH" * 3
            images[key] = image(key, payload)
            writing.put("chunks", struct.pack(">QQQ", *key), images[key])
    environment.close()
    path = Path(folder, "data.mdb")
    data = bytearray(path.read_bytes())
    data[: 2 * PAGE] = bytes(2 * PAGE)
    for page in Anatomy(str(path)).pages:
        if page.kind == "long" and rng.random() < 0.3:
            data[page.number * PAGE + rng.choice([0, 1, 10, 11, 12, 13])] ^= 0x41
    path.write_bytes(data)
    with PageFile(folder) as file:
        found = {}
        for view in file.scan_for(MAGIC, length_of):
            header = decode_header(view)
            found[header.key] = bytes(view)
        assert found == images
        assert len(list(file.scan_for(MAGIC))) >= len(images)


def test_a_file_that_ends_before_its_last_page_may_be_whole(folder: str) -> None:
    """Pages that one transaction takes and frees again at the end of the file are not written."""
    environment = Environment(folder, ["a"], create=True, preallocate=False)
    with environment.write() as writing:
        writing.put("a", b"1", b"x" * 100_000)
        writing.put("a", b"2", b"y" * 100_000)
        writing.delete("a", b"2")
    used = environment.used_bytes()
    environment.close()
    path = Path(folder, "data.mdb")
    assert path.stat().st_size < used
    with PageFile(folder) as file:
        assert list(file.problems()) == []
    Environment(folder, ["a"]).close()
    os.truncate(path, path.stat().st_size - 2 * PAGE)
    with PageFile(folder) as file:
        assert any("the file is cut" in problem for problem in file.problems())
    with pytest.raises(FormatError, match="is cut"):
        Environment(folder, ["a"])


def test_opening_refuses_a_damaged_tree(folder: str) -> None:
    """LMDB would crash the process or, later, write over pages that are in use."""
    build(folder, 7)
    path = os.path.join(folder, "data.mdb")
    rng = random.Random(7)
    told = 0
    for page in Anatomy(path).pages:
        places = [at for at, part in enumerate(page.parts) if part in ("place", "long header")]
        if not places:
            continue
        offset = page.number * PAGE + rng.choice(places)
        with open(path, "r+b", buffering=0) as raw:
            old = os.pread(raw.fileno(), 1, offset)
            os.pwrite(raw.fileno(), bytes([old[0] ^ 6]), offset)
            with pytest.raises(FormatError, match=r"is damaged .*; run mpifs fsck"):
                Environment(folder, NAMES)
            os.pwrite(raw.fileno(), old, offset)
        told += 1
        if told == 60:
            break
    assert told > 5
    Environment(folder, NAMES).close()


def test_a_large_tree_is_checked_in_part(folder: str) -> None:
    environment = Environment(folder, ["a"], create=True, sync="relaxed")
    with environment.write() as writing:
        for number in range(20_000):
            writing.put("a", struct.pack(">Q", number), b"v" * 40)
    environment.close()
    pages = [page for page in Anatomy(os.path.join(folder, "data.mdb")).pages if page.tree == "a"]
    branch = next(page for page in pages if page.kind == "branch")
    leaf = next(page for page in pages if page.kind == "leaf")
    for page, is_told in ((branch, True), (leaf, False)):
        with open(os.path.join(folder, "data.mdb"), "r+b", buffering=0) as raw:
            offset = page.number * PAGE + 16
            old = os.pread(raw.fileno(), 1, offset)
            os.pwrite(raw.fileno(), bytes([old[0] ^ 4]), offset)
            with PageFile(folder) as file:
                assert bool(file.first_problem(20, lambda: False)) == is_told
                assert file.first_problem(10_000, lambda: False)
                assert file.first_problem(10_000, lambda: True) is None
            os.pwrite(raw.fileno(), old, offset)


def test_copy_stops_when_its_reader_fails(folder: str) -> None:
    environment = Environment(folder, ["a"], create=True, sync="relaxed")
    with environment.write() as writing:
        for number in range(3000):
            writing.put("a", b"%d" % number, b"x" * 3000)
    seen: list[int] = []

    def write(data: bytes) -> None:
        seen.append(len(data))
        if len(seen) == 2:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        environment.copy_to(write)
    assert environment.readers() == 0
    assert environment.copy_to(lambda data: None) > 3000 * 3000
    environment.close()


def test_speed(folder: str) -> None:
    """A mount checks its files first: 100,000 rows in well under a second."""
    environment = Environment(folder, ["a"], create=True, sync="relaxed")
    with environment.write() as writing:
        for number in range(100_000):
            writing.put("a", struct.pack(">QQ", number, 0), b"v" * 61)
    environment.close()
    start = time.process_time()
    with PageFile(folder) as file:
        assert list(file.problems()) == []
    checked = time.process_time() - start
    assert checked < 1, f"{checked:.2f} s"
