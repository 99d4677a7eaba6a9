"""stage-in and stage-out as users type them: every kind of file, kills in the middle, full disks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.job.test_file_commands import CHUNK, plant, shape
from tests.mount.harness import TOKEN, Volume, poll

pytestmark = pytest.mark.limit(150)
MIB = 1 << 20
LARGE = 33 * MIB  # above STAGE_PARTIAL_BYTES


LONG = os.environ.get("MPIFS_FAULTS") == "long"


@pytest.fixture(scope="module")
def shared(mount_root: Path) -> Iterator[Volume]:
    """One mounted volume with two copies of each chunk, for all tests that harm nobody."""
    mkfs = ("--chunk-size", str(CHUNK), "--replicas", "2")
    one = Volume(mount_root / "staged", mount_root, workers=3, mkfs=mkfs).make()
    one.mount()
    yield one
    one.destroy()


@pytest.fixture
def mounted(shared: Volume, guarded: None) -> Iterator[Volume]:
    """The same, empty again afterwards, and clean."""
    yield shared
    assert findings(shared) == []
    for entry in shared.mnt.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def stage(one: Volume, *words: str | Path, code: int = 0) -> dict[str, Any]:
    """A stage-in or stage-out with --json."""
    done = one.mpifs(*words, "--json", check=False)
    assert b"Traceback" not in done.stderr
    assert done.returncode == code, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def findings(one: Volume, *words: str) -> list[str]:
    """Severities of what fsck finds."""
    place = one.mnt if one.is_alive() else one.store
    done = one.mpifs("fsck", place, "--json", *words, check=False)
    assert done.returncode in (0, 1, 4), done.stderr
    return [finding["severity"] for finding in json.loads(done.stdout)["findings"]]


def many(top: Path, count: int) -> Path:
    """A folder of small files."""
    top.mkdir()
    chance = random.Random(5)
    for n in range(count):
        (top / f"f{n}").write_bytes(chance.randbytes(chance.choice((0, 1, 1024, 5000))))
    return top


def large(path: Path) -> Path:
    path.write_bytes(random.Random(7).randbytes(LARGE))
    return path


def unfinished(top: Path) -> list[Path]:
    return list(top.rglob(".mpifs-*"))


def test_trees_go_in_and_come_out_the_same(mounted: Volume, tmp_path: Path) -> None:
    one, out = mounted, tmp_path / "out"
    top = plant(tmp_path)
    many(top / "many", 300)
    assert not (one / "tree" / "many" / "f7").exists()  # the kernel has looked for it
    done = stage(one, "stage-in", top, f"{one.mnt}:/")
    assert (done["files"], done["folders"], done["failed"]) == (307, 3, 0)
    assert (one / "tree" / "many" / "f7").exists()
    assert shape(one / "tree") == shape(top)
    # Again: all of it is there.
    done = stage(one, "stage-in", top, f"{one.mnt}:/")
    assert (done["files"], done["bytes"], done["skipped"]) == (0, 0, 307)
    out.mkdir()
    done = stage(one, "stage-out", f"{one.mnt}:tree", out)
    assert (done["files"], done["folders"], done["failed"]) == (307, 3, 0)
    assert shape(out / "tree") == shape(top)
    assert os.getxattr(out / "tree" / "big", "user.note") == b"\0\xff"
    assert (out / "tree" / "sparse").stat().st_blocks * 512 < 10 * CHUNK
    # Again, after a byte has been changed behind everybody's back in three of them.
    for name in ("big", "many/f2", "sparse"):
        path = out / "tree" / name
        before = path.stat()
        with open(path, "r+b") as file:
            file.write(bytes([path.read_bytes()[0] ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = stage(one, "stage-out", f"{one.mnt}:tree", out)
    assert done["files"] == 4, done  # `big` has a second name, which follows it
    assert done["skipped"] == 303
    assert shape(out / "tree") == shape(top)
    assert unfinished(out) == []


def test_the_same_command_again_means_the_same(mounted: Volume, tmp_path: Path) -> None:
    """Also when the folder that things go into was not there at first."""
    one, out = mounted, tmp_path / "new"
    top = many(tmp_path / "many", 5)
    for done in ("files", "skipped"):
        assert stage(one, "stage-in", top, f"{one.mnt}:/once/more")[done] == 5
        assert shape(one / "once" / "more" / "many") == shape(top)
        assert stage(one, "stage-out", f"{one.mnt}:/once/more/many", out)[done] == 5
        assert shape(out / "many") == shape(top)
        assert stage(one, "stage-in", top / "f1", f"{one.mnt}:/f")[done] == 1
        assert (one / "f").read_bytes() == (top / "f1").read_bytes()


def test_files_that_were_cut(mounted: Volume, tmp_path: Path) -> None:
    """A chunk's stored bytes past the end of its file are none of the file's."""
    one, out = mounted, tmp_path / "out"
    wanted = {}
    for size, cut in ((1000, 10), (3 * CHUNK, 2 * CHUNK + 5), (3 * CHUNK, CHUNK), (9, 0)):
        name = f"{size}-{cut}"
        content = os.urandom(size)
        (one / name).write_bytes(content)
        os.sync()
        os.truncate(one / name, cut)
        wanted[name] = content[:cut]
    (one / "grown").write_bytes(b"x" * 100)
    os.sync()
    os.truncate(one / "grown", 10)
    os.truncate(one / "grown", 50)
    wanted["grown"] = b"x" * 10 + bytes(40)
    for expected in ("files", "skipped"):
        done = stage(one, "stage-out", f"{one.mnt}:/", out)
        assert (done[expected], done["failed"]) == (5, 0), done
        assert {name: (out / name).read_bytes() for name in wanted} == wanted


def test_a_file_is_replaced_at_rest(volume: Callable[..., Volume], tmp_path: Path) -> None:
    one = volume(mounted=False, workers=2, mkfs=("--chunk-size", str(CHUNK)))
    top = many(tmp_path / "many", 300)
    stage(one, "stage-in", top, f"{one.store}:/")
    (top / "f1").write_bytes(b"another")
    done = stage(one, "stage-in", top, f"{one.store}:/")
    assert (done["files"], done["skipped"]) == (1, 299)
    one.mount()
    assert shape(one / "many") == shape(top)
    assert findings(one) == []


def test_a_file_is_replaced_in_a_mount(mounted: Volume, tmp_path: Path) -> None:
    one = mounted
    source = tmp_path / "file"
    for old, new in ((b"old", b"newer"), (b"x" * 300_000, b"y" * 200_000)):
        source.write_bytes(old)
        stage(one, "stage-in", source, f"{one.mnt}:/")
        with open(one / "file", "rb") as opened:
            assert opened.read() == old
            source.write_bytes(new)
            stage(one, "stage-in", source, f"{one.mnt}:/")
            assert (one / "file").read_bytes() == new
            assert (one / "file").stat().st_size == len(new)
            opened.seek(0)
            assert opened.read() == old, "an open file is no longer what was opened"
    (one / "folder").mkdir()
    (one / "folder" / "file").mkdir()
    done = stage(one, "stage-in", source, f"{one.mnt}:/folder", code=1)
    assert "a folder is where this is to go" in done["errors"][0]["error"]
    assert unfinished(one.mnt) == []
    # Out of the volume into itself, and into it from itself: refused.
    stage(one, "stage-in", one / "folder", f"{one.mnt}:/twice", code=1)
    stage(one, "stage-out", f"{one.mnt}:/file", one / "folder", code=1)
    assert findings(one) == []


@pytest.mark.parametrize(
    "fault", ["store.committed:2", *(["store.received:1", "stage.read:3"] if LONG else [])]
)
def test_a_worker_dies_in_the_middle(
    fault: str, volume: Callable[..., Volume], tmp_path: Path
) -> None:
    top = many(tmp_path / "many", 700)
    large(top / "large")
    once = tmp_path / "once"
    env = {"MPIFS_FAULT": fault, "MPIFS_FAULT_ONCE": str(once)}
    one = volume(mounted=False, workers=2, env=env)
    done = stage(one, "stage-in", top, f"{one.store}:/")
    assert (done["files"], done["failed"]) == (701, 0)
    assert once.exists() or fault == "store.received:1", "nobody has died"
    assert findings(one) == []
    one.env = {"MPIFS_FAULT": "stage.written_part:300", "MPIFS_FAULT_ONCE": f"{once}-out"}
    done = stage(one, "stage-out", f"{one.store}:/many", tmp_path / "out")
    assert (done["files"] + done["skipped"], done["failed"]) == (701, 0)
    assert Path(f"{once}-out").exists(), "nobody has died"
    assert shape(tmp_path / "out" / "many") == shape(top)
    assert unfinished(tmp_path / "out") == []


@pytest.mark.parametrize(
    "fault", ["stage.placed:300", *(["stage.stored:20", "commit.filled:3"] if LONG else [])]
)
def test_rank_0_dies_and_the_next_run_goes_on(
    fault: str, volume: Callable[..., Volume], tmp_path: Path
) -> None:
    top = many(tmp_path / "many", 700)
    large(top / "large")
    one = volume(mounted=False, workers=2, env={"MPIFS_FAULT": fault})
    done = one.mpifs("stage-in", top, f"{one.store}:/", check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    one.env = None
    one.mount()
    assert set(findings(one)) <= {"leftover"}
    stage(one, "stage-in", top, f"{one.mnt}:/")
    assert set(findings(one, "--repair")) <= {"leftover"}
    assert findings(one) == []
    assert shape(one / "many") == shape(top)
    assert unfinished(one.mnt) == []


def test_interrupted_runs_go_on(mounted: Volume, tmp_path: Path) -> None:
    """Ctrl-C, in both directions: what is done stays, an unfinished large file goes on by chunk."""
    one = mounted
    source, out = tmp_path / "huge", tmp_path / "out"
    with open(source, "wb") as file:
        for _ in range(8):
            file.write(os.urandom(32 * MIB))
    out.mkdir()
    for words in (
        ["stage-in", str(source), f"{one.mnt}:/"],
        ["stage-out", f"{one.mnt}:/huge", str(out)],
    ):
        part = one.mnt if words[0] == "stage-in" else out
        process = subprocess.Popen(
            [sys.executable, "-m", "mpifs", *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, TOKEN: str(one.root)},
        )
        poll(lambda part=part: unfinished(part), 30, "an unfinished file", 0.01)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1, errors
        assert b"interrupted" in errors
        assert findings(one) == []
        done = stage(one, *words)
        assert (done["files"], done["failed"]) == (1, 0)
        if words[0] == "stage-in":
            assert done["skipped_bytes"] + done["bytes"] == 256 * MIB
            assert done["skipped_bytes"] > 0
        assert unfinished(part) == []
    assert (out / "huge").read_bytes() == source.read_bytes()


def test_failures_are_told_and_the_rest_is_done(mounted: Volume, tmp_path: Path) -> None:
    one = mounted
    top = many(tmp_path / "many", 50)
    done = stage(one, "stage-in", tmp_path / "nothere", top, f"{one.mnt}:/", code=2)
    assert (done["files"], done["failed"]) == (50, 1)
    assert done["errors"][0]["path"] == str(tmp_path / "nothere")
    stage(one, "stage-in", tmp_path / "nothere", f"{one.mnt}:/", code=1)
    # A source that is written meanwhile.
    large(tmp_path / "busy")
    is_over = threading.Event()

    def write() -> None:
        with open(tmp_path / "busy", "r+b", buffering=0) as file:
            while not is_over.is_set():
                os.pwrite(file.fileno(), b"now", LARGE // 2)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = stage(one, "stage-in", tmp_path / "busy", f"{one.mnt}:/", code=1)
    finally:
        is_over.set()
        writer.join()
    assert "changed while it was staged" in done["errors"][0]["error"]
    assert not (one / "busy").exists()
    stage(one, "stage-in", tmp_path / "busy", f"{one.mnt}:/")
    assert (one / "busy").read_bytes() == (tmp_path / "busy").read_bytes()
    # A dry run says what would be done and does nothing.
    done = stage(one, "stage-in", "--dry-run", top, f"{one.mnt}:/dry")
    assert (done["files"], done["dry_run"]) == (50, True)
    assert not (one / "dry").exists()
    # Wrong command lines.
    for words in (["stage-in", f"{one.mnt}:/"], ["stage-out", f"{one.mnt}:/"]):
        assert one.mpifs(*words, check=False).returncode == 2
    assert findings(one) == []


def test_manifests(mounted: Volume, tmp_path: Path) -> None:
    one = mounted
    top = many(tmp_path / "many", 20)
    (top / "a b").write_bytes(b"blank")
    lines = f'# names\n{top}/f1 deep/er/one\n"{top}/a b" "c d"\n{top} all/\n{top}/none x\n'
    (tmp_path / "list").write_text(lines)
    done = stage(one, "stage-in", "--manifest", tmp_path / "list", f"{one.mnt}:/into", code=2)
    assert (done["files"], done["failed"]) == (23, 1)
    assert shape(one / "into" / "all" / "many") == shape(top)
    out = tmp_path / "out"
    back = b"deep/er/one x/y\n'c d' z\n"
    done_out = one.mpifs("stage-out", "--manifest", "-", f"{one.mnt}:/into", out, stdin=back)
    assert b"2 files" in done_out.stdout
    assert (out / "x" / "y").read_bytes() == (top / "f1").read_bytes()
    assert (out / "z").read_bytes() == b"blank"
    bad = one.mpifs("stage-in", "--manifest", "-", f"{one.mnt}:/", stdin=b"a b c\n", check=False)
    assert bad.returncode == 2
    assert b"line 1" in bad.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid():
        pytest.skip("only root mounts a small file system")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_target(mounted: Volume, tmp_path: Path, small_disk: Path) -> None:
    one = mounted
    top = many(tmp_path / "many", 300)
    large(top / "large")
    stage(one, "stage-in", top, f"{one.mnt}:/")
    done = stage(one, "stage-out", f"{one.mnt}:/many", small_disk, code=2)
    assert "No space left on device" in {error["error"] for error in done["errors"]}
    assert not (small_disk / "many" / "large").exists()
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    stage(one, "stage-out", f"{one.mnt}:/many", small_disk)
    assert shape(small_disk / "many") == shape(top)
    assert unfinished(small_disk) == []


def test_a_full_volume(volume: Callable[..., Volume], tmp_path: Path) -> None:
    top = many(tmp_path / "many", 300)
    large(top / "large")
    full = volume(workers=2, mkfs=("--capacity", "16MiB"))
    done = stage(full, "stage-in", top, f"{full.mnt}:/", code=2)
    assert "no space left" in done["errors"][0]["error"]
    assert findings(full) == []
    shutil.rmtree(full / "many")
    (tmp_path / "little").write_bytes(b"fits")
    stage(full, "stage-in", tmp_path / "little", f"{full.mnt}:/")


def test_a_repair_meanwhile_takes_nothing_away(mounted: Volume, tmp_path: Path) -> None:
    """Chunks on their way into the index look like leftovers; a repair must wait for them."""
    one = mounted
    top = many(tmp_path / "many", 2000)
    failures: list[bytes] = []
    is_over = threading.Event()

    def check() -> None:
        while not is_over.is_set():
            done = one.mpifs("fsck", one.mnt, "--repair", check=False)
            if done.returncode:
                failures.append(done.stdout + done.stderr)

    checker = threading.Thread(target=check)
    checker.start()
    try:
        for n in range(3):
            stage(one, "stage-in", top, f"{one.mnt}:/{n}")
    finally:
        is_over.set()
        checker.join()
    assert failures == []
    for n in range(3):
        assert shape(one.mnt / f"{n}" / "many") == shape(top)
    assert findings(one) == []
