"""Real programs work in the mount as on a local disk."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from contextlib import closing
from pathlib import Path

import pytest

from tests.mount.calls import describe, forked, make_zoo, needs_root, opened, pattern, put, run


def need(program: str) -> None:
    """Skips where a program is not installed."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")


@pytest.fixture(name="zoo")
def _zoo(tmp_path: Path) -> Path:
    """A tree with one of everything and a real source tree, on the local disk."""
    make_zoo(tmp_path / "zoo")
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in ("json", "email", "unittest"):
        shutil.copytree(
            library / name, tmp_path / "zoo" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path / "zoo"


@needs_root
def test_cp_a(here: Path, zoo: Path, tmp_path: Path) -> None:
    want = describe(zoo)
    run("cp", "-a", zoo, here / "in")
    assert describe(here / "in") == want
    run("cp", "-a", here / "in", here / "inside")
    assert describe(here / "inside") == want
    run("cp", "-a", here / "inside", tmp_path / "out")
    assert describe(tmp_path / "out") == want
    run("diff", "-r", "--no-dereference", zoo / "json", here / "inside/json")
    run("mv", here / "inside", tmp_path / "moved")
    assert describe(tmp_path / "moved") == want
    run("rm", "-rf", here / "in")
    assert os.listdir(here) == []


@needs_root
def test_rsync_twice(here: Path, zoo: Path, tmp_path: Path) -> None:
    need("rsync")
    # -ii would name unchanged files too; times of ns need a protocol of 31, as any rsync of today has
    flags = ("-aHXS", "--devices", "--specials", "--itemize-changes")
    want = describe(zoo)
    assert run("rsync", *flags, f"{zoo}/", here / "copy").stdout.count(b"\n") >= len(want)
    assert describe(here / "copy") == want
    assert run("rsync", *flags, f"{zoo}/", here / "copy").stdout == b""
    assert run("rsync", *flags, "--checksum", f"{zoo}/", here / "copy").stdout == b""
    put(zoo / "json/new", b"text")
    os.utime(zoo / "json", ns=(1, 3_000_000_001))  # rsync overlooks ns within one second
    with opened(zoo / "sub/deeper/large") as fd:
        os.pwrite(fd, b"changed", 1_500_000)
    done = run("rsync", *flags, "--inplace", f"{zoo}/", here / "copy").stdout
    assert b"json/new" in done
    assert b"hard link" in done
    assert describe(here / "copy") == describe(zoo)
    assert run("rsync", *flags, f"{here}/copy/", tmp_path / "back").returncode == 0
    assert describe(tmp_path / "back") == describe(zoo)


@needs_root
def test_tar_both_ways(here: Path, zoo: Path, tmp_path: Path) -> None:
    # tar reads the access time before 1970 of the zoo as is; its own format keeps ns
    pack = ("tar", "--format=posix", "--xattrs", "--sparse")
    run(*pack, "-czf", here / "zoo.tgz", "-C", zoo, ".")
    (here / "out").mkdir()
    run(*pack, "-xzpf", here / "zoo.tgz", "-C", here / "out")
    assert describe(here / "out") == describe(zoo)
    run(*pack, "-cf", tmp_path / "back.tar", "-C", here / "out", ".")
    run("tar", "--compare", "-f", tmp_path / "back.tar", "-C", zoo)


@pytest.mark.limit(150)
def test_git(here: Path, tmp_path: Path) -> None:
    need("git")
    who = {"HOME": str(tmp_path)}
    put(
        tmp_path / ".gitconfig",
        b"[user]\nname=a\nemail=a@b.c\n[init]\ndefaultBranch=main\n[gc]\nauto=0\n[safe]\ndirectory=*\n",
    )
    origin = tmp_path / "origin"
    git = lambda where, *words: run("git", "-C", where, *words, env=who).stdout  # noqa: E731
    origin.mkdir()
    git(origin, "init", "-q")
    rng = random.Random(1)
    for commit in range(8):
        for _ in range(25):
            put(origin / f"file{rng.randrange(60)}", rng.randbytes(rng.randrange(30_000)))
        put(origin / "script", b"#!/bin/sh\n", 0o755)
        git(origin, "add", "-A")
        git(origin, "commit", "-qm", f"commit {commit}")
        if commit == 4:
            git(origin, "tag", "middle")
    clone = here / "clone"
    git(here, "clone", "-q", "--no-hardlinks", origin, clone)
    assert git(clone, "status", "--porcelain") == b""
    git(clone, "fsck", "--full", "--strict")
    git(clone, "checkout", "-q", "middle")
    git(clone, "checkout", "-q", "-b", "topic")
    put(clone / "file1", b"changed")
    assert git(clone, "status", "--porcelain").split()[-1] == b"file1"
    git(clone, "commit", "-qam", "mine")
    git(clone, "rebase", "-q", "-X", "theirs", "main")
    git(clone, "gc", "-q", "--aggressive", "--prune=now")
    git(clone, "fsck", "--full", "--strict")
    assert git(clone, "status", "--porcelain") == b""
    git(here, "clone", "-q", clone, here / "second")  # inside the mount: hard-linked objects
    git(here / "second", "fsck", "--full")
    assert git(here / "second", "rev-parse", "topic") == git(clone, "rev-parse", "topic")
    git(clone, "worktree", "add", "-q", here / "tree", "main")
    git(here / "tree", "push", "-q", "origin", "topic")
    assert git(origin, "rev-parse", "topic") == git(clone, "rev-parse", "topic")


@pytest.mark.limit(150)
def test_virtual_environment(here: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", here / "env")
    put(
        here / "env/mine.py",
        b"import email.message, json, sqlite3\nprint(json.dumps({'prefix': 1}))\n",
    )
    done = run(here / "env/bin/python", here / "env/mine.py")
    assert done.stdout == b'{"prefix": 1}\n'
    assert os.fsdecode(
        run(here / "env/bin/python", "-c", "import sys; print(sys.prefix)").stdout
    ).strip() == str(here / "env")
    shutil.copytree(Path(sysconfig.get_paths()["stdlib"]) / "json", here / "env/lib/mypackage")
    code = f"import sys; sys.path.insert(0, {str(here / 'env/lib')!r}); import mypackage; print(mypackage.loads('[1]'), mypackage.__cached__)"
    for _ in range(2):  # the second run imports the .pyc files that the first one wrote
        assert b"[1]" in run(here / "env/bin/python", "-c", code).stdout
    assert list((here / "env/lib/mypackage/__pycache__").glob("*.pyc"))
    run(sys.executable, "-m", "compileall", "-q", here / "env/lib/mypackage")


ROUNDS = 25


def bank(path: Path, mode: str, seed: int) -> None:
    """Moves money between accounts; the sum must never change."""
    rng = random.Random(seed)
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as db:
        assert db.execute(f"pragma journal_mode={mode}").fetchone()[0] == mode
        db.execute("pragma synchronous=normal")
        for number in range(ROUNDS):
            db.execute("begin immediate")
            one, two = rng.sample(range(50), 2)
            db.execute("update account set money = money - ? where id = ?", (number, one))
            db.execute("update account set money = money + ? where id = ?", (number, two))
            db.execute(
                "insert into log values (?, ?, ?)",
                (seed, number, rng.randbytes(rng.randrange(6000))),
            )
            db.execute("rollback" if number % 10 == 9 else "commit")
            if number % 5 == 0:
                assert db.execute("select sum(money) from account").fetchone() == (50_000,)


@pytest.mark.parametrize("mode", ["wal", "delete", "truncate", "persist"])
@pytest.mark.limit(150)
def test_sqlite_under_load(here: Path, mode: str) -> None:
    path = here / "bank.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"pragma journal_mode={mode}")
        db.execute("create table account (id integer primary key, money integer)")
        db.execute("create table log (who integer, number integer, noise blob)")
        db.executemany("insert into account values (?, 1000)", [(n,) for n in range(50)])
        db.commit()
    for wait in [forked(bank, path, mode, seed) for seed in range(3)]:
        wait()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        assert db.execute("select sum(money) from account").fetchone() == (50_000,)
        assert db.execute("select count(*) from log").fetchone() == (3 * (ROUNDS - ROUNDS // 10),)
        db.execute("vacuum")
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    if shutil.which("sqlite3"):
        assert run("sqlite3", path, "pragma integrity_check").stdout == b"ok\n"


MAKEFILE = b"""CFLAGS = -O1 -Wall
OBJECTS = $(patsubst %.c,%.o,$(sort $(wildcard *.c)))
all: program libpart.a
program: $(OBJECTS)
\t$(CC) -o $@ $^
libpart.a: part1.o part2.o
\tar rcs $@ $^
%.o: %.c part.h
\t$(CC) $(CFLAGS) -c -o $@ $<
clean:
\trm -f *.o *.a program
"""


@pytest.mark.limit(150)
def test_make_of_a_c_project(here: Path) -> None:
    need("make")
    need("cc")
    put(here / "Makefile", MAKEFILE)
    count = 8
    put(here / "part.h", b"".join(b"int part%d(int);\n" % n for n in range(count)))
    for n in range(count):
        put(
            here / f"part{n}.c",
            b'#include "part.h"\nint part%d(int x) { return x + %d; }\n' % (n, n),
        )
    calls = "".join(f"x = part{n}(x); " for n in range(count))
    put(
        here / "main.c",
        f'#include <stdio.h>\n#include "part.h"\nint main(void) {{ int x = 0; {calls} printf("%d\\n", x); return 0; }}\n'.encode(),
    )
    run("make", "-j2", cwd=here)
    assert run(here / "program").stdout == b"28\n"
    assert b"Nothing to be done" in run("make", cwd=here).stdout
    stamp = (here / "part3.o").stat().st_mtime_ns
    put(here / "part3.c", b'#include "part.h"\nint part3(int x) { return x + 1003; }\n')
    lines = run("make", cwd=here).stdout.splitlines()
    assert sum(b"-c -o" in line for line in lines) == 1
    assert (here / "part3.o").stat().st_mtime_ns > stamp
    assert run(here / "program").stdout == b"1028\n"
    run("make", "clean", cwd=here)
    assert not (here / "program").exists()


FIO = {
    "psync": (
        "--ioengine=psync",
        "--rw=randrw",
        "--bsrange=512-70k",
        "--blockalign=512",
        "--size=6M",
        "--fsync=50",
    ),
    "append": ("--ioengine=psync", "--rw=write", "--bs=5k", "--size=6M", "--end_fsync=1"),
    "mmap": ("--ioengine=mmap", "--rw=randwrite", "--bs=4k", "--size=4M"),
    "two files": (
        "--ioengine=psync",
        "--rw=randwrite",
        "--bs=4k",
        "--size=3M",
        "--numjobs=2",
        "--nrfiles=4",
    ),
}


@pytest.mark.parametrize("name", FIO)
@pytest.mark.limit(150)
def test_fio_verify(here: Path, name: str) -> None:
    need("fio")
    run("fio", "--name=job", f"--directory={here}", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randrepeat=1",
        "--fallocate=none", "--invalidate=1", *FIO[name], cwd=here)  # fmt: skip


def test_dd_with_odd_sizes(here: Path, tmp_path: Path) -> None:
    source = put(tmp_path / "source", pattern(700_001))
    for number, words in enumerate([
        "bs=777", "bs=65537", "bs=1000 seek=3", "bs=513 skip=17 seek=900 conv=notrunc", "bs=1M seek=2", "bs=31 count=100 seek=123456 conv=notrunc",
        "bs=4096 conv=sparse", "bs=1000 oflag=append conv=notrunc", "bs=10000 conv=fsync oflag=sync", "bs=3000 seek=99 count=0",
    ]):  # fmt: skip
        for target in (here / f"{number % 3}", tmp_path / f"{number % 3}"):
            run("dd", f"if={source}", f"of={target}", "status=none", *words.split())
        assert (here / f"{number % 3}").read_bytes() == (tmp_path / f"{number % 3}").read_bytes(), (
            words
        )
    run("dd", f"if={here / '0'}", f"of={tmp_path / 'back'}", "bs=333", "status=none", "skip=5")
    assert (tmp_path / "back").read_bytes() == (here / "0").read_bytes()[5 * 333 :]


WRITER = """
import mmap, os, random, sys
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
rng = random.Random(int(sys.argv[2]))
with mmap.mmap(fd, size) as view:
    for n in range(400):
        place = rng.randrange(size // 2 - 16) * 2 + int(sys.argv[2])
        view[place] = n % 256
        if n % 100 == 0:
            view.flush()
"""


def test_mmap_writers(here: Path) -> None:
    """Two processes write even and odd bytes of one mapping."""
    size = 300_000
    put(here / "f", bytes(size))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(here / "f"), f"{n}"]) for n in range(2)
    ]
    assert [w.wait(60) for w in writers] == [0, 0]
    model = bytearray(size)
    for seed in range(2):
        rng = random.Random(seed)
        for n in range(400):
            model[rng.randrange(size // 2 - 16) * 2 + seed] = n % 256
    assert (here / "f").read_bytes() == model


def test_flock_program(here: Path) -> None:
    need("flock")
    put(here / "count", b"0\n")
    script = (
        "for i in $(seq 15); do flock lock sh -c 'n=$(cat count); echo $((n + 1)) > count'; done"
    )
    workers = [subprocess.Popen(["sh", "-c", script], cwd=here) for _ in range(4)]
    assert [w.wait(90) for w in workers] == [0] * 4
    assert (here / "count").read_bytes() == b"60\n"


def test_editors_way_of_saving(here: Path) -> None:
    """Write beside, fsync, rename over: a reader sees the old or the new text whole, never less."""
    path = put(here / "text", b"0" * 50_000)

    def saver() -> None:
        for number in range(1, 60):
            temporary = put(here / f".text.{number}", b"%d" % (number % 10) * 50_000)
            os.rename(temporary, path)

    wait = forked(saver)
    seen = set()
    for _ in range(200):
        data = path.read_bytes()
        assert len(data) == 50_000
        assert len(set(data)) == 1, "old and new mixed"
        seen.add(data[0])
    wait()
    assert path.read_bytes() == b"9" * 50_000


def test_shell_tools(here: Path) -> None:
    script = """set -e
mkdir -p a/b/c; for i in 1 2 3; do echo line$i >> a/log; done
test "$(wc -l < a/log)" = 3; sed -i s/line2/LINE/ a/log; grep -q LINE a/log
sort -r a/log > a/sorted; head -1 a/sorted | grep -q line3
cp --sparse=always a/log b; ln b c; ln -s b d; test "$(stat -c %h c)" = 2; cmp b d
truncate -s 1M e; test "$(stat -c %s e)" = 1048576; install -m 4711 b i; test "$(stat -c %a i)" = 4711
find . -name log -newer /dev/null | grep -q a/log; touch -r a/log e; mktemp -p . x.XXXXXX >/dev/null
split -b 7 a/log part.; cat part.* | cmp - a/log; gzip -k a/log; zcat a/log.gz | cmp - a/log; shred -u -n1 part.aa
chmod -R u=rwX,go= .; du -s . >/dev/null; df . >/dev/null; ls -laR . >/dev/null; rm -r a b c d; test ! -e a
"""
    run("bash", "-c", script, cwd=here)
