"""Stores that are lost, replaced, added, drained and evened out under a mount; and kills amid it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EIO
from pathlib import Path

import pytest

from mpifs.job.control import ControlClient
from tests.mount.calls import opened, put, raises, read_all
from tests.mount.harness import Volume, poll

pytestmark = pytest.mark.limit(150)
KIB = 1024
CHUNK = 64 * KIB
MKFS = ("--chunk-size", str(CHUNK))
SEED = int(os.environ.get("MPIFS_TEST_SEED", "0")) or random.randrange(1 << 30)
STRIKE = 5
Make = Callable[..., Volume]


def fill(one: Volume, count: int) -> dict[str, str]:
    """Files of all kinds of sizes; their sums by name."""
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    sums = {}
    for n in range(count):
        content = chance.randbytes(chance.choice((1, 900, CHUNK - 1, 2 * CHUNK, 5 * CHUNK + 3)))
        put(one / f"file-{n}", content)
        sums[f"file-{n}"] = hashlib.sha256(content).hexdigest()
    os.sync()
    return sums


def wrong(one: Volume, sums: dict[str, str]) -> list[str]:
    """Files that do not read as they were written."""
    bad = []
    for name, wanted in sums.items():
        with opened(one / name) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if hashlib.sha256(read_all(fd, 1 << 20)).hexdigest() != wanted:
                bad.append(name)
    return bad


def places(one: Volume, sums: dict[str, str]) -> Counter[int]:
    """How many chunk copies each worker has by the index."""
    found: Counter[int] = Counter()
    for row in one.layout(*(one / name for name in sums)):
        for chunk in row["chunks"]:
            found.update(chunk["workers"])
    return found


def fsck(one: Volume, place: Path, *arguments: str) -> list[tuple[str, int | None]]:
    """(check, worker) of each finding."""
    done = one.mpifs("fsck", place, "--json", *arguments, check=False)
    assert done.returncode in (0, 1, 4), done.stderr
    return [(f["check"], f["worker"]) for f in json.loads(done.stdout)["findings"]]


def workers(one: Volume) -> dict[int, str]:
    return {row["id"]: row["state"] for row in one.status()["workers"]}


def await_healed(one: Volume) -> None:
    poll(lambda: one.status()["heal"]["state"] == "idle", 40, "healing has ended", 0.2)


@contextmanager
def used(one: Volume, sums: dict[str, str]) -> Iterator[list[str]]:
    """Somebody reads and writes meanwhile; the list has what went wrong."""
    trouble: list[str] = []
    stop = threading.Event()

    def use() -> None:
        chance = random.Random(SEED)
        n = 0
        while not stop.is_set():
            n += 1
            try:
                name = chance.choice(sorted(sums))
                trouble.extend(wrong(one, {name: sums[name]}))
                content = chance.randbytes(chance.choice((50, CHUNK, 3 * CHUNK)))
                put(one / "scratch", content)
                if (one / "scratch").read_bytes() != content:
                    trouble.append(f"scratch {n}")
            except OSError as error:
                trouble.append(str(error))

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    try:
        yield trouble
    finally:
        stop.set()
        thread.join(30)


def strike(one: Volume, tmp_path: Path, act: Callable[[], object]) -> None:
    """Mounts so that rank 0 dies at the STRIKE-th step of what `act` brings about."""
    once = tmp_path / f"struck-{random.random()}"
    one.env = {"MPIFS_FAULT": f"repair.commit:{STRIKE}", "MPIFS_FAULT_ONCE": str(once)}
    one.mount()
    act()
    poll(once.exists, 40, "the step was reached")
    one.kill()
    one.env = None


def test_a_lost_disk_is_healed_replaced_and_a_drain_survives_kills(
    volume: Make, tmp_path: Path
) -> None:
    one = volume(workers=4, mkfs=(*MKFS, "--replicas", "2"), mounted=False)
    sums: dict[str, str] = {}

    def lose() -> None:
        sums.update(fill(one, 100))
        shutil.rmtree(one.store / "worker-2")
        assert wrong(one, sums) == []  # at once
        put(one / "after", b"written at once" * 10_000)
        sums["after"] = hashlib.sha256(b"written at once" * 10_000).hexdigest()
        with opened(one / "after") as fd:
            os.fsync(fd)
        poll(lambda: workers(one)[2] == "lost", 5, "worker 2 is known as lost")

    strike(one, tmp_path, lose)  # killed amid healing
    one.mount()
    assert workers(one)[2] == "lost"
    with used(one, sums) as trouble:
        await_healed(one)
    assert trouble == []
    assert places(one, sums)[2] == 0
    assert {check for check, worker in fsck(one, one.mnt) if worker != 2} <= {
        "check_every_chunk_is_known"
    }
    with used(one, sums) as trouble:
        one.mpifs("replace", one.mnt, "2")
    assert trouble == []
    assert set(workers(one).values()) == {"serving"}
    found = places(one, sums)
    assert max(found.values()) - min(found.values()) < sum(found.values()) / 8, found
    fsck(one, one.mnt, "--repair")  # orphans of the kill
    assert fsck(one, one.mnt) == []
    one.umount()

    strike(one, tmp_path, lambda: one.mpifs("drain", one.mnt, "3", check=False))
    one.mount()  # goes on by itself
    with used(one, sums) as trouble:
        poll(lambda: 3 not in workers(one), 40, "worker 3 has left", 0.2)
        assert json.loads(one.mpifs("add", one.mnt, "1", "--json").stdout) == {"added": [5]}
        one.mpifs("rebalance", one.mnt)
    assert trouble == []
    assert not (one.store / "worker-3").exists()
    assert workers(one) == dict.fromkeys((1, 2, 4, 5), "serving")
    found = places(one, sums)
    assert set(found) == {1, 2, 4, 5}
    assert max(found.values()) - min(found.values()) < sum(found.values()) / 8, found
    put(one / "new", os.urandom(8 * CHUNK))
    os.sync()
    firsts = [c["workers"] for c in one.layout(one / "new")[0]["chunks"]]
    assert [set(pair) for pair in firsts[:4]] == [set(pair) for pair in firsts[4:]]
    assert len({tuple(pair) for pair in firsts}) == 4  # round-robin over what is there
    fsck(one, one.mnt, "--repair")
    assert fsck(one, one.mnt) == []
    assert wrong(one, sums) == []
    refusal = one.mpifs("drain", one.mnt, "9", check=False)
    assert refusal.returncode == 1
    assert b"no worker 9" in refusal.stderr


def test_one_replica_loses_exactly_what_is_gone(volume: Make) -> None:
    one = volume(workers=3, mkfs=MKFS)
    sums = fill(one, 30)
    gone: set[tuple[str, int]] = set()
    for row in one.layout(*(one / name for name in sums)):
        name = os.path.basename(row["path"])
        gone |= {(name, c["index"]) for c in row["chunks"] if c["workers"] == [2]}
    assert gone
    with ControlClient(str(one.store / "run" / "control.sock")) as client:
        client.call("drop_caches")  # small files that were just written are at hand there
    for entry in (one.store / "worker-2").iterdir():  # emptied, the folder stays
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    poll(lambda: workers(one)[2] == "lost", 5, "worker 2 is known as lost")
    await_healed_or_waiting(one)
    whole = {name: value for name, value in sums.items() if name not in dict(gone)}
    assert wrong(one, whole) == []
    for name in sums:
        with opened(one / name) as fd:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(fd).st_size
            for chunk in range(-(-size // CHUNK)):
                if (name, chunk) in gone:
                    with raises(EIO):
                        read_all(fd, 1, chunk * CHUNK)
                else:
                    assert len(read_all(fd, 1, chunk * CHUNK)) == 1
    put(one / "new", b"goes on" * 50_000)
    done = one.mpifs("fsck", one.mnt, "--json", check=False)
    findings = json.loads(done.stdout)["findings"]
    assert done.returncode == 4
    told = {(os.path.basename(f["path"]), f["chunk"]) for f in findings if f["severity"] == "lost"}
    assert told == gone
    refusal = one.mpifs("drain", one.mnt, "2", check=False)
    assert refusal.returncode == 1
    assert b"no other copy" in refusal.stderr
    one.mpifs("replace", one.mnt, "2")
    assert set(workers(one).values()) == {"serving"}
    for name in dict(gone):
        put(one / name, b"written anew" * 10_000)
    os.sync()
    assert fsck(one, one.mnt) == []


def await_healed_or_waiting(one: Volume) -> None:
    poll(lambda: one.status()["heal"]["state"] in ("idle", "waiting"), 40, "a pass", 0.2)
    poll(lambda: one.status()["heal"]["detail"], 40, "it says what is gone", 0.2)
