"""Workers that die or hang under a real mount: programs see a pause, never an error."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpifs.core.limits import HEAL_DELAY_S, MPI_STALL_S, WORKER_HUNG_S
from tests.job.lifecycle import Volume, mpifs, volume

CHUNK = 64 * 1024
SMALL = ("--chunk-size", "64KiB", "-o", "cache=8MiB")


@pytest.fixture
def one() -> Iterator[Volume]:
    with volume() as made:
        yield made
        if made.mountpoint.is_mount():
            assert mpifs("umount", str(made.mountpoint)).returncode == 0, made.log()


def workers(one: Volume) -> list[dict[str, Any]]:
    result = mpifs("status", str(one.mountpoint), "--json")
    assert result.returncode == 0, result.stderr + one.log()
    rows: list[dict[str, Any]] = json.loads(result.stdout)["workers"]
    return rows


def await_serving(one: Volume, old: set[int], timeout_s: float = 20.0) -> None:
    """Until all workers serve, and none by a process of `old`."""
    deadline = time.monotonic() + timeout_s
    rows = workers(one)
    while not all(r["state"] == "serving" for r in rows) or old & {r["pid"] for r in rows}:
        assert time.monotonic() < deadline, f"{rows}\n{one.log()}"
        time.sleep(0.1)
        rows = workers(one)


def await_healed(one: Volume) -> None:
    deadline = time.monotonic() + 30
    while True:
        heal = json.loads(mpifs("status", str(one.mountpoint), "--json").stdout)["heal"]
        if heal["state"] == "idle":
            return
        assert time.monotonic() < deadline, f"{heal}\n{one.log()}"
        time.sleep(0.2)


def kill(one: Volume, *numbers: int, with_: signal.Signals = signal.SIGKILL) -> set[int]:
    """Signals workers; their pids."""
    pids = {row["pid"] for row in workers(one) if row["id"] in numbers}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it is dead already, and being replaced.
            os.kill(pid, with_)
    return pids


def cold(path: Path) -> bytes:
    """A file's bytes, not from the kernel's cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def make_tree(place: Path, seed: int) -> None:
    chance = random.Random(seed)
    place.mkdir()
    for number in range(300):
        folder = place / f"d{number % 7}"
        folder.mkdir(exist_ok=True)
        size = chance.choice([0, 100, 5000, CHUNK, 3 * CHUNK + 7, 20 * CHUNK])
        (folder / f"f{number}").write_bytes(chance.randbytes(size))


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", one, other], check=False).returncode == 0


def test_ten_kills_in_a_row_amid_a_copy(one: Volume, tmp_path: Path) -> None:
    """Then two at once, all at once, and amid reads; one replica, no error, nothing lost."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    chance = random.Random(seed)
    make_tree(tmp_path / "tree", seed)
    one.mount("-w", "3", *SMALL)
    copies = 0
    with subprocess.Popen(["true"]) as copying:
        copying.wait()
        for _ in range(10):
            if copying.poll() is not None:
                assert copying.returncode == 0
                copies += 1
                copying = subprocess.Popen(
                    ["cp", "-a", str(tmp_path / "tree"), str(one.mountpoint / f"t{copies}")]
                )
            kill(one, chance.randrange(1, 4))
            time.sleep(chance.uniform(0.2, 1.0))
        assert copying.wait(90) == 0
    old = kill(one, 1, 2)
    for number in range(1, copies + 1):
        assert same(tmp_path / "tree", one.mountpoint / f"t{number}")
    await_serving(one, old)
    old = kill(one, 1, 2, 3)
    assert same(tmp_path / "tree", one.mountpoint / "t1")
    await_serving(one, old)
    assert json.loads(mpifs("fsck", str(one.mountpoint), "--json").stdout)["clean"]
    assert mpifs("umount", str(one.mountpoint)).returncode == 0, one.log()
    assert mpifs("fsck", one.folder.path).returncode == 0


def test_kills_amid_fsyncs_with_two_replicas(one: Volume) -> None:
    """One worker is left each time: what is written then is whole, and gets its second copy later."""
    one.mount("-w", "2", "--replicas", "2", *SMALL)
    written: dict[Path, bytes] = {}
    errors: list[OSError] = []
    is_over = threading.Event()

    def write() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            path, data = one.mountpoint / f"f{number % 40}", os.urandom(CHUNK + number % 9)
            try:
                with open(path, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                errors.append(error)
            written[path] = data

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for turn in range(2):
            await_serving(one, kill(one, 1 + turn % 2))
    finally:
        is_over.set()
        thread.join(60)
    assert errors == []
    assert all(cold(path) == data for path, data in written.items())
    assert "have too few copies" in one.log()
    await_healed(one)
    places = mpifs("layout", "--json", *map(str, written)).stdout
    chunks = [chunk for file in json.loads(places) for chunk in file["chunks"]]
    assert {tuple(sorted(chunk["workers"])) for chunk in chunks} == {(1, 2)}
    mpifs("umount", str(one.mountpoint))
    assert mpifs("fsck", one.folder.path).returncode == 0


def test_healing_goes_on_as_soon_as_a_worker_is_back(one: Volume) -> None:
    """It is killed again and again, until a pass has left chunks: not for HEAL_RETRY_S."""
    one.mount("-w", "2", "--replicas", "2", *SMALL)
    deadline, number, next_s = time.monotonic() + 120, 0, 0.0
    while "no store to go to" not in one.log():
        assert time.monotonic() < deadline, one.log()
        old = kill(one, 2)
        if time.monotonic() > next_s:
            next_s = time.monotonic() + 3 * HEAL_DELAY_S
            number += 1
            with open(one.mountpoint / f"f{number}", "wb") as file:
                file.write(os.urandom(8 * CHUNK))
                os.fsync(file.fileno())
    await_serving(one, old)
    await_healed(one)
    assert "heal: a store is back" in one.log()


def test_a_hung_worker_counts_as_dead(one: Volume) -> None:
    one.mount("-w", "2", *SMALL)
    data = os.urandom(40 * CHUNK)
    (one.mountpoint / "file").write_bytes(data)
    old = kill(one, 2, with_=signal.SIGSTOP)
    try:
        start = time.monotonic()
        assert cold(one.mountpoint / "file") == data
        assert time.monotonic() - start < WORKER_HUNG_S + 8
        await_serving(one, old)
    finally:
        for pid in old:  # it was killed; if not, it wakes up now.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    (one.mountpoint / "file2").write_bytes(data)
    assert cold(one.mountpoint / "file") == data
    assert mpifs("umount", str(one.mountpoint)).returncode == 0, one.log()
    assert mpifs("fsck", one.folder.path).returncode == 0


def test_a_worker_that_cannot_start_is_given_up_until_the_next_mount(
    one: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replacement dies while it starts: EIO for the worker's chunks, the rest goes on."""
    monkeypatch.setenv("MPIFS_FAULT", "rank.replace:1")
    one.mount("-w", "2", *SMALL)
    data = os.urandom(4 * CHUNK)
    (one.mountpoint / "file").write_bytes(data)
    layout = json.loads(mpifs("layout", str(one.mountpoint / "file"), "--json").stdout)[0]
    kill(one, 2)
    deadline = time.monotonic() + 30
    while [row["state"] for row in workers(one)] != ["serving", "lost"]:
        assert time.monotonic() < deadline, one.log()  # until then its store may still be read
        time.sleep(0.1)
    for chunk in layout["chunks"]:
        start = chunk["index"] * CHUNK
        with open(one.mountpoint / "file", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if chunk["workers"] == [2]:
                with pytest.raises(OSError) as caught:
                    os.pread(file.fileno(), 10, start)
                assert caught.value.errno == errno.EIO
            else:
                assert os.pread(file.fileno(), 10, start) == data[start : start + 10]
    assert [row["state"] for row in workers(one)] == ["serving", "lost"]
    assert "given up after 3 failed restarts" in mpifs("status", str(one.mountpoint)).stdout
    (one.mountpoint / "later").write_bytes(data)
    assert cold(one.mountpoint / "later") == data
    assert mpifs("umount", str(one.mountpoint)).returncode == 0, one.log()
    monkeypatch.delenv("MPIFS_FAULT")
    one.mount()
    assert (one.mountpoint / "file").read_bytes() == data
    assert (one.mountpoint / "later").read_bytes() == data


def test_a_replacement_dies_while_starting(
    one: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second one lives."""
    monkeypatch.setenv("MPIFS_FAULT", "rank.replace:1")
    monkeypatch.setenv("MPIFS_FAULT_ONCE", str(tmp_path / "struck"))
    one.mount("-w", "2", *SMALL)
    data = os.urandom(8 * CHUNK)
    (one.mountpoint / "file").write_bytes(data)
    old = kill(one, 1)
    assert cold(one.mountpoint / "file") == data
    await_serving(one, old)
    assert (tmp_path / "struck").exists()


def test_a_disk_that_stands_still_does_not_stop_the_heartbeat(one: Volume) -> None:
    """The job's state cannot be written for longer than a hanging MPI is borne."""
    one.mount("-w", "2", *SMALL)
    data = os.urandom(40 * CHUNK)
    (one.mountpoint / "file").write_bytes(data)
    with open(one.folder.state + ".lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = kill(one, 1)
        assert cold(one.mountpoint / "file") == data
        time.sleep(MPI_STALL_S + 4)
        await_serving(one, old)
        assert cold(one.mountpoint / "file") == data
    new = {row["pid"] for row in workers(one)}

    def is_told() -> bool:
        return {row["pid"] for row in one.state()["workers"]} == new

    one.await_that(is_told, 10)
    assert mpifs("umount", str(one.mountpoint)).returncode == 0, one.log()


def test_replaced_workers_die_again_amid_large_writes(one: Volume) -> None:
    """Open MPI's connections to them are over TCP, and hung or crashed rank 0 at every tenth of
    these deaths, with whatever long message was on its way."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    chance = random.Random(seed)
    one.mount("-w", "3")
    data = os.urandom(100 << 20)
    is_over = threading.Event()
    errors: list[OSError] = []

    def write(path: Path) -> None:
        try:
            while not is_over.is_set():
                path.write_bytes(data)
        except OSError as error:
            errors.append(error)

    paths = [one.mountpoint / name for name in ("one", "other")]
    threads = [threading.Thread(target=write, args=(path,), daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    killed = 0
    until = time.monotonic() + 25
    while time.monotonic() < until and not errors:
        for row in workers(one):
            if row["state"] == "serving" and chance.random() < 0.7:
                killed += len(kill(one, row["id"]))
        time.sleep(chance.uniform(0.3, 1.5))
    is_over.set()
    for thread in threads:
        thread.join(60)
    assert not errors, one.log()
    assert not any(thread.is_alive() for thread in threads)
    assert killed > 3
    await_serving(one, set())
    assert all(cold(path) == data for path in paths)
    assert mpifs("umount", str(one.mountpoint)).returncode == 0, one.log()


@pytest.mark.parametrize("when", [0.0, 0.3])
def test_a_kill_amid_umount(one: Volume, when: float) -> None:
    one.mount("-w", "2", *SMALL)
    data = os.urandom(400 * CHUNK)
    (one.mountpoint / "f").write_bytes(data)
    pid = workers(one)[0]["pid"]
    with subprocess.Popen(["umount", str(one.mountpoint)]) as ending:
        time.sleep(when)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert ending.wait(30) == 0
    one.await_gone(one.state(), 40)
    one.mount()
    assert (one.mountpoint / "f").read_bytes() == data
    assert mpifs("fsck", str(one.mountpoint)).returncode == 0


def test_nothing_is_left_over_of_a_worker_that_died_before_the_unmount(one: Volume) -> None:
    """It is being replaced just then; its garbage is deleted all the same."""
    one.mount("-w", "2", *SMALL)
    path = one.mountpoint / "file"
    path.write_bytes(os.urandom(200 * CHUNK))
    subprocess.run(["sync", "-f", str(path)], check=True)
    kill(one, 1)
    one.await_that(lambda: workers(one)[0]["state"] == "dead", 10)
    path.unlink()
    assert mpifs("umount", str(one.mountpoint)).returncode == 0, one.log()
    done = mpifs("fsck", one.folder.path)
    assert done.returncode == 0, done.stdout + done.stderr
