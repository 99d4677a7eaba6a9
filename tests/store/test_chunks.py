"""ChunkStore against a dict, its refusals, full disks, death in the middle."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mpifs.core.block_table import stored_bytes
from mpifs.core.errors import (
    ChunkMissingError,
    DamageError,
    FormatError,
    FullError,
    InUseError,
    PosixError,
)
from mpifs.core.image import IMAGE_HEADER_BYTES, decode_header, encode_key
from mpifs.core.limits import KIB, MIB, SMALL_VALUE_BYTES_MAX
from mpifs.core.types import ChecksumKind, ChunkKey
from mpifs.store.chunks import Change, ChunkStore
from mpifs.store.folder import find_stores, store_folder
from tests.store.images import STORE, VOLUME, image, image_bytes, open_store

SIZES = [0, 1, 4096, SMALL_VALUE_BYTES_MAX, SMALL_VALUE_BYTES_MAX + 1, 65536, 100_000]
keys = st.builds(ChunkKey, st.integers(1, 3), st.integers(0, 3), st.integers(1, 2))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    opened = open_store(str(tmp_path / "worker-3"))
    yield opened
    opened.close()


def payload_of(key: ChunkKey, size: int) -> bytes:
    """Some bytes that tell the key."""
    return (repr(key).encode() * (size // 10 + 1))[:size]


class StoreMachine(RuleBasedStateMachine):
    """A store and a dict with the same chunks, through reopening."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.model: dict[ChunkKey, bytes] = {}

    @initialize()
    def begin(self) -> None:
        self.store = open_store(self.folder + "/worker-3")

    @rule(batch=st.dictionaries(keys, st.sampled_from(SIZES), max_size=5))
    def put(self, batch: dict[ChunkKey, int]) -> None:
        payloads = {key: self.model.get(key, payload_of(key, size)) for key, size in batch.items()}
        self.store.put_many([image(key, payload) for key, payload in payloads.items()])
        self.model.update(payloads)

    @rule(gone=st.lists(keys, max_size=5))
    def delete(self, gone: list[ChunkKey]) -> None:
        self.store.delete_many(gone)
        for key in gone:
            self.model.pop(key, None)

    @rule(key=keys, size=st.sampled_from(SIZES))
    def put_then_delete(self, key: ChunkKey, size: int) -> None:
        payload = self.model.pop(key, payload_of(key, size))
        self.store.apply([Change(puts=[image(key, payload)]), Change(deletes=[key])])

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = open_store(self.folder + "/worker-3", create=False)

    @rule(key=keys)
    def get(self, key: ChunkKey) -> None:
        if key in self.model:
            with self.store.get(key) as lease:
                assert bytes(lease.image) == image_bytes(key, self.model[key])
        else:
            with pytest.raises(ChunkMissingError):
                self.store.get(key)

    @rule(count=st.integers(1, 4))
    def list_all(self, count: int) -> None:
        seen: list[ChunkKey] = []
        after = b""
        while headers := self.store.headers(after, count):
            seen += [decode_header(header).key for header in headers]
            after = encode_key(seen[-1])
        assert seen == sorted(self.model)

    @invariant()
    def counted(self) -> None:
        if hasattr(self, "store"):
            stats = self.store.stats()
            assert stats.chunks == len(self.model)
            assert stats.bytes == sum(map(len, self.model.values()))

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestStoreAgainstDict = StoreMachine.TestCase


def test_stored_sizes_are_powers_of_two_behind_the_header() -> None:
    assert stored_bytes(0) == 64
    assert stored_bytes(32 * KIB) == 64 + 32 * KIB
    assert stored_bytes(32 * KIB + 1) == 64 + 64 * KIB
    assert stored_bytes(128 * KIB) == 64 + 128 * KIB
    assert stored_bytes(MIB) == 64 + MIB + 65 * 16  # and the table behind that: in the same page
    assert stored_bytes(4 * MIB) == 64 + 4 * MIB
    assert stored_bytes(MIB - 1) == stored_bytes(MIB)


def test_the_same_chunk_again_is_fine_and_another_is_refused(store: ChunkStore) -> None:
    for size in (10, 50_000):
        key = ChunkKey(size, 0, 1)
        store.put_many([image(key, b"a" * size)])
        store.put_many([image(key, b"a" * size)])
        for other in (b"b" * size, b"b" * 40_000, b"b" * 10):
            with pytest.raises(PosixError, match="another"):
                store.put_many([image(key, other)])
        with store.get(key) as lease:
            assert lease.image[IMAGE_HEADER_BYTES:] == b"a" * size
    assert store.stats().chunks == 2


def test_a_damaged_chunk_can_be_replaced(store: ChunkStore, tmp_path: Path) -> None:
    key = ChunkKey(1, 0, 1)
    store.put_many([image(key, b"\x77" * 50_000)])
    store.close()
    data = tmp_path / "worker-3" / "large" / "data.mdb"
    content = data.read_bytes()
    place = content.index(b"\x77" * 1000)
    with data.open("r+b") as file:
        file.seek(place + 500)
        file.write(b"\x00")
    again = open_store(str(tmp_path / "worker-3"), create=False)
    with again.get(key) as lease:
        assert lease.image[IMAGE_HEADER_BYTES:] != b"\x77" * 50_000
    again.put_many([image(key, b"\x77" * 50_000)])
    with again.get(key) as lease:
        assert lease.image[IMAGE_HEADER_BYTES:] == b"\x77" * 50_000
    assert again.stats().chunks == 1
    again.close()


def test_a_damaged_header_is_told(store: ChunkStore, tmp_path: Path) -> None:
    key, other = ChunkKey(1, 0, 1), ChunkKey(2, 0, 1)
    store.put_many([image(key, b"\x77" * 500), image(other, b"x")])
    store.close()
    data = tmp_path / "worker-3" / "small" / "data.mdb"
    damaged = data.read_bytes().replace(image_bytes(key, b"\x77" * 500)[:64], b"\x00" * 64)
    data.write_bytes(damaged)
    again = open_store(str(tmp_path / "worker-3"), create=False)
    with pytest.raises(DamageError, match="store 3"):
        again.get(key)
    first, second = map(decode_header, again.headers(b"", 10))
    assert first.key == key
    assert first.checksum_kind == 0
    assert second.key == other
    assert again.stats().chunks == 2
    again.put_many([image(key, b"\x77" * 500)])
    with again.get(key) as lease:
        assert lease.header.length == 500
    again.close()


def test_identity_is_checked(store: ChunkStore) -> None:
    folder = store.folder
    with pytest.raises(InUseError, match=str(os.getpid())):
        open_store(folder)
    store.close()
    for other, word in (
        ({"volume_uuid": b"x" * 16}, "another volume"),
        ({"store_uuid": b"x" * 16}, "instead of"),
        ({"store": 4}, "instead of"),
        ({"chunk_size": 4096}, "chunk size"),
        ({"checksum": ChecksumKind.BLAKE3}, "checksum"),
    ):
        for create in (True, False):
            with pytest.raises(FormatError, match=word):
                open_store(folder, create=create, **other)
    open_store(folder, create=False).close()


def test_missing_folder_and_superblock(tmp_path: Path) -> None:
    folder = tmp_path / "worker-3"
    with pytest.raises(FormatError, match="missing"):
        open_store(str(folder), create=False)
    folder.mkdir()
    with pytest.raises(FormatError, match="superblock"):
        open_store(str(folder), create=False)
    store = open_store(str(folder))
    store.put_many([image(ChunkKey(1, 0, 1), b"x")])
    store.close()
    (folder / "superblock").unlink()
    with pytest.raises(FormatError, match="no superblock"):
        open_store(str(folder))
    with pytest.raises(FormatError, match="superblock"):
        open_store(str(folder), create=False)


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_damaged_environments_are_refused(store: ChunkStore, name: str, damage: str) -> None:
    store.put_many([image(ChunkKey(1, i, 1), bytes(30_000 * (i + 1))) for i in range(4)])
    folder = Path(store.folder)
    store.close()
    data = folder / name / "data.mdb"
    if damage == "missing":
        data.unlink()
    elif damage == "cut":
        os.truncate(data, 8192)
    else:
        data.write_bytes(os.urandom(100_000))
    with pytest.raises(FormatError, match="fsck"):
        open_store(str(folder), create=False)


def test_find_stores(tmp_path: Path) -> None:
    volume = str(tmp_path)
    assert find_stores(volume + "/none") == []
    for number in (2, 10, 1):
        open_store(store_folder(volume, number), store=number).close()
    (tmp_path / "worker-7").mkdir()
    (tmp_path / "worker-8").write_text("x")
    (tmp_path / "worker-01").mkdir()
    open_store(store_folder(volume, 9), store=9).close()
    (tmp_path / "worker-9" / "superblock").write_bytes(b"x" * 128)
    os.rename(store_folder(volume, 10), store_folder(volume, 11))
    assert find_stores(volume) == [(1, VOLUME, STORE), (2, VOLUME, STORE)]


def test_modes(store: ChunkStore) -> None:
    assert os.stat(store.folder).st_mode & 0o777 == 0o700
    for root, folders, files in os.walk(store.folder):
        for name in folders:
            assert os.stat(os.path.join(root, name)).st_mode & 0o777 == 0o700
        for name in files:
            assert os.stat(os.path.join(root, name)).st_mode & 0o777 == 0o600


def test_a_lost_count_is_made_anew(store: ChunkStore) -> None:
    store.put_many([image(ChunkKey(1, i, 1), b"x" * 100) for i in range(5)])
    with store._small.environment.write() as txn:
        txn.put("meta", b"counters", b"nonsense")
    folder = store.folder
    store.close()
    again = open_store(folder, create=False)
    assert (again.stats().chunks, again.stats().bytes) == (5, 500)
    again.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(store: ChunkStore, size: int) -> int:
    """Stores chunks until the store is full; how many."""
    for i in range(100_000):
        try:
            store.put_many([image(ChunkKey(size, i, 1), bytes([i % 256]) * size)])
        except FullError:
            return i
    raise AssertionError("never full")


@pytest.mark.parametrize("size", [MIB, 100_000, 20_000])
def test_full_disk(small_disk: Path, size: int) -> None:
    store = open_store(str(small_disk / "worker-3"))
    count = fill(store, size)
    assert count * stored_bytes(size) > 13 * MIB
    assert store.stats().free < 2 * MIB
    for i in range(count):
        with store.get(ChunkKey(size, i, 1)) as lease:
            assert lease.image[IMAGE_HEADER_BYTES:] == bytes([i % 256]) * size
    with contextlib.suppress(OSError), (small_disk / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    store.delete_many([ChunkKey(size, i, 1) for i in range(0, count, 2)])
    assert store.stats().chunks == count - (count + 1) // 2
    os.unlink(small_disk / "fill")
    assert fill(store, size - 1) >= 0.9 * (count // 2 - 3)
    store.close()
    open_store(str(small_disk / "worker-3"), create=False).close()


KILLED = """
import sys
from mpifs.core.types import ChunkKey
from tests.store.images import image, open_store
store = open_store(sys.argv[1])
i = 0
while True:
    store.put_many([image(ChunkKey(1, i, 1), bytes([i % 256]) * 9_000),
                    image(ChunkKey(2, i, 1), bytes([i % 256]) * 90_000)])
    if i >= 20: store.delete_many([ChunkKey(1, i - 20, 1), ChunkKey(2, i - 20, 1)])
    print(i, flush=True)
    i += 1
"""


@pytest.mark.parametrize("count", [0, 15, 60])
def test_kill_keeps_what_was_told(tmp_path: Path, count: int) -> None:
    folder = str(tmp_path / "worker-3")
    process = subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = -1
    for line in process.stdout:
        if line.endswith(b"\n"):
            told = int(line)
        if told == count:
            os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = open_store(folder, create=False)
    for i in range(max(0, told - 18), told + 1):
        for inode, size in ((1, 9_000), (2, 90_000)):
            with store.get(ChunkKey(inode, i, 1)) as lease:
                assert lease.image[IMAGE_HEADER_BYTES:] == bytes([i % 256]) * size
    assert store.stats().chunks == len(store.headers(b"", 1000))
    store.put_many([image(ChunkKey(3, 0, 1), b"after")])
    store.close()
