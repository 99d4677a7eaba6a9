"""kv: transactions, bounds, full disks, damaged files, death of the process."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpifs import fileroom
from mpifs.core.errors import FormatError, FullError, MpifsError
from mpifs.core.limits import KV_SLACK_BYTES, MIB
from mpifs.kv import Environment


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Environment]:
    environment = Environment(str(tmp_path / "e"), ["a", "b"], create=True)
    yield environment
    environment.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill_disk(place: Path) -> None:
    """Writes a file until nothing fits any more."""
    with contextlib.suppress(OSError), (place / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_put_get_scan_delete(env: Environment) -> None:
    with env.write() as txn:
        for i in range(10):
            assert txn.put("a", b"k%d" % i, b"v%d" % i)
        assert not txn.put("a", b"k1", b"other", overwrite=False)
        assert txn.get("a", b"k1") == b"v1"
        assert txn.delete("a", b"k9")
        assert not txn.delete("a", b"k9")
    with env.read() as txn:
        assert txn.get("a", b"k1") == b"v1"
        assert txn.get("b", b"k1") is None
        assert [bytes(k) for k, _ in txn.scan("a", b"k3", b"k6")] == [b"k3", b"k4", b"k5"]
        assert [bytes(v) for _, v in txn.scan("a", b"k7")] == [b"v7", b"v8"]
        assert len(list(txn.scan_keys("a"))) == 9 == txn.count("a")
        last = txn.last("a")
        assert last is not None
        assert last[0] == b"k8"
        assert txn.last("b") is None
        assert list(txn.scan("b")) == []


def test_exception_aborts_and_the_next_writer_goes_on(env: Environment) -> None:
    def fail() -> None:
        with env.write() as txn:
            txn.put("a", b"x", b"1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with env.write() as txn:
        assert txn.get("a", b"x") is None


def test_nested_write_is_refused(env: Environment) -> None:
    with env.write(), pytest.raises(AssertionError), env.write():
        pass
    with env.write():
        pass


def test_readers_keep_their_snapshot_and_may_be_closed_elsewhere(env: Environment) -> None:
    with env.write() as txn:
        txn.put("a", b"x", b"1" * 100_000)
    reader = env.read()
    view = reader.get("a", b"x")
    assert view is not None
    for i in range(20):
        with env.write() as txn:
            txn.put("a", b"x", bytes([i]) * 100_000)
    assert bytes(view) == b"1" * 100_000
    assert env.readers() == 1
    thread = threading.Thread(target=reader.close)
    thread.start()
    thread.join()
    reader.close()
    assert env.readers() == 0


def test_close_with_an_open_reader_keeps_the_map(tmp_path: Path) -> None:
    code = """
import sys
from mpifs.kv import Environment
e = Environment(sys.argv[1], ["a"], create=True)
with e.write() as t: t.put("a", b"x", b"1" * 100_000)
r = e.read(); v = r.get("a", b"x")
assert e.close() is False
del e
assert bytes(v) == b"1" * 100_000
r.close()
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "e")], check=True)


def test_scan_left_half_way(env: Environment) -> None:
    with env.write() as txn:
        for i in range(10):
            txn.put("a", b"%d" % i, b"")
    txn2 = env.read()
    rows = txn2.scan("a")
    next(rows)
    txn2.close()
    del rows


def test_modes_of_files(env: Environment) -> None:
    assert os.stat(env.path).st_mode & 0o777 == 0o700
    for name in os.listdir(env.path):
        assert os.stat(os.path.join(env.path, name)).st_mode & 0o777 == 0o600


def test_reopen_and_missing(tmp_path: Path) -> None:
    path = str(tmp_path / "e")
    with pytest.raises(FormatError, match="missing"):
        Environment(path, ["a"])
    environment = Environment(path, ["a"], create=True)
    with environment.write() as txn:
        txn.put("a", b"x", b"1")
    environment.sync()
    assert environment.close()
    again = Environment(path, ["a"])
    with again.read() as txn2:
        assert txn2.get("a", b"x") == b"1"
    again.close()
    with pytest.raises(FormatError, match="lacks a database"):
        Environment(path, ["a", "other"])


def test_preallocation_runs_ahead_and_is_bounded(env: Environment) -> None:
    data = os.path.join(env.path, "data.mdb")
    env.preallocate_ahead(8 * MIB)
    assert os.stat(data).st_blocks * 512 >= 8 * MIB + KV_SLACK_BYTES
    assert os.stat(data).st_size < 32 * MIB
    for i in range(40):
        env.preallocate_ahead(MIB)
        with env.write() as txn:
            txn.put("a", b"%d" % i, bytes(MIB))
    assert os.stat(data).st_size <= env.used_bytes() + 70 * MIB
    path = env.path
    env.close()
    again = Environment(path, ["a", "b"])
    with again.read() as txn2:
        assert txn2.get("a", b"7") == bytes(MIB)
    again.close()


def test_reusable_pages_are_seen(env: Environment) -> None:
    with env.write() as txn:
        for i in range(8):
            txn.put("a", b"%d" % i, bytes(MIB))
    assert env.reusable_bytes() < MIB
    with env.write() as txn:
        for i in range(8):
            txn.delete("a", b"%d" % i)
    assert env.reusable_bytes() > 7 * MIB


def is_told_right(env: Environment, needed: int) -> bool:
    """What `has_room` says, which the exact estimate must confirm."""
    found = env.has_room(needed)
    assert found is (env.free_bytes() >= needed), needed
    return found


def test_room_is_told_as_it_is(env: Environment) -> None:
    assert is_told_right(env, 0)
    assert is_told_right(env, MIB)
    free = env.free_bytes()
    assert not is_told_right(env, 2 * free)
    assert not is_told_right(env, 1 << 62)
    with env.write() as txn:
        txn.put("a", b"x", bytes(MIB))
    assert is_told_right(env, free // 2)


def test_room_in_a_map_that_cannot_grow(tmp_path: Path) -> None:
    """Its end counts, and then what is freed in it."""
    environment = Environment(str(tmp_path / "e"), ["a"], create=True, map_bytes=16 * MIB)
    sizes = range(0, 20 * MIB, MIB // 2)
    for number in range(10):
        with environment.write() as txn:
            txn.put("a", b"%d" % number, bytes(MIB))
        told = [is_told_right(environment, size) for size in sizes]
        assert told == sorted(told, reverse=True)
        assert is_told_right(environment, 0)
        assert not is_told_right(environment, (16 - number) * MIB)
    assert not environment.has_room(8 * MIB)
    with environment.write() as txn:
        for number in range(6):
            txn.delete("a", b"%d" % number)
    assert not environment.room.has_unused(8 * MIB, 16 * MIB)
    assert is_told_right(environment, 8 * MIB)
    environment.close()


def test_unused_room_ends_where_map_or_disk_does(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = env.used_bytes()
    monkeypatch.setattr(fileroom, "disk_free_bytes", lambda folder: 10 * MIB)
    for needed, map_bytes, is_there in (
        (10 * MIB, used + 10 * MIB, True),
        (10 * MIB + 1, used + 20 * MIB, False),
        (10 * MIB, used + 10 * MIB - 1, False),
        (0, used, True),
        (0, used - 1, False),
        (1, used, False),
    ):
        assert env.room.has_unused(needed, map_bytes) is is_there
    with env.write() as txn:
        txn.put("a", b"x", bytes(4 * MIB))
    with env.write() as txn:
        txn.delete("a", b"x")
    assert env.reusable_bytes() >= 4 * MIB
    assert not env.room.has_unused(10 * MIB + 1, used + 100 * MIB)
    assert not env.room.has_unused(1, used)
    assert env.room.free_bytes(used + 4 * MIB) >= 4 * MIB
    assert env.has_room(12 * MIB), "with freed pages"


def test_room_on_a_full_disk(small_disk: Path) -> None:
    environment = Environment(str(small_disk / "e"), ["a"], create=True)
    environment.preallocate_ahead(6 * MIB)
    with environment.write() as txn:
        for number in range(6):
            txn.put("a", b"%d" % number, bytes(MIB))
    fill_disk(small_disk)
    assert not environment.room.has_unused(MIB, 1 << 30)
    assert not is_told_right(environment, 6 * MIB)
    with environment.write() as txn:
        for number in range(3):
            txn.delete("a", b"%d" % number)
    assert not environment.room.has_unused(MIB, 1 << 30)
    assert is_told_right(environment, MIB)
    assert not is_told_right(environment, 6 * MIB)
    environment.close()


def test_map_full_is_a_domain_error(tmp_path: Path) -> None:
    environment = Environment(str(tmp_path / "e"), ["a"], create=True, map_bytes=4 * MIB)
    with environment.write() as txn:
        txn.put("a", b"x", bytes(MIB))
    with pytest.raises(FullError), environment.write() as txn:
        txn.put("a", b"y", bytes(6 * MIB))
    with environment.read() as txn2:
        assert txn2.get("a", b"x") == bytes(MIB)
    environment.close()


def test_little_address_space_gets_a_smaller_map(tmp_path: Path) -> None:
    code = """
import sys
from mpifs.kv import Environment
e = Environment(sys.argv[1], ["a"], create=True)
with e.write() as t: t.put("a", b"x", b"1")
e.close()
"""
    limit = 6 << 30
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "e")],
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )


@pytest.mark.parametrize("preallocate", [True, False])
def test_full_disk(small_disk: Path, preallocate: bool) -> None:
    environment = Environment(str(small_disk / "e"), ["a"], create=True, preallocate=preallocate)
    stored = 0

    def fill() -> None:
        nonlocal stored
        for stored in range(100):
            environment.preallocate_ahead(MIB)
            with environment.write() as txn:
                txn.put("a", b"%03d" % stored, bytes([stored]) * MIB)

    with pytest.raises(FullError):
        fill()
    assert stored >= 8
    for i in range(stored):
        with environment.read() as txn2:
            assert txn2.get("a", b"%03d" % i) == bytes([i]) * MIB
    for i in range(3):
        with environment.write() as txn:
            txn.delete("a", b"%03d" % i)
    environment.preallocate_ahead(MIB)
    with environment.write() as txn:
        txn.put("a", b"new", bytes(MIB))
    environment.close()


def test_full_disk_inside_lmdb(small_disk: Path) -> None:
    """Nobody asked first: the commit fails, everything before it stays."""
    environment = Environment(str(small_disk / "e"), ["a"], create=True)
    with environment.write() as txn:
        txn.put("a", b"old", b"o" * MIB)
    for _ in range(3):
        with pytest.raises(FullError), environment.write() as txn:
            txn.put("a", b"new", bytes(20 * MIB))
    with environment.read() as txn2:
        assert txn2.get("a", b"old") == b"o" * MIB
        assert txn2.get("a", b"new") is None
    with environment.write() as txn:
        txn.delete("a", b"old")
    environment.close()


def test_others_fill_the_disk_and_deletes_still_work(small_disk: Path) -> None:
    environment = Environment(str(small_disk / "e"), ["a"], create=True)
    environment.preallocate_ahead(MIB)
    with environment.write() as txn:
        for i in range(200):
            txn.put("a", b"%03d" % i, bytes(5000))
    fill_disk(small_disk)
    with environment.write() as txn:
        for i in range(200):
            txn.delete("a", b"%03d" % i)
    with environment.read() as txn2:
        assert txn2.count("a") == 0
    environment.close()


def _made(tmp_path: Path) -> Path:
    environment = Environment(str(tmp_path / "e"), ["a"], create=True)
    for i in range(30):
        with environment.write() as txn:
            txn.put("a", b"%d" % i, bytes(10_000))
    environment.close()
    return tmp_path / "e" / "data.mdb"


@pytest.mark.parametrize("size", [1, 15, 100, 4096, 4200, 8191, 8192, 20_000, 100_000])
def test_cut_file_is_refused(tmp_path: Path, size: int) -> None:
    data = _made(tmp_path)
    os.truncate(data, size)
    with pytest.raises(FormatError, match="fsck"):
        Environment(str(tmp_path / "e"), ["a"])


@pytest.mark.parametrize("start", [0, 16, 24, 40, 136, 4096, 4112])
def test_garbage_in_the_meta_pages_is_refused(tmp_path: Path, start: int) -> None:
    data = _made(tmp_path)
    with data.open("r+b") as file:
        for page in (0, 4096):
            file.seek((start + page) % 8192)
            file.write(b"\xa5" * 200)
    with pytest.raises(FormatError, match="fsck"):
        Environment(str(tmp_path / "e"), ["a"])


@pytest.mark.parametrize("content", [b"garbage", b"\0" * 100_000, b"\xff" * 8192])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    data = _made(tmp_path)
    data.write_bytes(content)
    with pytest.raises(FormatError, match="fsck"):
        Environment(str(tmp_path / "e"), ["a"])


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("x")
    with pytest.raises(MpifsError):
        Environment(str(tmp_path / "e"), ["a"], create=True)


KILLED = """
import sys
from mpifs.kv import Environment
e = Environment(sys.argv[1], ["a"], create=True)
i = 0
while True:
    e.preallocate_ahead(100_000)
    with e.write() as t:
        t.put("a", b"%08d" % i, (b"%08d" % i) * 8000)
        if i > 50: t.delete("a", b"%08d" % (i - 50))
    print(i, flush=True)
    i += 1
"""


@pytest.mark.parametrize("count", [3, 40, 120])
def test_kill_during_commits_keeps_what_was_told(tmp_path: Path, count: int) -> None:
    path = str(tmp_path / "e")
    process = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = -1
    for line in process.stdout:
        told = int(line)
        if told >= count:
            os.kill(process.pid, signal.SIGKILL)
            break
    for line in process.stdout:
        if line.endswith(b"\n"):
            told = int(line)
    process.wait()
    environment = Environment(path, ["a"])
    with environment.read() as txn:
        for i in range(max(0, told - 48), told + 1):
            assert txn.get("a", b"%08d" % i) == (b"%08d" % i) * 8000
    with environment.write() as txn2:
        txn2.put("a", b"after", b"1")
    environment.close()


GROWTH = """
import resource, sys, threading
from mpifs.core.errors import FullError
from mpifs.kv import Environment
path = sys.argv[1]
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
environment = Environment(path, ["a"], create=True)
assert environment._map_bytes == 64 << 20, environment._map_bytes
quit = threading.Event()
seen = []
def read():
    while not quit.is_set():
        with environment.read() as reading:
            for key, value in reading.scan("a"):
                assert bytes(value[:8]) == bytes(key) == bytes(value[-8:])
        seen.append(1)
threads = [threading.Thread(target=read) for _ in range(3)]
for thread in threads:
    thread.start()
count = 0
try:
    while count < 900:
        environment.preallocate_ahead((1 << 20) + 65536)
        with environment.write() as writing:
            key = count.to_bytes(8, "big")
            writing.put("a", key, key * (1 << 17))
        count += 1
except FullError as error:
    print(count, error)
quit.set()
for thread in threads:
    thread.join()
for number in range(0, count, 2):
    with environment.write() as writing:
        assert writing.delete("a", number.to_bytes(8, "big"))
for number in range(5):
    environment.preallocate_ahead((1 << 20) + 65536)
    with environment.write() as writing:
        key = number.to_bytes(8, "big")
        writing.put("a", key, key * (1 << 17))
assert environment._map_bytes > 64 << 20
assert len(seen) > 5, seen
print("lives")
"""


def test_a_small_map_grows_while_it_is_read_and_ends_in_enospc(tmp_path: Path) -> None:
    """With `ulimit -v` the map is small at first; LMDB must never fail to map a longer one."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path / "e")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told, last = done.stdout.splitlines()
    count, sentence = told.split(" ", 1)
    assert 150 < int(count) < 900
    assert "map" in sentence
    assert last == "lives"
